"""What several tests need: tokenizers and weights made on the spot, and a measure of difference."""

from __future__ import annotations

import io
from collections.abc import Sequence

import sentencepiece
import torch
from torch import Tensor, nn

SENTENCES = ("a red circle moves left on a white background",)


def sentencepiece_model(vocab_size: int, sentences: Sequence[str] = SENTENCES) -> bytes:
    """A sentencepiece model in the T5 layout: pad 0, end 1, unknown 2; at most ``vocab_size`` pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences] * 20),
        model_writer=model,
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of a scale at which no layer dies and none explodes; norms are ones."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in module.state_dict().items():
        if "norm" in key or key.endswith("gamma"):
            state[key] = torch.ones(value.shape)
        else:
            fan_in = value[0].numel() if value.ndim > 1 else 16
            state[key] = torch.randn(value.shape, generator=generator) / fan_in**0.5
    return state


def relative(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted value."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()
