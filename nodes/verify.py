"""Verify: what differs between two runs, in words."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..wan.manifest import Manifest, verdict
from .checks import CheckedNode, unless_linked
from .host import compat, files
from .host.manifest import recall
from .host.records import find_saved, saved_run

CATEGORY = "WanExperts"
ALONE = "nothing to compare with; connect samples, or name other_file"
NOTHING = False
"""Stands for samples that are not connected, where connected ones are None (see ``unless_linked``)."""


class WanExpertsVerify(CheckedNode):
    """The run at hand against the one in a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsVerify",
            display_name="Verify Wan Run",
            category=CATEGORY,
            description="Compares the run that made some latents, or a second file, with the run that is "
            "written in a file, and names what differs: weights, LoRAs, noise levels, seed, versions ... "
            "and whether it can change the picture.",
            search_aliases=["wan", "reproduce", "compare", "manifest", "metadata", "万相"],
            inputs=[
                io.String.Input(
                    "file", default="",
                    tooltip="mp4 or PNG of Decode Wan Latents to Video, or latents of python -m wan: a name below "
                    "the output (or input) folder, such as video/WanExperts_00001_.mp4.",
                ),
                io.Latent.Input(
                    "samples", optional=True, tooltip="Latents of the run at hand, from a sampler."
                ),
                io.String.Input(
                    "other_file", default="", optional=True,
                    tooltip="A second file, to compare two files; only without samples.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="differences",
                    tooltip="First whether the latents are equal, then a line for each difference.",
                )
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def check_inputs(cls, file: str | None = None, other_file: str | None = "", **_: Any) -> None:
        """The files are there and hold a record."""
        unless_linked(saved_run, file)
        if other_file:
            saved_run(other_file)

    @classmethod
    def fingerprint_inputs(
        cls, file: str | None = None, other_file: str | None = None, **_: Any
    ) -> str:
        """Compare again when a file was replaced."""
        return "|".join(files.stamp(find_saved(name)) for name in (file, other_file) if name)

    @classmethod
    def execute(
        cls, file: str, samples: dict[str, Any] | None = None, other_file: str = ""
    ) -> io.NodeOutput:
        """Compare; nothing is loaded."""
        text = verdict(_at_hand(samples, other_file), saved_run(file))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _at_hand(samples: dict[str, Any] | None, other_file: str) -> Manifest:
    if samples is None:
        if other_file.strip():
            return saved_run(other_file)
        raise ValueError(ALONE)
    found = recall(samples)
    if found is None:
        raise ValueError(
            "the samples do not say which run made them; connect those of Sample Wan Experts, or of "
            "SamplerCustomAdvanced with a guider of this pack, run since ComfyUI started"
        )
    return found
