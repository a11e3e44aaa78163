"""Initial noise as ComfyUI or as the official code draws it."""

from __future__ import annotations

from comfy_api.latest import io

from ..wan.noise import LAYOUTS
from .checks import CheckedNode, widget
from .host import compat
from .host.latent import LayoutNoise
from .trajectory import CATEGORY


class WanExpertsNoise(CheckedNode):
    """A seed and how it becomes noise, as NOISE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsNoise",
            display_name="Wan Noise",
            category=CATEGORY,
            description="Initial noise for SamplerCustomAdvanced: as RandomNoise draws it, or the "
            "numbers that the official code draws on a GPU from the same seed.",
            search_aliases=["wan", "random noise", "seed", "万相"],
            inputs=[
                io.Int.Input(
                    "noise_seed", default=0, **widget("noise_seed"), control_after_generate=True,
                    tooltip="Seed of the noise: the same seed gives the same noise on every machine.",
                ),
                io.Combo.Input(
                    "layout", options=list(LAYOUTS), default=LAYOUTS[0],
                    tooltip="comfy: as RandomNoise. official: as the official code on an H100; clip i of "
                    "a batch has the seed plus i.",
                ),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, noise_seed: int, layout: str) -> io.NodeOutput:
        """Nothing is drawn before the size is known."""
        return io.NodeOutput(LayoutNoise(noise_seed, layout))
