"""Compile both experts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .checks import CheckedNode
from .host import compat
from .host.compiled import compiled
from .loaders import CATEGORY


class WanExpertsCompile(CheckedNode):
    """Blocks of both experts through PyTorch's compiler, once for both."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsCompile",
            display_name="Compile Wan Experts",
            category=CATEGORY,
            description="Runs the blocks of both experts through torch.compile: once for both, for all "
            "sizes, LoRAs and ways of loading. The first step takes minutes; results differ in the last "
            "digits. Without a working compiler nothing changes and the log says why.",
            search_aliases=["wan", "torch compile", "inductor", "speed", "万相"],
            inputs=[
                io.Model.Input(
                    "model_high_noise", tooltip="High-noise expert from Load Wan Experts."
                ),
                io.Model.Input(
                    "model_low_noise", tooltip="Low-noise expert from Load Wan Experts."
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model_high_noise", tooltip="High-noise expert, compiled in its first step."
                ),
                io.Model.Output(
                    display_name="model_low_noise", tooltip="Low-noise expert, of the same compiled blocks."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model_high_noise: Any, model_low_noise: Any) -> io.NodeOutput:
        """Clone both MODELs; nothing is compiled before the first step."""
        models = {"model_high_noise": model_high_noise, "model_low_noise": model_low_noise}
        return io.NodeOutput(*(compiled(name, model) for name, model in models.items()))
