"""The sections of the GPU script; each returns what its line says."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks import block
from benchmarks.gpu_ring import Ring
from benchmarks.gpu_run import Grid, Run, forward, gb, repeat
from benchmarks.lines import Way
from wan.checkpoint import open_checkpoint
from wan.checkpoint.ring import Ring as FileRing
from wan.checkpoint.stream import block_loads, load_streamed
from wan.cost.flops import forward_flops
from wan.shapes import token_grid
from wan.transformer import DESIGNS
from wan.vae import DecodePlan, WanVAE

FLOOR = 790e12
"""Operations a second of an H100 in bfloat16 that the floor takes, attention and products alike."""
CONTEXT_GB = 0.5
"""Of a CUDA context, which PyTorch does not count."""
FILE_BLOCKS = 4
PLANS = {"whole frames": DecodePlan(), "4 strips": DecodePlan(strips=4)}


def memory(run: Run) -> dict[str, object]:
    """Peaks of our network in each design; they hold for any number of blocks, so two are run."""
    model = run.ours()
    resident = run.allocated()
    told: dict[str, object] = {}
    for name, (grid, limit) in run.scale.held.items():
        given, found = run.inputs(grid), {}
        for design, kept in DESIGNS.items():
            model.memory = kept
            way = forward(model, *given)
            if design in run.working({design: way}):
                found[design] = held(run, way, grid)
            run.forget()
        total = found.get("exact", {}).get("with_one_fp8_layer_gb")
        met = None if total is None else total <= limit
        told[name] = {**found, "line_gb": limit, "met": met}
    return {"weights_gb": gb(resident), "sizes": told}


def held(run: Run, way: Way, grid: Grid) -> dict[str, float | None]:
    """Seconds of a forward of two blocks, and what it allocates beside weights and inputs."""
    config, before = run.scale.config, run.allocated()
    seconds, peak = run.seconds(way), run.peak(way)
    if peak is None:
        return {"seconds": round(seconds, 4), "with_one_fp8_layer_gb": None}
    hidden = token_grid(*grid).tokens * config.dim * block.DTYPE.itemsize
    buffers = 2 * config.dim * max(config.dim, config.ffn_dim)
    return {
        "seconds": round(seconds, 4),
        "hidden_states": round((peak - before) / hidden, 2),
        "held_gb": gb(peak - before),
        "allocated_gb": gb(peak),
        "with_one_fp8_layer_gb": gb(peak - before + buffers + CONTEXT_GB * 1e9),
    }


def forward_seconds(run: Run) -> dict[str, object]:
    """Seconds of all networks in turns, over the floor and over ours; what each holds."""
    config, networks = run.scale.config, run.made()
    told: dict[str, object] = {}
    for index, (name, grid) in enumerate(run.scale.grids.items()):
        given = run.inputs(grid)
        for network in networks.values():
            repeat(network, 2)
        ways = run.working({n: forward(network, *given) for n, network in networks.items()})
        beside, hidden = {}, token_grid(*grid).tokens * config.dim * block.DTYPE.itemsize
        for way_name, way in ways.items():
            before = run.allocated()
            peak = run.peak(way)
            if peak is not None:
                beside[way_name] = [gb(peak - before), round((peak - before) / hidden, 2)]
        for network in networks.values():
            repeat(network, run.scale.uses)
        seconds = run.turns(ways, 0.35 if index else 0.15)
        whole = replace(config, num_layers=run.scale.uses)
        total = forward_flops(whole, token_grid(*grid).tokens)
        told[name] = {
            "seconds": seconds,
            "over_ours": {n: round(s / seconds["ours"], 3) for n, s in seconds.items()},
            "floor_seconds": round(total / FLOOR, 3),
            "over_floor": {n: round(s * FLOOR / total, 3) for n, s in seconds.items()},
            "held_gb_and_hidden_states": beside,
        }
        run.forget()
    return {"uses": run.scale.uses, "sizes": told}


def stream(run: Run) -> dict[str, object]:
    """Blocks from pinned memory, copied a block ahead of their use."""
    model = run.ours()
    ring = Ring(model, run.device, experts=1)
    told: dict[str, object] = {"block_gb": gb(ring.nbytes)}
    for name, grid in run.scale.streamed.items():
        x, at, context = run.inputs(grid)
        text = model.read(context, x.dtype)
        hidden, _, tokens = model.embed(x, at, text, token_grid(*grid))
        uses = run.scale.uses

        def way(copy: bool, compute: bool) -> Way:
            return lambda: ring.run(hidden, tokens, uses, copy=copy, compute=compute)  # noqa: B023

        ways = {"with": way(True, True), "without": way(False, True), "copies": way(True, False)}
        seconds = run.turns(run.working(ways), 0.2)
        both, alone, copies = (seconds[key] for key in ways)
        told[name] = {
            "tokens": token_grid(*grid).tokens,
            "seconds": seconds,
            "slower": round(both / alone - 1, 3),
            "overlap": round((alone + copies - both) / min(alone, copies), 3),
            "gb_a_second": round(uses * ring.nbytes / copies / 1e9, 1),
        }
    return told


def from_file(run: Run) -> dict[str, object]:
    """The library's own streaming out of a file that the system has just written, beside a resident one."""
    config = replace(run.scale.config, num_layers=FILE_BLOCKS)
    state = block.weights(config, block.DTYPE, run.device.type)
    told: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "expert.safetensors")
        save_file({name: value.cpu() for name, value in state.items()}, path)
        loads = block_loads(open_checkpoint(path, "transformer"), run.device)
        networks = {"resident": block.our_model(config, state)}
        with FileRing(max(load.nbytes for load in loads), run.device) as ring:
            networks["streamed"], _ = load_streamed(path, loads, ring, run.device, block.DTYPE)
            for name, grid in run.scale.streamed.items():
                given = run.inputs(grid)
                ways = {key: forward(model, *given) for key, model in networks.items()}
                seconds = run.turns(run.working(ways), 0.1)
                told[name] = {
                    "seconds": seconds,
                    "slower": round(seconds["streamed"] / seconds["resident"] - 1, 3),
                    "equal": torch.equal(ways["streamed"](), ways["resident"]()),  # type: ignore[arg-type]
                }
    return {"blocks": FILE_BLOCKS, "block_gb": gb(loads[0].nbytes), "sizes": told}


def swap(run: Run) -> dict[str, object]:
    """Two experts in pinned memory, the second from the middle on."""
    model = run.ours()
    ring = Ring(model, run.device, experts=2)
    name, grid = next(iter(run.scale.grids.items()))
    x, at, context = run.inputs(grid)
    hidden, _, tokens = model.embed(x, at, model.read(context, x.dtype), token_grid(*grid))
    uses = run.scale.uses
    ways: dict[str, Way] = {
        "one expert": lambda: ring.run(hidden, tokens, uses),
        "fetched ahead": lambda: ring.run(hidden, tokens, uses, swap=uses // 2),
        "fetched then": lambda: ring.run(hidden, tokens, uses, swap=uses // 2, ahead=False),
    }
    seconds = run.turns(run.working(ways), 0.3)
    base = seconds["one expert"]
    return {
        "size": name,
        "seconds": seconds,
        "stall_seconds": {n: round(s - base, 4) for n, s in seconds.items() if n != "one expert"},
        "block_seconds": round(base / uses, 4),
        "written_back_bytes": 0,
    }


def vae(run: Run) -> dict[str, object]:
    """The streaming decoder, frames thrown away as they come."""
    decoder = WanVAE(run.scale.vae, device=run.device, dtype=block.DTYPE).eval()
    for weight in decoder.parameters():
        weight.normal_(0, 0.02)
    latents = torch.randn(1, run.scale.vae.z_dim, *run.scale.latents, device=run.device)
    latents = latents.to(block.DTYPE)

    def decode(plan: DecodePlan, count: int) -> Callable[[], None]:
        def way() -> None:
            for _ in decoder.decode_stream(latents[:, :, :count], plan):
                pass

        return way

    told: dict[str, object] = {"latents": run.scale.latents}
    for name, plan in PLANS.items():
        if plan.strips > run.scale.latents[1]:
            continue
        run.working({name: decode(plan, 2)})
        before, seconds = run.allocated(), []
        whole = decode(plan, run.scale.latents[0])
        peak = run.peak(lambda: seconds.append(run.seconds(whole)))  # noqa: B023
        told[name] = {
            "seconds": round(seconds[0], 3),
            "peak_gb": None if peak is None else gb(peak - before),
        }
        run.forget()
    return told


def attention(run: Run) -> dict[str, object]:
    """Each backend at the tokens of the first size, against float32 on a few queries."""
    config = run.scale.config
    tokens = token_grid(*next(iter(run.scale.grids.values()))).tokens
    heads, dim = config.num_heads, config.dim // config.num_heads
    q, k, v = (
        torch.randn(1, heads, tokens, dim, device=run.device).to(block.DTYPE) for _ in range(3)
    )
    few = slice(0, 64)
    scores = q[:, :, few].float() @ k.float().mT / math.sqrt(dim)
    truth = scores.softmax(-1) @ v.float()
    flops = 4 * tokens**2 * heads * dim
    told: dict[str, object] = {}
    for name, backend in backends(q, k, v).items():
        if name not in run.working({name: backend}):
            continue
        seconds = run.turns({name: backend}, 0.05)[name]
        drift = (backend()[:, :, few].float() - truth).norm() / truth.norm()
        told[name] = {
            "seconds": seconds,
            "tflops": round(flops / seconds / 1e12, 1),
            "error": round(drift.item(), 5),
        }
    wide = torch.randn(config.ffn_dim, config.dim, device=run.device).to(block.DTYPE)
    x = torch.randn(tokens, config.dim, device=run.device).to(block.DTYPE)
    products = run.turns(run.working({"linear": lambda: linear(x, wide)}), 0.05)["linear"]
    return {
        "tokens": tokens,
        "backends": told,
        "linear_tflops": round(2 * x.numel() * config.ffn_dim / products / 1e12, 1),
    }


def backends(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """All that might be there, over ``(1, N, L, D)``."""

    def of(kind: SDPBackend) -> Callable[[], Tensor]:
        def way() -> Tensor:
            with sdpa_kernel(kind):
                return scaled_dot_product_attention(q, k, v)

        return way

    kinds = {
        "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }  # fmt: skip
    ways: dict[str, Callable[[], Tensor]] = {
        "default": lambda: scaled_dot_product_attention(q, k, v)
    }
    if q.is_cuda:
        ways |= {name: of(kind) for name, kind in kinds.items()}
    if find_spec("flash_attn") is not None:
        flash = import_module("flash_attn").flash_attn_func
        ways["flash_attn"] = lambda: flash(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    if find_spec("sageattention") is not None:
        sage = import_module("sageattention").sageattn
        ways["sageattention"] = lambda: sage(q, k, v)
    return ways
