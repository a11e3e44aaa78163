"""What a forward of one block holds and touches: ours, diffusers' and ComfyUI's, counted, not timed.

    python benchmarks/live.py [--comfyui FOLDER] [--grid 21 60 104] [--text 40] [--out results.jsonl]

Blocks of the published widths run on tensors without memory, in bfloat16. ``hidden_states`` is the
peak of live results of a whole forward with one block, weights left out, over tokens x 5120 x 2
bytes; ``bytes`` what a block reads and writes beside matrix products and attention, per token and
channel, with RMS norm as the one kernel it is on a GPU, and ``bytes_cpu`` what it does on this CPU,
where it is run on a few tokens. ``drift`` is the distance of a small network of 40 blocks from its float32 result, as 2-norms.
One JSON line.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import block  # noqa: E402
from benchmarks.lines import hardware, report, versions  # noqa: E402
from benchmarks.traffic import FusedNorm, Traffic  # noqa: E402
from wan import ops  # noqa: E402
from wan.config import TransformerConfig  # noqa: E402
from wan.cost.live import META, LiveBytes  # noqa: E402
from wan.shapes import token_grid  # noqa: E402

DRIFTING = TransformerConfig(dim=256, ffn_dim=704, num_heads=2, num_layers=40, text_dim=64)
Grid = tuple[int, int, int]
CPU, FEW = torch.device("cpu"), ((1, 26, 60), (1, 52, 60))
"""Latents on which a block is run for its bytes on a CPU, where it takes seconds."""


def flash(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    """The memory of a kernel without a table of pairs; ``(B, N, L, D)`` each, tokens outermost."""
    batch, heads, tokens, dim = query.shape
    _scale = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    return query.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def held(network: nn.Module, grid: Grid) -> float:
    """Peak of live results, in hidden states."""
    given = _inputs(grid)
    with torch.no_grad(), LiveBytes(given) as live:
        block.call(network, *given)
    return live.peak / (token_grid(*grid).tokens * block.CONFIG.dim * block.DTYPE.itemsize)


def touched(network: nn.Module, grid: Grid, device: torch.device = META) -> float:
    """Bytes per channel of the block alone: those of two blocks less those of one."""
    totals = []
    single = network.blocks
    for count in (1, 2):
        network.blocks = nn.ModuleList([single[0]] * count)
        traffic = Traffic()
        norm = FusedNorm(traffic) if device == META else nullcontext()
        with torch.no_grad(), traffic, norm:
            block.call(network, *_inputs(grid, device))
        totals.append(traffic.bytes)
    network.blocks = single
    return (totals[1] - totals[0]) / block.CONFIG.dim


def per_token(network: nn.Module, fewer: Grid, more: Grid) -> float:
    """What a token adds to :func:`touched` on a CPU; what belongs to the text drops out."""
    added = touched(network, more, CPU) - touched(network, fewer, CPU)
    return round(added / (token_grid(*more).tokens - token_grid(*fewer).tokens), 1)


def _inputs(grid: Grid, device: torch.device = META) -> tuple[Tensor, Tensor, Tensor]:
    config = block.CONFIG
    x = torch.empty(1, config.in_dim, *grid, device=device, dtype=block.DTYPE)
    context = torch.empty(1, config.text_len, config.text_dim, device=device, dtype=block.DTYPE)
    return x, torch.zeros(1, device=device), context


def _models(folder: Path | None, device: torch.device) -> dict[str, nn.Module]:
    """The three with one block of the published sizes, their weights without values."""
    with device:
        state = {
            name: torch.empty(value.shape, dtype=block.DTYPE)
            for name, value in block.WanTransformer(block.CONFIG, device=META).state_dict().items()
        }
    made = block.networks(folder, block.CONFIG, state)
    return {name: network.to(device) for name, network in made.items()}


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
        models = block.networks(folder, DRIFTING, state)
        for name, network in models.items():
            found[name] = _distance(block.call(network, x, at, context), truth)
        for dtype in (torch.float16, torch.float32):
            models["ours"].hidden = dtype
            name = f"ours, hidden state in {str(dtype).removeprefix('torch.')}"
            found[name] = _distance(block.call(models["ours"], x, at, context), truth)
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
    on_cpu = _models(given.comfyui, CPU)
    bytes_cpu = {name: per_token(model, *FEW) for name, model in on_cpu.items()}
    models = _models(given.comfyui, META)
    torch.nn.functional.scaled_dot_product_attention = flash  # a GPU's kernel, for all alike
    line: dict[str, object] = {
        "case": "live",
        "tokens": token_grid(*grid).tokens,
        "dtype": "bfloat16",
    }
    line["hidden_states"] = {name: round(held(m, grid), 2) for name, m in models.items()}
    ops.FUSED_RMS_NORM = ("meta",)
    line["bytes_cpu"] = bytes_cpu
    tokens = token_grid(*grid).tokens
    line["bytes"] = {name: round(touched(m, grid) / tokens, 1) for name, m in models.items()}
    report({**line, "drift": drifts, **versions(given.comfyui), **hardware()}, given.out)


if __name__ == "__main__":
    main()
