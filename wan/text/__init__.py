"""Text to context: cleaning, tokens, umT5, and the fixed-length context the transformer attends to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..keys.text import hf_key, official_key
from .tokenizer import Tokenizer, check_vocabulary, clean
from .umt5 import UMT5Encoder

__all__ = [
    "Tokenizer",
    "UMT5Encoder",
    "check_vocabulary",
    "clean",
    "encode_prompt",
    "hf_key",
    "official_key",
]


@torch.no_grad()
def encode_prompt(
    encoder: UMT5Encoder, tokenizer: Tokenizer, text: str, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Context of one prompt, (1, text_len, dim), on the encoder's device; ``dtype`` as in its forward.

    The encoder sees the true length only, which equals a padded and masked run but is cheaper. Rows
    after the text are exactly zero and stay: the transformer attends to them.
    """
    device = next(encoder.parameters()).device
    ids = torch.tensor([tokenizer.encode(text)], device=device)
    hidden: Tensor = encoder(ids, dtype=dtype)
    return pad(hidden, (0, 0, 0, tokenizer.text_len - hidden.shape[1]))
