"""Full latents of whole runs in float32: against the official code, frozen, and diffusers, beside us.

``goldens/official_runs.safetensors`` names the commit that was run. Its header also says how many
steps the official code gave to the high-noise expert.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from wanexperts.tests.helpers import relative
from wanexperts.wan.experts import count_high
from wanexperts.wan.schedule import Schedule

from .runs import OFFICIAL, OTHERS, SHAPE, Run, context, our_latents, theirs

GOLDENS = Path(__file__).parent / "goldens" / "official_runs.safetensors"
SCHEDULERS = {
    "unipc": (
        diffusers.UniPCMultistepScheduler,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "dpm++": (
        diffusers.DPMSolverMultistepScheduler,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
}


@pytest.mark.parametrize("run", OFFICIAL, ids=str)
def test_latents_equal_the_official_pipeline(run, record_property):
    with safe_open(GOLDENS, "pt") as file:
        expected = file.get_tensor(str(run))[None]
        high = json.loads(file.metadata()["high_steps"])[str(run)]
    assert count_high(run.grid, run.boundary) == high
    difference = relative(our_latents("nano", run), expected)
    record_property(f"latents_{run.solver}_vs_official_code", difference)
    assert difference < 1e-4  # measured 7.2e-7


def scheduler_of(run: Run) -> diffusers.SchedulerMixin:
    """The scheduler of diffusers for the run's solver, on the run's sigmas and timesteps."""
    kind, options = SCHEDULERS[run.solver]
    grid: Schedule = run.grid

    class OnOurGrid(kind):
        def set_timesteps(self, steps: int, device: str | None = None, **_: object) -> None:
            super().set_timesteps(steps, device=device)
            self.sigmas = grid.sigmas.clone()
            self.timesteps = grid.timesteps.float()

    return OnOurGrid(**options)


@torch.no_grad()
def their_latents(family: str, run: Run) -> Tensor:
    """``WanPipeline`` with both experts and no text encoder or VAE."""
    experts = [theirs(family, role) for role in ("high", "low")]
    pipeline = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=scheduler_of(run),
        transformer=experts[0],
        transformer_2=experts[1],
        boundary_ratio=run.boundary,
    )
    pipeline.set_progress_bar_config(disable=True)
    dim = experts[0].config.text_dim
    _, frames, height, width = SHAPE
    return pipeline(
        prompt_embeds=context(dim, "positive"),
        negative_prompt_embeds=context(dim, "negative"),
        num_inference_steps=run.steps,
        guidance_scale=run.scales[0],
        guidance_scale_2=run.scales[1],
        latents=run.noise,
        num_frames=4 * (frames - 1) + 1,
        height=8 * height,
        width=8 * width,
        output_type="latent",
    ).frames


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", ["nano", "tiny"])
@pytest.mark.parametrize("run", [*OFFICIAL, *OTHERS], ids=str)
def test_latents_equal_diffusers_pipeline(family, run, record_property):
    difference = relative(our_latents(family, run), their_latents(family, run))
    record_property(f"latents_{family}_{run.solver}_vs_diffusers", difference)
    assert difference < 1e-4
