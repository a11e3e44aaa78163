"""Load files: experts, text encoder, VAE. Everything headers can tell is checked before a run."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..wan.checkpoint import detect_transformer_config, family_defaults, format_card
from .checks import ALLOW_MISMATCH, RARE, CheckedNode, unless_linked
from .host import compat, files, parts

log = logging.getLogger(__name__)

CATEGORY = "WanExperts/loaders"


def _report(pair: parts.Pair) -> str:
    config = detect_transformer_config(pair.high)
    sampling = family_defaults(pair.high)
    lines = [
        *(f"WARNING: {oddity}" for oddity in pair.oddities),
        f"{config.num_layers} layers of width {config.dim}, text width {config.text_dim}",
        f"defaults: {sampling.steps} steps, shift {sampling.shift:g}, boundary "
        f"{sampling.boundary:g}, cfg {sampling.guidance_high:g} / {sampling.guidance_low:g}",
        format_card(pair.high),
        format_card(pair.low),
    ]
    return "\n".join(lines)


class WanExpertsLoader(CheckedNode):
    """Both experts of one model, checked as a pair."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        names = files.list_files(files.DIFFUSION_MODELS)
        return compat.schema(
            node_id="WanExpertsLoader",
            display_name="Load Wan Experts",
            category=CATEGORY,
            description="Loads the high-noise and the low-noise expert of Wan2.2 text-to-video and "
            "refuses a pair that does not belong together or is swapped. The header of a file says how "
            "it is stored (fp16, fp8, int8, GGUF ...), so there is nothing to choose.",
            search_aliases=[
                "wan",
                "wan2.2",
                "t2v",
                "unet loader",
                "diffusion model",
                "moe",
                "万相",
            ],
            inputs=[
                io.Combo.Input(
                    "model_high_noise",
                    options=names,
                    tooltip="File (or folder of shards) of the expert for the noisy first steps, which settle "
                    "layout and motion.",
                ),
                io.Combo.Input(
                    "model_low_noise",
                    options=names,
                    tooltip="File (or folder of shards) of the expert for the last steps, which bring detail.",
                ),
                io.Boolean.Input(
                    "allow_mismatch", default=False, optional=True, tooltip=ALLOW_MISMATCH, **RARE
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model_high_noise", tooltip="High-noise expert, for any sampler."
                ),
                io.Model.Output(
                    display_name="model_low_noise", tooltip="Low-noise expert, for any sampler."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was found in the files: sizes, how they are stored and will run, "
                    "the settings the model was made for, and what looks odd.",
                ),
            ],
        )

    @classmethod
    def check_inputs(
        cls,
        model_high_noise: str | None = None,
        model_low_noise: str | None = None,
        allow_mismatch: bool | None = False,
        **_: Any,
    ) -> None:
        """Check names, headers, sizes, roles and completeness of the pair."""
        unless_linked(parts.open_experts, model_high_noise, model_low_noise, allow_mismatch)

    @classmethod
    def fingerprint_inputs(
        cls, model_high_noise: str | None, model_low_noise: str | None, **_: bool | None
    ) -> str:
        """Load again when a file was replaced."""
        return files.stamps(files.DIFFUSION_MODELS, model_high_noise, model_low_noise)

    @classmethod
    def execute(
        cls, model_high_noise: str, model_low_noise: str, allow_mismatch: bool = False
    ) -> io.NodeOutput:
        """Build both MODELs; their weights stay in their files until sampling needs them."""
        pair = parts.open_experts(model_high_noise, model_low_noise, allow_mismatch)
        for oddity in pair.oddities:
            log.warning("%s", oddity)
        models = map(parts.load_expert, (pair.high, pair.low))
        report = _report(pair)
        return io.NodeOutput(*models, report, ui=ui.PreviewText(report))


class WanExpertsTextEncoderLoader(CheckedNode):
    """The umT5 text encoder with its tokenizer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsTextEncoderLoader",
            display_name="Load Wan Text Encoder (umT5)",
            category=CATEGORY,
            description="Loads an umT5 encoder with the official prompt cleaning and length (512 tokens). "
            "The tokenizer is read from the file, or from spiece.model beside it.",
            search_aliases=["wan", "umt5", "t5", "clip loader", "万相"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=files.list_files(files.TEXT_ENCODERS),
                    tooltip="umT5 file of the same family as the experts, for example "
                    "umt5_xxl_fp16.safetensors.",
                )
            ],
            outputs=[
                io.Clip.Output(
                    display_name="clip", tooltip="For Encode Wan Prompt or any text encode node."
                )
            ],
        )

    @classmethod
    def check_inputs(cls, text_encoder: str | None = None, **_: Any) -> None:
        """Check name, header, completeness and tokenizer."""
        unless_linked(parts.open_text_encoder, text_encoder)

    @classmethod
    def fingerprint_inputs(cls, text_encoder: str | None) -> str:
        """Load again when the file was replaced."""
        return files.stamps(files.TEXT_ENCODERS, text_encoder)

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        """Build the CLIP."""
        return io.NodeOutput(parts.load_clip(parts.open_text_encoder(text_encoder)))


class WanExpertsVAELoader(CheckedNode):
    """The causal video VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsVAELoader",
            display_name="Load Wan VAE",
            category=CATEGORY,
            description="Loads the Wan2.1 video VAE (also the one of Wan2.2 14B). It decodes frame by "
            "frame, so memory does not grow with the clip's length. A tiny decoder (taew2_1, "
            "lighttaew2_1; also in models/vae_approx) gives quick drafts and cannot encode.",
            search_aliases=["wan", "vae loader", "taew2_1", "taehv", "万相"],
            inputs=[
                io.Combo.Input(
                    "vae",
                    options=files.list_files(files.VAE),
                    tooltip="VAE file, for example wan_2.1_vae.safetensors.",
                )
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip="For any decode or encode node.")],
        )

    @classmethod
    def check_inputs(cls, vae: str | None = None, **_: Any) -> None:
        """Check name, header and completeness."""
        unless_linked(parts.open_vae, vae)

    @classmethod
    def fingerprint_inputs(cls, vae: str | None) -> str:
        """Load again when the file was replaced."""
        return files.stamps(files.VAE, vae)

    @classmethod
    def execute(cls, vae: str) -> io.NodeOutput:
        """Build the VAE."""
        return io.NodeOutput(parts.load_vae(parts.open_vae(vae)))
