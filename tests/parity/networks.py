"""The three networks elsewhere: names and shapes as published, and as diffusers and transformers run them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import gguf
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from torch import Tensor
from wanexperts.wan.config import TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.text import UMT5Encoder
from wanexperts.wan.vae import WanVAE

Shapes = dict[str, tuple[int, ...]]


def expert_shapes(config: TransformerConfig) -> Shapes:
    """The published list of an expert's tensors."""
    dim, hidden = config.dim, config.ffn_dim
    linears = {
        "text_embedding.0": (dim, config.text_dim),
        "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, config.freq_dim),
        "time_embedding.2": (dim, dim),
        "time_projection.1": (6 * dim, dim),
        "head.head": (4 * config.out_dim, dim),
    }
    shapes: Shapes = {
        "patch_embedding.weight": (dim, config.in_dim, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
    }
    for block in (f"blocks.{number}." for number in range(config.num_layers)):
        shapes[f"{block}modulation"] = (1, 6, dim)
        shapes |= {f"{block}norm3.{leaf}": (dim,) for leaf in ("weight", "bias")}
        for part in ("self_attn.", "cross_attn."):
            linears |= {block + part + one: (dim, dim) for one in "qkvo"}
            shapes |= {f"{block}{part}norm_{one}.weight": (dim,) for one in "qk"}
        linears |= {f"{block}ffn.0": (hidden, dim), f"{block}ffn.2": (dim, hidden)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def text_shapes(config: TextConfig) -> Shapes:
    """The published list of the umT5 encoder's tensors."""
    dim, inner, hidden = config.dim, config.attn_dim, config.ffn_dim
    shapes: Shapes = {"token_embedding.weight": (config.vocab_size, dim), "norm.weight": (dim,)}
    for block in (f"blocks.{number}." for number in range(config.num_layers)):
        shapes |= {f"{block}{norm}.weight": (dim,) for norm in ("norm1", "norm2")}
        shapes |= {f"{block}attn.{one}.weight": (inner, dim) for one in "qkv"}
        shapes[f"{block}attn.o.weight"] = (dim, inner)
        shapes[f"{block}pos_embedding.embedding.weight"] = (config.num_buckets, config.num_heads)
        shapes |= {f"{block}ffn.{one}.weight": (hidden, dim) for one in ("gate.0", "fc1")}
        shapes[f"{block}ffn.fc2.weight"] = (dim, hidden)
    return shapes


def vae_shapes(config: VAEConfig) -> Shapes:
    """The VAE's tensors; that the names are the published ones is what diffusers' converter proves."""
    return {key: tuple(t.shape) for key, t in WanVAE(config).state_dict().items()}


_HF = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.", "encoder.block."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
)


def hf_name(name: str) -> str:
    """What transformers and ComfyUI call an official umT5 tensor; the last part stays."""
    for pattern, theirs in _HF:
        name = re.sub(pattern, theirs, name)
    return name


def t5_gguf_name(name: str) -> str:
    """What llama.cpp's converter calls an official umT5 tensor."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 64)
    found = names.get_name(hf_name(name), try_suffixes=(".weight",))
    assert found is not None, name
    return found


def diffusers_name(name: str) -> str:
    """What diffusers' converter calls an official tensor of an expert."""
    return next(iter(convert_wan_transformer_to_diffusers({name: torch.empty(0)})))


def diffusers_expert(
    config: TransformerConfig, weights: Mapping[str, Tensor]
) -> WanTransformer3DModel:
    """Diffusers' expert with official weights, renamed by its own converter; they are not copied."""
    with init_empty_weights(include_buffers=False):
        model = WanTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.dim // config.num_heads,
            in_channels=config.in_dim,
            out_channels=config.out_dim,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            eps=config.eps,
        )
    state = convert_wan_transformer_to_diffusers(dict(weights))
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def diffusers_vae(config: VAEConfig, weights: Mapping[str, Tensor]) -> AutoencoderKLWan:
    """Diffusers' VAE with official weights, renamed by its own converter."""
    model = AutoencoderKLWan(base_dim=config.dim, z_dim=config.z_dim)
    model.load_state_dict(convert_wan_vae_to_diffusers(dict(weights)))
    return model.eval().requires_grad_(False)


def transformers_text(
    config: TextConfig, weights: Mapping[str, Tensor]
) -> transformers.UMT5EncoderModel:
    """The encoder of transformers with official weights; they are not copied."""
    with init_empty_weights(include_buffers=False):
        model = transformers.UMT5EncoderModel(
            transformers.UMT5Config(
                vocab_size=config.vocab_size,
                d_model=config.dim,
                d_kv=config.attn_dim // config.num_heads,
                d_ff=config.ffn_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                relative_attention_num_buckets=config.num_buckets,
                relative_attention_max_distance=config.max_distance,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                layer_norm_epsilon=config.eps,
            )
        )
    state = {hf_name(key): tensor for key, tensor in weights.items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def run_expert(
    model: torch.nn.Module, config: TransformerConfig, grid: tuple[int, int, int]
) -> Tensor:
    """The velocity of an expert, ours or diffusers', for one fixed input."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, config.in_dim, *grid, generator=generator)
    context = torch.randn(1, config.text_len, config.text_dim, generator=generator)
    out = model(x, torch.tensor([613.0]), context)
    return out if isinstance(out, Tensor) else out.sample


@torch.no_grad()
def run_text(model: torch.nn.Module, config: TextConfig) -> Tensor:
    """The hidden states of an encoder, ours or that of transformers, for one fixed text of 21 tokens."""
    ids = torch.randint(3, config.vocab_size, (1, 21), generator=torch.Generator().manual_seed(5))
    if isinstance(model, UMT5Encoder):
        return model(ids, dtype=torch.float32)
    return model(ids).last_hidden_state


@torch.no_grad()
def run_vae(model: torch.nn.Module, config: VAEConfig) -> Tensor:
    """The decoded video of a VAE, ours or diffusers', for one fixed latent."""
    z = torch.randn(1, config.z_dim, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    out = model.decode(z)
    return out if isinstance(out, Tensor) else out.sample
