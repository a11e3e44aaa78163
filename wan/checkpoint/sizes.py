"""Sizes of a network, from the shapes of its tensors alone."""

from __future__ import annotations

import re

from ..config import TextConfig, TransformerConfig, VAEConfig
from ..vae import RGB
from .layouts import TINY_DECODER, Checkpoint

HEAD_DIM = 128
OTHER_VARIANTS = {
    "vace_patch_embedding.weight": "a VACE model",
    "control_adapter.conv.weight": "a camera-control model",
    "ref_conv.weight": "a Fun-Control model",
    "img_emb.proj.0.bias": "a Wan2.1 image-to-video model",
    "casual_audio_encoder.encoder.final_linear.weight": "a speech-to-video model",
    "audio_proj.audio_proj_glob_1.layer.bias": "a HuMo model",
    "face_adapter.fuser_blocks.0.k_norm.weight": "an Animate model",
}
"""Tensors that only one other Wan model has."""
OTHER_CHANNELS = {
    (36, 16): "an image-to-video expert (I2V-A14B or Fun-InP)",
    (52, 16): "a Fun-Control expert",
    (48, 48): "the TI2V-5B model",
}
"""Input and output channels of other Wan models."""
_POSITIONS = "pos_embedding.embedding.weight"
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def _layers(checkpoint: Checkpoint) -> int:
    """How many blocks there are; a damaged file that skips numbers must not make us build them."""
    found = {match[1] for key in checkpoint.tensors if (match := _BLOCK.match(key))}
    if found != {str(index) for index in range(len(found))}:
        raise ValueError(f"{checkpoint.where} lacks some of its blocks; download it again")
    return len(found)


def detect_transformer_config(checkpoint: Checkpoint) -> TransformerConfig:
    """Sizes of a text-to-video expert, from its shapes; ValueError names other variants."""
    path = checkpoint.where
    for key, variant in OTHER_VARIANTS.items():
        if key in checkpoint.tensors:
            raise ValueError(f"{path} is {variant}; choose a Wan2.2 text-to-video expert")
    dim = checkpoint.shape("head.modulation", 3)[-1]
    in_dim = checkpoint.shape("patch_embedding.weight", 5)[1]
    out_dim = checkpoint.shape("head.head.weight", 2)[0] // 4
    if (in_dim, out_dim) != (16, 16):
        variant = OTHER_CHANNELS.get((in_dim, out_dim), "another model")
        raise ValueError(
            f"{path} is {variant}: it maps {in_dim} to {out_dim} channels, text-to-video experts "
            "map 16 to 16; choose a Wan2.2 T2V-A14B expert"
        )
    if not dim or dim % HEAD_DIM:
        raise ValueError(
            f"{path} has width {dim}, not a multiple of {HEAD_DIM}; choose another file"
        )
    return TransformerConfig(
        dim=dim,
        ffn_dim=checkpoint.shape("blocks.0.ffn.0.weight", 2)[0],
        num_heads=dim // HEAD_DIM,
        num_layers=_layers(checkpoint),
        text_dim=checkpoint.shape("text_embedding.0.weight", 2)[1],
        freq_dim=checkpoint.shape("time_embedding.0.weight", 2)[1],
    )


def detect_vae_config(checkpoint: Checkpoint) -> VAEConfig:
    """Sizes of a Wan2.1-architecture VAE, or of the one that a tiny decoder stands in for.

    Raises:
        ValueError: the 48-channel Wan2.2 VAE, or a tiny decoder of latents other than Wan2.1's.
    """
    if checkpoint.is_tiny:
        takes_normalized(checkpoint)
        return VAEConfig()
    z_dim = checkpoint.shape("conv2.weight", 5)[0]
    if z_dim != VAEConfig().z_dim:
        raise ValueError(
            f"{checkpoint.where} is a VAE of {z_dim} latent channels; T2V-A14B needs the Wan2.1 VAE "
            f"({VAEConfig().z_dim} channels), for example wan_2.1_vae.safetensors"
        )
    return VAEConfig(dim=checkpoint.shape("encoder.conv1.weight", 5)[0])


def takes_normalized(checkpoint: Checkpoint) -> bool:
    """Whether a tiny decoder was trained on normalised latents rather than on raw ones.

    Raises:
        ValueError: other latents, or a name that does not tell.
    """
    channels = checkpoint.shape("decoder.1.weight", 4)[1]
    values = checkpoint.shape(TINY_DECODER, 1)[0]
    if (channels, values) != (VAEConfig().z_dim, RGB):
        raise ValueError(
            f"{checkpoint.where} is a tiny decoder of {channels} latent channels to {values} values a "
            f"position; T2V-A14B needs {VAEConfig().z_dim} to {RGB}: taew2_1 or lighttaew2_1"
        )
    normalized = named_latents(checkpoint.path.name)
    if normalized is None:
        raise ValueError(
            f"{checkpoint.where} is a tiny decoder whose name does not say of which latents; call it "
            "taew2_1 (normalised) or lighttaew2_1 (raw), as the file you have was published"
        )
    return normalized


def named_latents(name: str) -> bool | None:
    """Whether a tiny decoder of Wan2.1 takes normalised latents, by the name of its file.

    Both kinds hold the same tensors in the same shapes. None: not the name of one.
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    if "taew21" not in letters:
        return None
    return "lighttaew21" not in letters


def detect_text_config(checkpoint: Checkpoint) -> TextConfig:
    """Sizes of an umT5 encoder."""
    vocab_size, dim = checkpoint.shape("token_embedding.weight", 2)
    num_buckets, num_heads = checkpoint.shape(f"blocks.0.{_POSITIONS}", 2)
    layers = _layers(checkpoint)
    if layers > sum(key.endswith(_POSITIONS) for key in checkpoint.tensors) == 1:
        raise ValueError(
            f"{checkpoint.where} is a T5 encoder (one table of positions for all layers), not umT5; "
            "use umt5_xxl"
        )
    return TextConfig(
        vocab_size=vocab_size,
        dim=dim,
        attn_dim=checkpoint.shape("blocks.0.attn.q.weight", 2)[0],
        num_heads=num_heads,
        ffn_dim=checkpoint.shape("blocks.0.ffn.fc1.weight", 2)[0],
        num_layers=layers,
        num_buckets=num_buckets,
    )
