"""What the smaller memory designs cost: error of 8-bit keys and values, time to unpack them.

    python -m benchmarks.designs [--grid 3 24 40] [--keys 32760] [--out results.jsonl]

``block`` is the relative error of one block of the published widths over ``--grid`` latent cells: 2-norm
of the difference over that of what the block adds, in float32, and beside it what bfloat16 alone costs.
``attention`` is the time of one part's attention to ``--keys`` packed keys over that to plain ones,
8 heads, a part being a twentieth of the keys. One JSON line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import block  # noqa: E402
from benchmarks.lines import hardware, over, report, take_turns, versions  # noqa: E402
from wan.attention import sdpa  # noqa: E402
from wan.shapes import token_grid  # noqa: E402
from wan.transformer import DESIGNS, WanTransformer, chunk_tokens  # noqa: E402
from wan.transformer.keys_values import PackedKeysValues, shared  # noqa: E402

HEADS, HEAD_DIM = 8, 128


def errors(grid: tuple[int, int, int]) -> dict[str, float]:
    """Of one block: what 8-bit keys and values change in float32, and what bfloat16 changes."""
    state = block.weights(block.CONFIG, torch.float32)
    model = WanTransformer(block.CONFIG, device=torch.device("meta"))
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, block.CONFIG.in_dim, *grid, generator=generator)
    context = torch.randn(1, block.CONFIG.text_len, block.CONFIG.text_dim, generator=generator)

    def added(x: Tensor, design: str) -> Tensor:
        model.memory = DESIGNS[design]
        hidden, _, tokens = model.embed(x, torch.tensor([613.0]), context, token_grid(*grid))
        before = hidden.float()
        return model.blocks[0](hidden.clone(), tokens).float() - before

    with torch.no_grad():
        exact = added(x, "exact")
        found = {"int8": added(x, "int8"), "bfloat16": added(x.bfloat16(), "exact")}
    return {name: _distance(got, exact) for name, got in found.items()}


def attention_ratio(keys: int, rounds: int) -> float:
    """Time of attention to packed keys and values over that to plain ones, in bfloat16."""
    q, k, v = (
        torch.randn(1, tokens, HEADS, HEAD_DIM).bfloat16()
        for tokens in (chunk_tokens(keys), keys, keys)
    )
    packed = PackedKeysValues(keys, shared([k]))
    packed.keys.write(slice(None), k)
    packed.values.write(slice(None), v)
    with torch.no_grad():
        ways = {"plain": lambda: sdpa(q, k, v), "packed": lambda: packed.attend(q.clone(), sdpa)}
        return over(take_turns(ways, rounds), "plain")["packed"]


def _distance(got: Tensor, truth: Tensor) -> float:
    return round(((got - truth).norm() / truth.norm()).item(), 5)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--grid", type=int, nargs=3, default=(3, 24, 40))
    parser.add_argument("--keys", type=int, default=32760)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    line = {
        "case": "designs",
        "block": errors(tuple(given.grid)),
        "attention": attention_ratio(given.keys, given.rounds),
        "keys": given.keys,
        **versions(),
        **hardware(),
    }
    report(line, given.out)


if __name__ == "__main__":
    main()
