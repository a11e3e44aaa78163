"""Our umT5 encoder and tokenizer as a real ComfyUI CLIP."""

from __future__ import annotations

from typing import Any

import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...wan.config import TextConfig
from ...wan.text import Tokenizer, UMT5Encoder

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

    def __init__(
        self, config: TextConfig, *, dtype: torch.dtype | None, device: torch.device | None
    ) -> None:
        """Weights are stored in ``dtype`` and cast by their layers; the arithmetic is float32."""
        super().__init__()
        self.transformer = UMT5Encoder(
            config, ops=comfy.ops.manual_cast, device=device, dtype=dtype
        )
        self.transformer.eval().requires_grad_(False)
        self.text_len = config.text_len
        self.dtypes = {dtype or torch.get_default_dtype()}
        self.execution_device: torch.device | None = None
        self.device: torch.device | None = device  # kept up to date by the patcher

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

    def load_sd(self, weights: dict[str, Tensor]) -> Any:
        """Load official keys; returns the missing and the unexpected ones."""
        assign = getattr(self, "can_assign_sd", False)
        return self.transformer.load_state_dict(weights, strict=False, assign=assign)


class _Target:
    """What ``comfy.sd.CLIP`` builds itself from."""

    def __init__(self, config: TextConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
        self.params: dict[str, Any] = {}
        self._config, self._tokenizer, self._dtype = config, tokenizer, dtype

    def clip(self, *, device: torch.device | None = None, **_: Any) -> HostTextModel:
        return HostTextModel(self._config, dtype=self._dtype, device=device)

    def tokenizer(self, **_: Any) -> HostTokenizer:
        return HostTokenizer(self._tokenizer)


def build_clip(config: TextConfig, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> Any:
    """A CLIP over ``weights`` (official keys), stored in the dtype of the file."""
    dtype = comfy.utils.weight_dtype(weights)
    clip = comfy.sd.CLIP(
        _Target(config, tokenizer, dtype),
        tokenizer_data={},
        parameters=comfy.utils.calculate_parameters(weights),
    )
    clip.load_sd(weights)
    return clip
