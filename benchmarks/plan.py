"""Forecasts against runs: seconds from one timed block, memory from the meta device, calls from the plan.

    python benchmarks/plan.py [--cases NAME ...] [--out results.jsonl]

Each case is a whole guided run of random weights on one CPU thread in a process of its own: plan,
forecast, then the run. One JSON line each:

- ``seconds`` and ``foretold_seconds``: of the run, by the clock of its thread, so that other work on
  the machine hardly counts; medians of ``rounds``, in which forecast and run take turns;
- ``working_mb`` and ``foretold_working_mb``: peak of memory that no file backs, above the weights, with
  an allocator that gives everything freed straight back;
- ``calls`` and ``foretold_calls``: of the network, by stage.

A forecast holds if seconds are within 15 % and memory within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.load_pair import MB, Peak  # noqa: E402
from wan.config import T2V_A14B, TransformerConfig  # noqa: E402
from wan.cost import Networks, Weights, make_forecast, time_block  # noqa: E402
from wan.experts import Stage, route  # noqa: E402
from wan.guidance import Guidance, cfg, needs_uncond  # noqa: E402
from wan.plan import RunPlan, StageSpec  # noqa: E402
from wan.sampling import sample  # noqa: E402
from wan.schedule import make_schedule  # noqa: E402
from wan.shapes import LatentShape, latent_shape  # noqa: E402
from wan.solvers import get_solver  # noqa: E402
from wan.transformer import WanTransformer  # noqa: E402

SMALL = TransformerConfig(dim=640, ffn_dim=1728, num_heads=5, num_layers=6)
MIDDLE = TransformerConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=3)
"""The width of Wan2.1 1.3B."""
WIDE = replace(T2V_A14B.transformer, num_layers=2)
"""The width of T2V-A14B."""

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
CASES: dict[str, tuple[TransformerConfig, tuple[int, int, int], torch.dtype, str, str]] = {
    "small-17f": (SMALL, (17, 256, 256), FLOAT32, "unipc", "4"),
    "small-33f-bf16": (SMALL, (33, 208, 256), BFLOAT16, "unipc", "4"),
    "small-heun": (SMALL, (9, 256, 256), FLOAT32, "heun", "1"),
    "small-long": (SMALL, (81, 128, 224), FLOAT32, "euler", "1"),
    "middle-17f": (MIDDLE, (17, 192, 256), FLOAT32, "unipc", "4"),
    "middle-17f-bf16": (MIDDLE, (17, 192, 256), BFLOAT16, "dpm++", "1"),
    "wide-5f": (WIDE, (5, 192, 256), FLOAT32, "euler", "1"),
    "wide-9f-bf16": (WIDE, (9, 192, 256), BFLOAT16, "unipc", "4"),
}
"""Name -> sizes, (frames, height, width), dtype, solver, guidance of both experts."""
STEPS, SHIFT = 4, 5.0
ENOUGH = 25.0
"""Seconds of runs after which a case is not repeated any more."""


def plan_of(scale: str) -> RunPlan:
    """Two experts of one guidance over the official grid."""
    guidance = Guidance.constant(float(scale))
    stages = tuple(
        StageSpec(name=name, boundary=boundary, guidance=guidance)
        for name, boundary in (("high", 0.875), ("low", 0.0))
    )
    schedule = make_schedule("unipc", steps=STEPS, shift=SHIFT)
    return RunPlan(schedule=schedule, shift=SHIFT, stages=stages)


def run(
    model: WanTransformer, plan: RunPlan, shape: LatentShape, dtype: torch.dtype, solver: str
) -> Counter[str]:
    """One run of ``plan``, whose stages share one network; returns its calls by stage."""
    calls: Counter[str] = Counter()
    contexts = torch.zeros(2, 1, 512, model.config.text_dim)
    generator = torch.Generator().manual_seed(0)

    def stage(spec: StageSpec) -> Stage:
        def velocity(x: Tensor, sigma: float) -> Tensor:
            seen, at = x.to(dtype), torch.full((1,), plan.schedule.timestep(sigma))
            calls[spec.name] += 1
            cond: Tensor = model(seen, at, contexts[0])
            scale = spec.guidance.at(sigma)
            if not needs_uncond(scale):
                return cond
            calls[spec.name] += 1
            return cfg(cond, model(seen, at, contexts[1]), scale)

        return Stage(name=spec.name, boundary=spec.boundary, velocity=velocity)

    noise = torch.randn(1, *shape, generator=generator)
    velocity = route([stage(spec) for spec in plan.stages], plan.schedule)
    sample(velocity, noise, plan.schedule, get_solver(solver))
    return calls


def measure(name: str) -> dict[str, object]:
    """Forecast and run of one case."""
    config, size, dtype, solver, scale = CASES[name]
    torch.set_num_threads(1)
    plan, shape = plan_of(scale), latent_shape(*size, channels=config.in_dim)
    cpu = torch.device("cpu")
    told = [time_block(config, shape, dtype, cpu, clock=time.thread_time)]
    model = WanTransformer(config, dtype=dtype).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.uniform_(-0.02, 0.02)
    held = sum(weight.nbytes for weight in model.parameters())
    networks = Networks(
        transformer=config,
        dtype=dtype,
        device=cpu.type,
        experts=(Weights(nbytes=held, dtype=dtype),),
    )
    start = time.thread_time()
    with Peak() as peak:
        calls = run(model, plan, shape, dtype, solver)
    taken = [time.thread_time() - start]
    while sum(taken) < ENOUGH:
        told.append(time_block(config, shape, dtype, cpu, clock=time.thread_time))
        start = time.thread_time()
        run(model, plan, shape, dtype, solver)
        taken.append(time.thread_time() - start)
    forecasts = [
        make_forecast(plan, networks, shape, solver=solver, measured=measured) for measured in told
    ]
    seconds, foretold = median(taken), median(forecast.seconds or 0 for forecast in forecasts)
    forecast, working = forecasts[0], forecasts[0].phases[0].working
    return {
        "case": name,
        "dim": config.dim,
        "layers": config.num_layers,
        "latents": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "solver": solver,
        "seconds": round(seconds, 3),
        "foretold_seconds": round(foretold, 3),
        "seconds_ratio": round(foretold / seconds, 3),
        "rounds": len(taken),
        "working_mb": round(peak.bytes / MB, 1),
        "foretold_working_mb": round(working / MB, 1),
        "working_ratio": round(working / peak.bytes, 3),
        "calls": dict(calls),
        "foretold_calls": {stage.name: stage.forwards for stage in forecast.stages},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Each case in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child)))
        return
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    for name in given.cases:
        command = [sys.executable, __file__, "--child", name]
        line = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout
        print(line, end="", flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(line)


if __name__ == "__main__":
    main()
