"""Load files: experts, text encoder, VAE. Everything headers can tell is checked before a run."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..wan.checkpoint import (
    SPIECE_KEY,
    Checkpoint,
    check_keys,
    check_pair,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    find_tokenizer,
    open_checkpoint,
)
from ..wan.pipeline import family_defaults
from ..wan.text import UMT5Encoder
from ..wan.transformer import WanTransformer
from ..wan.vae import WanVAE
from . import compat
from .host import files
from .host.model import build_model
from .host.text import build_clip
from .host.vae import HostVAE

CATEGORY = "WanExperts/loaders"
META = torch.device("meta")


def _open(folder: str, name: str, kind: str) -> Checkpoint:
    return open_checkpoint(files.find(folder, name), kind)


def _problem(check: Any, *names: str | None) -> bool | str:
    """Run a check at validation time; a linked input is not known yet and passes."""
    if None in names:
        return True
    try:
        check(*names)
    except (ValueError, OSError) as error:
        return str(error)
    return True


def _open_pair(high: str, low: str) -> tuple[Checkpoint, Checkpoint]:
    pair = (
        _open(files.DIFFUSION_MODELS, high, "transformer"),
        _open(files.DIFFUSION_MODELS, low, "transformer"),
    )
    check_pair(*pair)
    return pair


def _load_expert(checkpoint: Checkpoint) -> Any:
    config = detect_transformer_config(checkpoint)
    check_keys(WanTransformer(config, device=META).state_dict(), checkpoint)
    return build_model(config, checkpoint.state_dict(), family_defaults(checkpoint))


def _report(high: Checkpoint, low: Checkpoint) -> str:
    config = detect_transformer_config(high)
    sampling = family_defaults(high)
    lines = [
        f"{config.num_layers} layers of width {config.dim}, text width {config.text_dim}",
        f"defaults: {sampling.steps} steps, shift {sampling.shift:g}, boundary "
        f"{sampling.boundary:g}, cfg {sampling.guidance_high:g} / {sampling.guidance_low:g}",
    ]
    for role, checkpoint in (("high noise", high), ("low noise", low)):
        told = (
            "" if checkpoint.role else " (neither its name nor its header says which expert it is)"
        )
        lines.append(f"{role}: {checkpoint.path.name}, {checkpoint.nbytes / 1e9:.2f} GB{told}")
    return "\n".join(lines)


class WanExpertsLoader(io.ComfyNode):
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
            "refuses a pair that does not belong together or is swapped.",
            search_aliases=["wan", "wan2.2", "unet loader", "diffusion model", "moe"],
            inputs=[
                io.Combo.Input(
                    "model_high_noise",
                    options=names,
                    tooltip="File (or official shard folder) of the expert for the noisy first steps.",
                ),
                io.Combo.Input(
                    "model_low_noise",
                    options=names,
                    tooltip="File (or official shard folder) of the expert for the last steps.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model_high_noise", tooltip="High-noise expert."),
                io.Model.Output(display_name="model_low_noise", tooltip="Low-noise expert."),
                io.String.Output(display_name="report", tooltip="What was found in the files."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, model_high_noise: str | None = None, model_low_noise: str | None = None
    ) -> bool | str:
        """Check names, headers, sizes and roles of the pair."""
        return _problem(_open_pair, model_high_noise, model_low_noise)

    @classmethod
    def fingerprint_inputs(cls, model_high_noise: str, model_low_noise: str) -> str:
        """Load again when a file was replaced."""
        names = (model_high_noise, model_low_noise)
        return "|".join(files.stamp(files.find(files.DIFFUSION_MODELS, name)) for name in names)

    @classmethod
    def execute(cls, model_high_noise: str, model_low_noise: str) -> io.NodeOutput:
        """Build both MODELs; their weights stay off the GPU until sampling needs them."""
        high, low = _open_pair(model_high_noise, model_low_noise)
        return io.NodeOutput(_load_expert(high), _load_expert(low), _report(high, low))


class WanExpertsTextEncoderLoader(io.ComfyNode):
    """The umT5 text encoder with its tokenizer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsTextEncoderLoader",
            display_name="Load Wan Text Encoder (umT5)",
            category=CATEGORY,
            description="Loads an umT5 encoder with the official prompt cleaning and length. The "
            "tokenizer is read from the file, or from spiece.model beside it.",
            search_aliases=["wan", "umt5", "t5", "clip loader"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=files.list_files(files.TEXT_ENCODERS),
                    tooltip="umT5 file of the same family as the experts.",
                )
            ],
            outputs=[io.Clip.Output(display_name="clip", tooltip="For any text encode node.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str | None = None) -> bool | str:
        """Check the name and the header."""
        return _problem(lambda name: _open(files.TEXT_ENCODERS, name, "text_encoder"), text_encoder)

    @classmethod
    def fingerprint_inputs(cls, text_encoder: str) -> str:
        """Load again when the file was replaced."""
        return files.stamp(files.find(files.TEXT_ENCODERS, text_encoder))

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        """Build the CLIP."""
        checkpoint = _open(files.TEXT_ENCODERS, text_encoder, "text_encoder")
        config = detect_text_config(checkpoint)
        check_keys(UMT5Encoder(config, device=META).state_dict(), checkpoint)
        tokenizer = find_tokenizer(checkpoint)
        weights = checkpoint.state_dict()
        weights.pop(SPIECE_KEY, None)
        return io.NodeOutput(build_clip(config, tokenizer, weights))


class WanExpertsVAELoader(io.ComfyNode):
    """The causal video VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsVAELoader",
            display_name="Load Wan VAE",
            category=CATEGORY,
            description="Loads the Wan2.1 video VAE (also the one of Wan2.2 14B). It decodes frame by "
            "frame, so memory does not grow with the clip's length.",
            search_aliases=["wan", "vae loader"],
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
    def validate_inputs(cls, vae: str | None = None) -> bool | str:
        """Check the name and the header."""
        return _problem(lambda name: detect_vae_config(_open(files.VAE, name, "vae")), vae)

    @classmethod
    def fingerprint_inputs(cls, vae: str) -> str:
        """Load again when the file was replaced."""
        return files.stamp(files.find(files.VAE, vae))

    @classmethod
    def execute(cls, vae: str) -> io.NodeOutput:
        """Build the VAE."""
        checkpoint = _open(files.VAE, vae, "vae")
        config = detect_vae_config(checkpoint)
        check_keys(WanVAE(config, device=META).state_dict(), checkpoint)
        return io.NodeOutput(HostVAE(config, checkpoint.state_dict()))
