"""Plan: what a run will do and take, before it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..wan.cost import forecast_lines
from ..wan.plan import describe
from .checks import RARE, CheckedNode
from .host import compat
from .host.forecast import attention_line, forecast_run
from .host.latent import fit_latent
from .host.picture import as_image, draw_plan
from .trajectory import CATEGORY


class WanExpertsPlan(CheckedNode):
    """The run of a GUIDER over SIGMAS, told before it is run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsPlan",
            display_name="Plan Wan Run",
            category=CATEGORY,
            description="What a run will do and take: which step runs on which expert at which noise "
            "level, calls of the network, time, memory, disk, and what looks odd. Loads nothing.",
            search_aliases=["wan", "forecast", "estimate", "eta", "vram", "万相"],
            is_output_node=True,
            inputs=[
                io.Guider.Input(
                    "guider", tooltip="From Wan Experts Guider or Wan Stages Guider."
                ),
                io.Sigmas.Input("sigmas", tooltip="Of the run, from Wan Sigmas or any scheduler."),
                io.Latent.Input("latent", tooltip="Of the run: its size and length decide."),
                io.Sampler.Input(
                    "sampler", optional=True,
                    tooltip="Of the run: heun calls the network twice a step. Without one, one call a step "
                    "is assumed.",
                ),
                io.Boolean.Input(
                    "time_a_block", default=False, optional=True, **RARE,
                    tooltip="Foretell seconds before the first run of a kind: times one block of random "
                    "weights on the device, which takes a second or two of a GPU.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="plan", tooltip="The plan as text: steps, seconds, GiB, odd things."
                ),
                io.Image.Output(display_name="plot", tooltip="The plan as a picture."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        guider: Any,
        sigmas: Any,
        latent: dict[str, Any],
        sampler: Any = None,
        time_a_block: bool = False,
    ) -> io.NodeOutput:
        """Compute and show."""
        samples = fit_latent(guider.model_patcher, latent)
        plan, forecast = forecast_run(guider, sampler, sigmas, samples, time_it=time_a_block)
        lines = [*forecast_lines(forecast), attention_line(guider.models)]
        text = "\n".join([describe(plan), *lines])
        return io.NodeOutput(text, as_image(draw_plan(plan)), ui=ui.PreviewText(text))
