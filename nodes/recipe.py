"""Import: settings of other programs as the same run here."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan.recipes import Recipe, read_recipe, report
from .checks import CheckedNode, unless_linked
from .host import compat
from .host.recipe import host_sigmas, sampler_of
from .host.sampling import as_sigmas
from .trajectory import CATEGORY

_NO_BOUNDARY = 1.0
"""Stands for a boundary above all noise levels, where no widget goes."""


def _read(text: str) -> Recipe:
    recipe = read_recipe(text, host_sigmas)
    sampler_of(recipe)
    return recipe


class WanExpertsRecipe(CheckedNode):
    """A pasted recipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsRecipe",
            display_name="Import Wan Recipe",
            category=CATEGORY,
            description="Reads settings of another program and gives the same noise levels, switch and "
            "guidance, each number to the expert it is for: the official command line, a diffusers "
            "call, a LightX2V configuration, or a graph with two chained KSampler (Advanced). Nothing "
            "that is pasted is run. The notes say what cannot match.",
            search_aliases=["wan", "diffusers", "lightx2v", "generate.py", "ksampler advanced", "万相"],
            inputs=[
                io.String.Input(
                    "recipe", default="", multiline=True,
                    tooltip="Paste: python generate.py --task t2v-A14B ..., or pipe(guidance_scale=...), "
                    "or a LightX2V JSON, or a ComfyUI workflow.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="Noise levels, for SamplerCustomAdvanced."),
                io.Sampler.Output(display_name="sampler", tooltip="Solver, for SamplerCustomAdvanced."),
                io.Int.Output(display_name="steps", tooltip="Steps of both experts together."),
                io.Int.Output(
                    display_name="switch_step", tooltip="Steps of the high-noise expert: switch = step."
                ),
                io.Float.Output(
                    display_name="cfg_high_noise", tooltip="Guidance of the high-noise expert."
                ),
                io.Float.Output(
                    display_name="cfg_low_noise", tooltip="Guidance of the low-noise expert."
                ),
                io.Float.Output(display_name="sigma_shift", tooltip="The shift behind the sigmas."),
                io.Float.Output(
                    display_name="boundary", tooltip="Lowest noise level of the high-noise expert, 0 to 1."
                ),
                io.Int.Output(display_name="seed", tooltip="Seed of the noise; 0 if it is not told."),
                io.String.Output(
                    display_name="notes", tooltip="What was read, corrected, and what cannot match."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def check_inputs(cls, recipe: str | None = None, **_: Any) -> None:
        """Say before the run what cannot be read."""
        unless_linked(_read, recipe)

    @classmethod
    def execute(cls, recipe: str) -> io.NodeOutput:
        """Read; nothing is loaded, nothing of the text is run."""
        read = _read(recipe)
        numbers: tuple[Any, ...] = (
            read.steps,
            read.switch_step,
            read.guidance_high,
            read.guidance_low,
            read.shift,
            min(read.boundary, _NO_BOUNDARY),
            read.seed or 0,
        )
        sigmas = as_sigmas(read.schedule, read.shift)
        return io.NodeOutput(sigmas, sampler_of(read), *numbers, report(read))
