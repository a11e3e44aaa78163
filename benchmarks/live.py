"""What a forward of one block holds and touches: ours, diffusers' and ComfyUI's, counted, not timed.

    python benchmarks/live.py [--comfyui FOLDER] [--grid 21 60 104] [--text 40] [--out results.jsonl]

Blocks of the published widths run on tensors without memory, in bfloat16. ``hidden_states`` is the
peak of live results of a whole forward with one block, weights left out, over tokens x 5120 x 2
bytes; ``bytes`` what a block reads and writes beside matrix products and attention, per token and
channel, with RMS norm as the one kernel it is on a GPU, and ``bytes_cpu`` as PyTorch does it on a
CPU. ``drift`` is the distance of a small network of 40 blocks from its float32 result, as 2-norms.
One JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import block  # noqa: E402
from benchmarks.peak import hardware  # noqa: E402
from benchmarks.traffic import FusedNorm, Traffic  # noqa: E402
from wan import ops  # noqa: E402
from wan.config import TransformerConfig  # noqa: E402
from wan.cost.live import META, LiveBytes  # noqa: E402
from wan.shapes import token_grid  # noqa: E402

DRIFTING = TransformerConfig(dim=256, ffn_dim=704, num_heads=2, num_layers=40, text_dim=64)
Call = Callable[[Tensor, Tensor, Tensor], object]


def flash(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    """The memory of a kernel without a table of pairs; ``(B, N, L, D)`` each, tokens outermost."""
    batch, heads, tokens, dim = query.shape
    _scale = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    return query.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def networks(
    folder: Path | None, config: TransformerConfig, state: dict[str, Tensor]
) -> dict[str, nn.Module]:
    """The three implementations over the same weights."""
    found: dict[str, nn.Module] = {
        "ours": block.our_model(config, state),
        "diffusers": block.diffusers_model(config, state),
    }
    if folder is not None:
        found["comfyui"] = block.comfy_model(folder, config, state)
    return found


def call(network: nn.Module, x: Tensor, at: Tensor, context: Tensor) -> Tensor:
    """A forward of any of them."""
    out = network(x, at, context)
    return out if isinstance(out, Tensor) else out.sample


def held(network: nn.Module, grid: tuple[int, int, int]) -> float:
    """Peak of live results, in hidden states."""
    given = _inputs(grid)
    with torch.no_grad(), LiveBytes(given) as live:
        call(network, *given)
    return live.peak / (token_grid(*grid).tokens * block.CONFIG.dim * block.DTYPE.itemsize)


def touched(name: str, network: nn.Module, grid: tuple[int, int, int], *, fused: bool) -> float:
    """Bytes per token and channel of the block alone: those of two blocks less those of one."""
    totals = []
    single = network.blocks
    for count in (1, 2):
        network.blocks = nn.ModuleList([single[0]] * count)
        traffic = Traffic()
        with torch.no_grad(), traffic:
            if fused:
                with FusedNorm(traffic):
                    call(network, *_inputs(grid))
            else:
                call(network, *_inputs(grid))
        totals.append(traffic.bytes)
    network.blocks = single
    return (totals[1] - totals[0]) / (token_grid(*grid).tokens * block.CONFIG.dim)


def _inputs(grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    config = block.CONFIG
    x = torch.empty(1, config.in_dim, *grid, device=META, dtype=block.DTYPE)
    context = torch.empty(1, config.text_len, config.text_dim, device=META, dtype=block.DTYPE)
    return x, torch.empty(1, device=META), context


def drift(folder: Path | None) -> dict[str, float]:
    """Distance of each in bfloat16 from our float32 result on the same weights."""
    state = block.weights(DRIFTING, block.DTYPE)
    truth_model = block.our_model(DRIFTING, {name: value.float() for name, value in state.items()})
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 16, 3, 16, 16, generator=generator).to(block.DTYPE)
    context = torch.randn(1, 512, DRIFTING.text_dim, generator=generator).to(block.DTYPE)
    at = torch.tensor([613.0])
    found = {}
    with torch.no_grad():
        truth = truth_model(x.float(), at, context.float())
        models = networks(folder, DRIFTING, state)
        for name, network in models.items():
            found[name] = _distance(call(network, x, at, context), truth)
        for dtype in (torch.float16, torch.float32):
            models["ours"].hidden = dtype
            name = f"ours, hidden state in {str(dtype).removeprefix('torch.')}"
            found[name] = _distance(call(models["ours"], x, at, context), truth)
    return found


def _distance(got: Tensor, truth: Tensor) -> float:
    return round(((got.float() - truth).norm() / truth.norm()).item(), 6)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--grid", type=int, nargs=3, default=(21, 60, 104))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    grid = tuple(given.grid)
    drifts = drift(given.comfyui)
    with META:
        state = {
            name: torch.empty(value.shape, dtype=block.DTYPE)
            for name, value in block.WanTransformer(block.CONFIG).state_dict().items()
        }
    models = {n: m.to(META) for n, m in networks(given.comfyui, block.CONFIG, state).items()}
    torch.nn.functional.scaled_dot_product_attention = flash  # a GPU's kernel, for all alike
    line: dict[str, object] = {
        "case": "live",
        "tokens": token_grid(*grid).tokens,
        "dtype": "bfloat16",
    }
    line["hidden_states"] = {name: round(held(m, grid), 2) for name, m in models.items()}
    line["bytes_cpu"] = {
        name: round(touched(name, m, grid, fused=False), 1) for name, m in models.items()
    }
    ops.FUSED_RMS_NORM = ("meta",)
    line["bytes"] = {
        name: round(touched(name, m, grid, fused=True), 1) for name, m in models.items()
    }
    line |= {
        "drift": drifts,
        "torch": torch.__version__,
        **block.versions(given.comfyui),
        **hardware(),
    }
    print(json.dumps(line))
    if given.out is not None:
        with given.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
