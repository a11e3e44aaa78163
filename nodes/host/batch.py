"""How the samples of a batch, the prompts of guidance and the clips, go through the network."""

from __future__ import annotations

from typing import Any

from ...wan.shapes import token_grid

TOGETHER = 1 << 14
"""Tokens of all samples of a batch, prompts and clips, up to which they go through the network side by
side: weights travel once for them, and they hold at most 0.6 GB in the 14B model. More go one after
the other, so that guidance never doubles what a forward holds."""
OF_CHUNKS = ("cond_or_uncond", "uuids")
"""Options with an entry for each conditioning in a batch."""


def samples_at_once(shape: tuple[int, ...]) -> int:
    """How many samples of latents ``(B, C, T, h, w)`` go through the network side by side."""
    together = shape[0] * token_grid(*shape[2:]).tokens <= TOGETHER
    return shape[0] if together else 1


def of_sample(options: dict[str, Any], index: int, samples: int) -> dict[str, Any]:
    """What patches are told of one sample, as ComfyUI tells it where memory is short."""
    told = {name: options[name] for name in OF_CHUNKS if options.get(name)}
    return options | {
        name: [chunks[index * len(chunks) // samples]] for name, chunks in told.items()
    }
