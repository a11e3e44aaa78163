"""The Wan diffusion transformer: one expert."""

from .blocks import Block, SelfAttention, Text, Tokens, chunk_tokens
from .memory import DESIGNS, EXACT, Memory
from .model import WanTransformer

__all__ = [
    "DESIGNS",
    "EXACT",
    "Block",
    "Memory",
    "SelfAttention",
    "Text",
    "Tokens",
    "WanTransformer",
    "chunk_tokens",
]
