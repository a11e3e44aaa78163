"""What weights tell of an expert's role, measured on the bundled pair.

    python benchmarks/roles.py [HIGH LOW TEXT]

One JSON line per question:

- ``same_expert``: share of values of the fingerprint tensors that agree to the rounding of both formats,
  between a file and itself in other precisions, and between the two experts. The loader refuses a pair above ``SAME_SHARE``.
- ``weight_size``: norm of each kind of weight in the high-noise expert over that in the low-noise one.
  A role could be read from it only if some kind were always larger in one of them.
- ``pure_noise``: spread of the clean estimate at t = 999, for the empty and for a real prompt. An expert
  trained there should be near the mean of its data, so the smaller spread would be the high-noise one.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from wan.checkpoint import find_parts, load_text_encoder, load_transformer, open_checkpoint
from wan.checkpoint.identity import FINGERPRINT, SAME_SHARE, agreement
from wan.text import encode_prompt
from wan.transformer import WanTransformer

PROMPTS = ("", "a red circle moves left on a white background", "一个蓝色方形在黑色背景上向右移动")
SEEDS = 8


def same_expert(high: dict[str, Tensor], low: dict[str, Tensor]) -> dict[str, object]:
    """Agreement of fingerprints."""
    shares = [
        min(agreement(high[key], high[key].to(dtype)) for key in FINGERPRINT)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    between = max(agreement(high[key], low[key]) for key in FINGERPRINT)
    return {"itself_least": min(shares), "two_experts_most": between, "threshold": SAME_SHARE}


def weight_size(high: dict[str, Tensor], low: dict[str, Tensor]) -> dict[str, object]:
    """Range of norm ratios over all blocks, by kind of weight; only kinds that never cross 1."""
    ratios = defaultdict(list)
    for key, tensor in high.items():
        kind = re.sub(r"blocks\.\d+\.", "", key)
        ratios[kind].append(float(tensor.float().norm() / low[key].float().norm()))
    blocks = {kind: r for kind, r in ratios.items() if len(r) > 1}
    one_sided = {kind: r for kind, r in blocks.items() if min(r) > 1 or max(r) < 1}
    return {
        "kinds": len(blocks),
        "one_sided": {kind: [round(min(r), 3), round(max(r), 3)] for kind, r in one_sided.items()},
    }


@torch.no_grad()
def clean_spread(model: WanTransformer, context: Tensor) -> float:
    """Standard deviation of ``x - v`` at pure noise, averaged over seeds."""
    spreads = []
    for seed in range(SEEDS):
        noise = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
        velocity = model(noise, torch.tensor([999.0]), context)
        spreads.append(float((noise - velocity).std()))
    return round(sum(spreads) / SEEDS, 3)


def main() -> None:
    """Measure the three."""
    given = sys.argv[1:]
    parts = (
        dict(zip(("high", "low", "text"), map(Path, given), strict=True)) if given else find_parts()
    )
    high, low = (open_checkpoint(parts[part], "transformer") for part in ("high", "low"))
    states = high.state_dict(), low.state_dict()
    lines: list[dict[str, object]] = [
        {"question": "same_expert", **same_expert(*states)},
        {"question": "weight_size", **weight_size(*states)},
    ]
    encoder, tokenizer = load_text_encoder(parts["text"])
    models = {part: load_transformer(parts[part], dtype=torch.float32) for part in ("high", "low")}
    for prompt in PROMPTS:
        context = encode_prompt(encoder, tokenizer, prompt, dtype=torch.float32)
        told = {part: clean_spread(model, context) for part, model in models.items()}
        lines.append({"question": "pure_noise", "prompt": prompt, **told})
    for line in lines:
        print(json.dumps({"benchmark": "roles", **line}, ensure_ascii=False))


if __name__ == "__main__":
    main()
