"""The Wan diffusion transformer: one expert."""

from .blocks import Block, SelfAttention, Text, Tokens, chunk_tokens
from .model import WanTransformer

__all__ = ["Block", "SelfAttention", "Text", "Tokens", "WanTransformer", "chunk_tokens"]
