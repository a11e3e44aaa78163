"""An expert whose blocks have their weights only while they run, out of a ring of buffers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import DTYPES, TensorInfo
from ..transformer import Block, Tokens, WanTransformer
from .layouts import Checkpoint
from .load import arriving, load_transformer, place
from .ring import Load, Piece, Ring

ALIGNMENT = 64
"""Bytes; what a CPU computes in float32 can depend on where a weight lies within them."""
CARD_ALIGNMENT = 512
"""That of every allocation on a CUDA device."""
BLOCKS = "blocks"
READING = ("cross_attn.k.", "cross_attn.v.", "cross_attn.norm_k.")
"""Weights of a block that only read the text: a tenth of it, a seventh in the 14B model."""


def is_streamable(checkpoint: Checkpoint) -> bool:
    """Whether the places of its tensors are known: of all but torch files."""
    return checkpoint.container != "pickle"


def in_order(checkpoint: Checkpoint, *, blocks: bool = True) -> list[TensorInfo]:
    """Where its tensors lie: those outside the blocks, then, if asked, block after block."""
    loads = block_loads(checkpoint, torch.device("cpu")) if is_streamable(checkpoint) else ()
    inside = [piece.info for load in loads for piece in load.pieces]
    stored = [*checkpoint.tensors.values(), *checkpoint.scales.values()]
    known = set(inside)
    outside = [info for info in stored if info not in known and info.begin is not None]
    outside.sort(key=lambda info: (str(info.file), info.begin or 0))
    return [*outside, *inside] if blocks else outside


def block_loads(checkpoint: Checkpoint, device: torch.device) -> tuple[Load, ...]:
    """What each block of an expert needs, in the order of the blocks.

    On the CPU a tensor lies at the same place within 64 bytes as in the mapped file, so that results
    are those of mapped weights bit for bit.

    Args:
        checkpoint: of an expert, :func:`is_streamable`.
        device: where the blocks run.
    """
    stored = {**checkpoint.tensors, **checkpoint.scales}
    blocks: dict[int, list[str]] = {}
    for key in stored:
        parts = key.split(".", 2)
        if parts[0] == BLOCKS and not key.endswith(".input_scale"):
            blocks.setdefault(int(parts[1]), []).append(key)
    return tuple(_load(checkpoint, blocks[index], device) for index in sorted(blocks))


def _load(checkpoint: Checkpoint, keys: Sequence[str], device: torch.device) -> Load:
    found = []
    for key in keys:
        info = checkpoint.tensors.get(key) or checkpoint.scales[key]
        assert info.begin is not None
        found.append(((str(info.file), info.begin), key, info))
    pieces, end = [], 0
    for _, key, info in sorted(found):
        at, within = -(-end // ALIGNMENT) * ALIGNMENT, (info.begin or 0) % ALIGNMENT
        if device.type != "cpu":
            at, within = -(-end // CARD_ALIGNMENT) * CARD_ALIGNMENT, 0
        elif within % (DTYPES[info.dtype].itemsize if info.dtype in DTYPES else 1):
            within = 0  # torch has no views that are not whole elements from the start
        pieces.append(Piece(name=key.split(".", 2)[2], info=info, at=at + within))
        end = pieces[-1].end
    return Load(pieces=tuple(pieces))


class BlockStream:
    """The hooks that give the blocks of one expert their weights when they run, and take them back.

    A block that has read the text of a forward before is not given the weights that read it.

    Attributes:
        after: what comes after the last block; None for the same blocks again.
    """

    def __init__(
        self, model: WanTransformer, loads: Sequence[Load], ring: Ring, device: torch.device
    ) -> None:
        """``model``: filled with mapped weights, which it shows wherever no block runs."""
        self._loads, self._ring, self._device, self._dtype = loads, ring, device, model.dtype
        self._after_reading = [_without_reading(load) for load in loads]
        self.after: Sequence[Load] | None = None
        self._stored: dict[nn.Module, dict[str, tuple[nn.Module, str, Tensor]]] = {}
        model.register_forward_pre_hook(lambda *_: ring.check())
        for index, block in enumerate(model.blocks):
            self._stored[block] = dict(_tensors(block))
            block.register_forward_pre_hook(partial(self._enter, index))
            block.register_forward_hook(self._leave, always_call=True)

    def _enter(self, index: int, block: Block, given: tuple[Tensor, Tokens]) -> None:
        _, tokens = given
        has_read = block.cross_attn.has_read(tokens.text)
        loads = self._after_reading if has_read else self._loads
        load, following = loads[index], loads[index + 1 :]
        buffer = self._ring.take(load, [*following, *(loads if self.after is None else self.after)])
        for piece in load.pieces:
            module, leaf, stored = self._stored[block][piece.name]
            view = buffer[piece.at : piece.end].view(stored.dtype).view(stored.shape)
            if isinstance(stored, nn.Parameter):
                wanted = arriving(stored, self._device, self._dtype)
                view = nn.Parameter(view.to(wanted), requires_grad=False)
            setattr(module, leaf, view)

    def _leave(self, block: nn.Module, *_: object) -> None:
        for module, leaf, stored in self._stored[block].values():
            setattr(module, leaf, stored)


def _without_reading(load: Load) -> Load:
    return Load(pieces=tuple(p for p in load.pieces if not p.name.startswith(READING)))


def _tensors(block: nn.Module) -> list[tuple[str, tuple[nn.Module, str, Tensor]]]:
    """Every parameter and buffer of a block by its name, with the module that holds it."""
    return [
        (f"{path}.{leaf}" if path else leaf, (module, leaf, tensor))
        for path, module in block.named_modules()
        for leaf, tensor in chain(
            module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
    ]


def load_streamed(
    path: str | Path,
    loads: Sequence[Load],
    ring: Ring,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[WanTransformer, BlockStream]:
    """One expert that runs on ``device`` with its blocks out of ``ring``, and its stream.

    What lies outside the blocks is there all the time: mapped on the CPU, else on the device.

    Args:
        path: of the checkpoint.
        loads: of :func:`block_loads`, for ``device``.
        ring: on ``device``, with room for the largest of them.
        device: where it runs.
        dtype: of its computation.
    """
    model = load_transformer(path, dtype=dtype)
    for name, part in model.named_children():
        if name != BLOCKS:
            place(part, device, dtype)
    return model, BlockStream(model, loads, ring, device)
