"""Forwards of the 1.3B sizes in bfloat16: ours, diffusers', ComfyUI's, and their bare kernels.

    python benchmarks/forward.py --comfyui FOLDER --tokens 4680 --layers 1 [--out results.jsonl]
    python benchmarks/forward.py --comfyui FOLDER --tokens 1560 --layers 30 --error [--out results.jsonl]

Timed like ``block.py``, in one process on the same random weights, in turns. Blocks cost alike, so a
few ``--layers`` are enough; seconds are per layer, with its share of what comes before and after
the blocks. ``error`` is how far each in bfloat16 is from ours in float32: the largest difference, that
over the largest value, the 2-norm over that of the result, and the cosine; it grows with the layers,
so ``--error`` tells it of many and times nothing. One JSON line.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import block  # noqa: E402
from benchmarks.lines import Way, hardware, over, report, take_turns, versions  # noqa: E402
from wan.config import TransformerConfig  # noqa: E402
from wan.shapes import token_grid  # noqa: E402

SIZES = TransformerConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
Inputs = tuple[Tensor, Tensor, Tensor]


def timed(
    config: TransformerConfig, networks: dict[str, nn.Module], given: Inputs, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every way of running a forward."""
    x, at, context = given
    text = networks["ours"].read(context, block.DTYPE)
    ways: dict[str, Way] = {
        "bare": bare(config, token_grid(*x.shape[2:]).tokens),
        "ours, text read once": lambda: networks["ours"](x, at, text),
    }
    for name, network in networks.items():
        ways[name] = lambda network=network: block.call(network, x, at, context)
    return take_turns(ways, rounds)


def bare(config: TransformerConfig, tokens: int) -> Way:
    """The products and attentions of all blocks, and the two products that embed the text."""
    one = block.bare(config, tokens)
    sizes = (config.text_len, config.text_dim), (config.dim, config.text_dim), (config.dim,) * 2
    rows, first, second = (torch.randn(size).mul_(0.01).to(block.DTYPE) for size in sizes)
    linear = torch.nn.functional.linear

    def run() -> None:
        linear(linear(rows, first), second)
        for _ in range(config.num_layers):
            one()

    return run


def errors(networks: dict[str, nn.Module], given: Inputs) -> dict[str, dict[str, float]]:
    """How far each in bfloat16 is from ours in float32, whose weights are the same numbers."""
    x, at, context = given
    truth = networks["ours"](x.float(), at, context.float())
    found = {}
    for name, network in networks.items():
        got = block.call(network, x, at, context).float()
        off, cosine = got - truth, torch.nn.functional.cosine_similarity
        found[name] = {
            "largest": round(off.abs().max().item(), 5),
            "over_largest": round((off.abs().max() / truth.abs().max()).item(), 5),
            "norm": round((off.norm() / truth.norm()).item(), 5),
            "cosine": round(cosine(got.double().flatten(), truth.double().flatten(), 0).item(), 7),
        }
    return found


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--tokens", type=int, default=4680)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--error", action="store_true")
    parser.add_argument("--text", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = replace(SIZES, num_layers=given.layers)
    inputs = block.inputs(config, (1, 2 * (given.tokens // 30), 60), given.text)
    line: dict[str, object] = {
        "case": "forward_error" if given.error else "forward",
        "tokens": token_grid(*inputs[0].shape[2:]).tokens, "dtype": "bfloat16",
        "text": given.text, "layers": given.layers, "threads": 1,
    }  # fmt: skip
    with torch.inference_mode():
        networks = block.networks(given.comfyui, config, block.weights(config, block.DTYPE))
        if not given.error:
            seconds = timed(config, networks, inputs, given.rounds)
            line |= {
                "seconds_per_layer": {
                    name: round(median(found) / given.layers, 4) for name, found in seconds.items()
                },
                "over_bare": over(seconds, "bare"),
                "over_diffusers": over(seconds, "diffusers"),
                "rounds": given.rounds,
            }
        line["error"] = errors(networks, inputs)
    report({**line, **versions(given.comfyui), **hardware()}, given.out)


if __name__ == "__main__":
    main()
