"""Whole runs of two experts, by settings that name everything: ours, and diffusers' on the same sigmas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from wanexperts.tests.helpers import random_state
from wanexperts.wan.checkpoint import load_transformer
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.experts import Stage, route
from wanexperts.wan.guidance import cfg
from wanexperts.wan.noise import draw_noise
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import Schedule, Velocity, make_schedule
from wanexperts.wan.solvers import get_solver
from wanexperts.wan.transformer import WanTransformer

from .networks import diffusers_expert

NANO = TransformerConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2, text_dim=32)
SHAPE = (16, 2, 4, 6)
"""Latents (C, T, h, w) of every run; a clip of 5 frames, 48 x 32."""

TINY_FILES = Path(__file__).resolve().parents[2] / "tiny" / "weights" / "diffusion_models"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: everything that its latents hang on."""

    solver: str
    schedule: str
    steps: int
    shift: float
    scales: tuple[float, float]
    boundary: float = 0.875
    seed: int = 0

    def __str__(self) -> str:
        high, low = self.scales
        return (
            f"{self.solver}-{self.schedule}-{self.steps}-{self.shift:g}-{high:g}-{low:g}"
            f"-{self.boundary:g}"
        )

    @property
    def grid(self) -> Schedule:
        """Its noise levels and timesteps."""
        return make_schedule(self.schedule, steps=self.steps, shift=self.shift)

    @property
    def noise(self) -> Tensor:
        """Its start (1, C, T, h, w)."""
        return draw_noise((1, *SHAPE), self.seed)


def _run(
    solver: str, schedule: str, steps: int, shift: float, high: float, low: float,
    boundary: float = 0.875,
) -> Run:  # fmt: skip
    return Run(
        solver=solver, schedule=schedule, steps=steps, shift=shift,
        scales=(high, low), boundary=boundary,
    )  # fmt: skip


OFFICIAL = [
    _run(solver, solver, steps, shift, high, low, boundary)
    for solver in ("unipc", "dpm++")
    for steps, shift, high, low, boundary in [
        (4, 5.0, 1.0, 1.0, 0.875),
        (8, 3.0, 6.0, 2.0, 0.9),
        (20, 8.0, 3.5, 3.5, 0.9),
        (40, 12.0, 4.0, 3.0, 0.875),
        (50, 5.0, 5.0, 1.0, 0.875),
    ]
]
"""Runs that the official code knows; their latents are frozen."""

OTHERS = [
    _run("euler", "shifted", 4, 5.0, 1.0, 1.0),
    _run("euler", "lightning", 4, 5.0, 1.0, 1.0),
    _run("euler", "shifted", 20, 3.0, 6.0, 2.0),
    _run("euler", "unipc", 50, 12.0, 4.0, 3.0),
]


@cache
def nano_weights(role: str) -> dict[str, Tensor]:
    """Random weights of one expert, official names, the same on every machine."""
    with torch.random.fork_rng(devices=[]):
        return random_state(WanTransformer(NANO), {"high": 11, "low": 12}[role])


def tiny_file(role: str) -> Path:
    """One expert of the bundled miniature family."""
    (path,) = TINY_FILES.glob(f"*{role}*.safetensors")
    return path


@cache
def ours(family: str, role: str) -> WanTransformer:
    """Our expert in float32."""
    if family == "tiny":
        return load_transformer(tiny_file(role), dtype=torch.float32).eval()
    model = WanTransformer(NANO).eval()
    model.load_state_dict(nano_weights(role))
    return model


@cache
def theirs(family: str, role: str) -> torch.nn.Module:
    """Diffusers' expert with the same weights in float32."""
    model = ours(family, role)
    if family == "nano":
        return diffusers_expert(NANO, nano_weights(role))
    state = {key: value.float() for key, value in load_file(tiny_file(role)).items()}
    return diffusers_expert(model.config, state)


def context(text_dim: int, name: str) -> Tensor:
    """Text (1, 512, text_dim) with zero rows after its end; its rows are random."""
    generator = torch.Generator().manual_seed({"positive": 21, "negative": 22}[name])
    text = torch.zeros(1, 512, text_dim)
    count = {"positive": 9, "negative": 30}[name]
    text[:, :count] = 0.3 * torch.randn(1, count, text_dim, generator=generator)
    return text


@torch.no_grad()
def our_latents(family: str, run: Run) -> Tensor:
    """Our run: both prompts at every step, as the official code has it."""
    schedule = run.grid
    dim = ours(family, "high").config.text_dim
    texts = [context(dim, name) for name in ("positive", "negative")]

    def guided(role: str, scale: float) -> Velocity:
        def velocity(x: Tensor, sigma: float) -> Tensor:
            told = torch.tensor([schedule.timestep(sigma)])
            cond, uncond = (ours(family, role)(x, told, text) for text in texts)
            return cfg(cond, uncond, scale)

        return velocity

    boundaries = {"high": run.boundary, "low": 0.0}
    stages = [
        Stage(name=role, boundary=boundaries[role], velocity=guided(role, scale))
        for role, scale in zip(boundaries, run.scales, strict=True)
    ]
    return sample(route(stages, schedule), run.noise, schedule, get_solver(run.solver))
