"""Our umT5 encoder and tokenizer as a real ComfyUI CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...wan.config import TextConfig
from ...wan.quant import Quant
from ...wan.text import Tokenizer, UMT5Encoder
from . import compat
from .mapped import settle
from .patches import patch_at_use
from .quant import META, has_packed_layers, load_weights

TOKENS = "umt5xxl"
"""Key of the token lists, the one ComfyUI's own Wan text encoder uses."""


class HostTokenizer:
    """The official cleaning and tokenization; parentheses are text, not weights."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """``tokenizer`` comes with the encoder's file."""
        self._tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_: Any
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        """Ids of ``text`` with weight 1: end token included, at most 512, no padding."""
        ids = self._tokenizer.encode(text)
        row = [(i, 1.0, n + 1) if return_word_ids else (i, 1.0) for n, i in enumerate(ids)]
        return {TOKENS: [row]}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing of its own to save; the file's tokenizer tensor belongs to the encoder's file."""
        return {}


class HostTextModel(nn.Module):
    """The calls ``comfy.sd.CLIP`` makes on its model, over :class:`UMT5Encoder`."""

    def __init__(self, transformer: UMT5Encoder) -> None:
        """``transformer`` has its weights; layers cast them, the arithmetic is float32."""
        super().__init__()
        self.transformer = transformer
        self.text_len = transformer.config.text_len
        self.dtypes = {parameter.dtype for parameter in transformer.parameters()}
        self.execution_device: torch.device | None = None
        self.device: torch.device | None = None  # kept up to date by the patcher

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Only the device matters; layer selection has no meaning for Wan."""
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        """Back to the device of the weights."""
        self.execution_device = None

    def encode_token_weights(
        self, tokens: dict[str, list[list[tuple[Any, ...]]]]
    ) -> tuple[Tensor, None]:
        """``(1, 512, dim)`` float32, zero rows after the text; there is no pooled output."""
        ids = [int(entry[0]) for entry in tokens[TOKENS][0]]
        hidden = self.transformer(
            torch.tensor([ids], device=self.execution_device or self.device), dtype=torch.float32
        )
        return pad(hidden, (0, 0, 0, self.text_len - hidden.shape[1])), None


class _Target:
    """What ``comfy.sd.CLIP`` builds itself from."""

    def __init__(self, model: HostTextModel, tokenizer: Tokenizer) -> None:
        self.params: dict[str, Any] = {}
        self._model, self._tokenizer = model, tokenizer

    def clip(self, **_: Any) -> HostTextModel:
        return self._model

    def tokenizer(self, **_: Any) -> HostTokenizer:
        return HostTokenizer(self._tokenizer)


def build_clip(
    config: TextConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    quants: Mapping[str, Quant] | None = None,
) -> Any:
    """A CLIP over ``weights`` (official keys), which stay mapped from their file as they are stored.

    ``quants`` says how the weights of some layers are packed.
    """
    quants = quants or {}
    dtype = torch.float32 if quants else comfy.utils.weight_dtype(weights)
    network = UMT5Encoder(config, ops=comfy.ops.manual_cast, device=META, dtype=dtype)
    load_weights(network, weights, quants, compute=torch.float32, full_precision=True)
    model, offload = HostTextModel(network), mm.text_encoder_offload_device()
    if not mm.is_device_cpu(offload):
        model.to(offload)
    model.device = offload
    # On no real device to begin with, so that nothing is loaded before the patcher is settled.
    clip = comfy.sd.CLIP(
        _Target(model, tokenizer), tokenizer_data={}, model_options={"initial_device": META}
    )
    compat.keep_stored_dtypes(network)
    clip.patcher = settle(clip.patcher, packed=has_packed_layers(network), mapped=True)
    patch_at_use(clip.patcher)
    return clip
