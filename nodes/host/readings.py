"""Prompts that an expert has read, for the run under way.

Keys and values of a text change only with the weights that make them, so they are made once for each
prompt of a run and go with their block's weights. ComfyUI says when a run begins and ends, and when it
loads or patches weights; between those nobody else may change them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ...wan.transformer import Text, WanTransformer

KEY = "wan_experts_text"
PROMPTS = 4
"""Prompts that are kept at most; of more, those that were read last."""
FEW = 4
"""Keys at most that stand for the rows after a text, in any dtype."""

Pair = tuple[Tensor, Tensor]


class BesideWeights(dict[nn.Module, Pair]):
    """Keys and values where the weights are that made them: on the device only while those are.

    Of whole texts a layer on the device keeps none: making them again reads nothing, while keeping
    them takes 0.42 GB a prompt at the published size.
    """

    def __init__(self, device: torch.device, *, whole: bool) -> None:
        """For computing on ``device``; ``whole`` says that padding has rows of its own."""
        super().__init__()
        self._device, self._whole = device, whole

    def __setitem__(self, layer: nn.Module, pair: Pair) -> None:
        """Keep ``pair`` of a cross-attention."""
        home = layer.k.weight.device
        if home == self._device and self._whole:
            return
        keys, values = pair
        super().__setitem__(layer, (keys.to(home), values.to(home)))

    def __getitem__(self, layer: nn.Module) -> Pair:
        """The pair on the device."""
        keys, values = super().__getitem__(layer)
        return (
            keys.to(self._device, non_blocking=True),
            values.to(self._device, non_blocking=True),
        )


def kept_rows(context: Tensor, longest: int) -> int:
    """Keys at most that stand for ``context`` (B, S, text_dim), where a few stand for its padding."""
    told = context[:, :longest].ne(0).any(-1).any(0).nonzero()
    return min(longest, int(told[-1]) + 1 + FEW if len(told) else FEW)


class _Read(NamedTuple):
    context: Tensor
    dtype: torch.dtype
    few: bool
    text: Text

    def is_of(self, context: Tensor, dtype: torch.dtype, few: bool) -> bool:
        mine = self.context
        alike = (mine.shape, mine.dtype, mine.device) == (
            context.shape, context.dtype, context.device,
        )  # fmt: skip
        return (self.dtype, self.few) == (dtype, few) and alike and torch.equal(mine, context)


class Readings:
    """What an expert has read in the run under way, told apart by the numbers it was given."""

    def __init__(self) -> None:
        """Outside a run: nothing is kept."""
        self._open = False
        self._read: list[_Read] = []

    def open(self) -> None:
        """A run begins."""
        self._open = True
        self._read.clear()

    def close(self) -> None:
        """A run ends, or weights will change in it that nobody tells of."""
        self._open = False
        self._read.clear()

    def forget(self) -> None:
        """Weights changed or moved."""
        self._read.clear()

    def of(
        self, network: WanTransformer, context: Tensor, dtype: torch.dtype, *, few: bool
    ) -> Tensor | Text:
        """``context`` (B, S, text_dim) as ``network`` reads it for a forward in ``dtype``.

        ``few`` lets a few keys stand for all rows after the text. Outside a run, where gradients are
        wanted and in compiled code it comes back as it is, to be read there.
        """
        if not self._open or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return context
        for read in self._read:
            if read.is_of(context, dtype, few):
                return read.text
        text = network.read(context, dtype) if few else network.read_whole(context, dtype)
        text = text._replace(kept=BesideWeights(context.device, whole=not few))
        self._read = [*self._read, _Read(context.clone(), dtype, few, text)][-PROMPTS:]
        return text


def keep_readings(patcher: Any) -> None:
    """Let the network of ``patcher`` and its clones keep what it reads, for one run each."""
    readings = patcher.model.diffusion_model.readings
    told = {
        CallbacksMP.ON_PRE_RUN: readings.open,
        CallbacksMP.ON_CLEANUP: readings.close,
        CallbacksMP.ON_LOAD: readings.forget,
        CallbacksMP.ON_DETACH: readings.forget,
        # Weights that hooks change may change back without a word.
        CallbacksMP.ON_APPLY_HOOKS: readings.close,
    }
    for call, tell in told.items():
        patcher.add_callback_with_key(call, KEY, _told(tell))


def _told(tell: Any) -> Any:
    return lambda *_: tell()
