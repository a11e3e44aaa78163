"""The ``config.json`` that other programs expect beside weights."""

from __future__ import annotations

from ..checkpoint import (
    Checkpoint,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
)


def component_config(checkpoint: Checkpoint, layout: str) -> dict[str, object]:
    """The configuration of one component in the ``official`` or the ``diffusers`` layout."""
    if checkpoint.kind == "vae":
        return _vae_config(checkpoint)
    if checkpoint.kind == "text_encoder":
        return _text_config(checkpoint)
    return _official_config(checkpoint) if layout == "official" else _diffusers_config(checkpoint)


def _official_config(checkpoint: Checkpoint) -> dict[str, object]:
    """The fields that the official repository stores, others are its code's defaults."""
    config = detect_transformer_config(checkpoint)
    return {
        "_class_name": "WanModel",
        "dim": config.dim,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_dim,
        "model_type": "t2v",
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_dim": config.out_dim,
        "text_len": config.text_len,
    }


def _diffusers_config(checkpoint: Checkpoint) -> dict[str, object]:
    config = detect_transformer_config(checkpoint)
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(config.patch_size),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.dim // config.num_heads,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
        "rope_max_seq_len": 1024,
    }


def _vae_config(checkpoint: Checkpoint) -> dict[str, object]:
    config = detect_vae_config(checkpoint)
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.dim,
        "z_dim": config.z_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.num_res_blocks,
        "temperal_downsample": list(config.temporal_downsample),  # its spelling
        "latents_mean": list(config.latent_mean),
        "latents_std": list(config.latent_std),
    }


def _text_config(checkpoint: Checkpoint) -> dict[str, object]:
    config = detect_text_config(checkpoint)
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "d_kv": config.attn_dim // config.num_heads,
        "d_ff": config.ffn_dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.eps,
        "feed_forward_proj": "gated-gelu",
    }
