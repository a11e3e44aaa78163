"""LoRA files in every published dialect, spelled by hand: nothing here asks the library for a name.

Columns of ``MODULES``: official, diffusers, and each with underscores; ``#`` is the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from wanexperts.tests.helpers import random_state
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.ops import patched
from wanexperts.wan.transformer import WanTransformer

CONFIG = TransformerConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32)
RANK, ALPHA = 4, 3.0

TOP = """
patch_embedding    patch_embedding                                patch_embedding    patch_embedding
text_embedding.0   condition_embedder.text_embedder.linear_1      text_embedding_0   condition_embedder_text_embedder_linear_1
text_embedding.2   condition_embedder.text_embedder.linear_2      text_embedding_2   condition_embedder_text_embedder_linear_2
time_embedding.0   condition_embedder.time_embedder.linear_1      time_embedding_0   condition_embedder_time_embedder_linear_1
time_embedding.2   condition_embedder.time_embedder.linear_2      time_embedding_2   condition_embedder_time_embedder_linear_2
time_projection.1  condition_embedder.time_proj                   time_projection_1  condition_embedder_time_proj
head.head          proj_out                                       head_head          proj_out
"""
BLOCK = """
blocks.#.self_attn.q   blocks.#.attn1.to_q        blocks_#_self_attn_q   blocks_#_attn1_to_q
blocks.#.self_attn.k   blocks.#.attn1.to_k        blocks_#_self_attn_k   blocks_#_attn1_to_k
blocks.#.self_attn.v   blocks.#.attn1.to_v        blocks_#_self_attn_v   blocks_#_attn1_to_v
blocks.#.self_attn.o   blocks.#.attn1.to_out.0    blocks_#_self_attn_o   blocks_#_attn1_to_out_0
blocks.#.cross_attn.q  blocks.#.attn2.to_q        blocks_#_cross_attn_q  blocks_#_attn2_to_q
blocks.#.cross_attn.k  blocks.#.attn2.to_k        blocks_#_cross_attn_k  blocks_#_attn2_to_k
blocks.#.cross_attn.v  blocks.#.attn2.to_v        blocks_#_cross_attn_v  blocks_#_attn2_to_v
blocks.#.cross_attn.o  blocks.#.attn2.to_out.0    blocks_#_cross_attn_o  blocks_#_attn2_to_out_0
blocks.#.ffn.0         blocks.#.ffn.net.0.proj    blocks_#_ffn_0         blocks_#_ffn_net_0_proj
blocks.#.ffn.2         blocks.#.ffn.net.2         blocks_#_ffn_2         blocks_#_ffn_net_2
"""
OTHERS = """
blocks.#.norm3              blocks.#.norm2              blocks_#_norm3              blocks_#_norm2
blocks.#.self_attn.norm_q   blocks.#.attn1.norm_q       blocks_#_self_attn_norm_q   blocks_#_attn1_norm_q
blocks.#.self_attn.norm_k   blocks.#.attn1.norm_k       blocks_#_self_attn_norm_k   blocks_#_attn1_norm_k
blocks.#.cross_attn.norm_q  blocks.#.attn2.norm_q       blocks_#_cross_attn_norm_q  blocks_#_attn2_norm_q
blocks.#.cross_attn.norm_k  blocks.#.attn2.norm_k       blocks_#_cross_attn_norm_k  blocks_#_attn2_norm_k
blocks.#.modulation         blocks.#.scale_shift_table  blocks_#_modulation         blocks_#_scale_shift_table
"""
HEAD = "head.modulation scale_shift_table head_modulation scale_shift_table"


def rows(*tables: str) -> list[list[str]]:
    lines = [line for table in tables for line in table.strip().splitlines()]
    numbers = range(CONFIG.num_layers)
    spread = [
        line.replace("#", str(n)) for line in lines for n in (numbers if "#" in line else [0])
    ]
    return [line.split() for line in spread]


MODULES = rows(TOP, BLOCK)
"""Every module with a matrix."""
TABLES = rows(OTHERS, HEAD)
"""Norms and modulations."""
OFFICIAL, DIFFUSERS, OFFICIAL_, DIFFUSERS_ = range(4)


@dataclass(frozen=True)
class Writer:
    prefix: str
    column: int
    down: str = ".lora_down.weight"
    up: str = ".lora_up.weight"
    alpha: bool = True


AB = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
WRITERS = {
    "comfyui": Writer("diffusion_model.", OFFICIAL),
    "comfyui A B": Writer("diffusion_model.", OFFICIAL, **AB),
    "comfyui no alpha": Writer("diffusion_model.", OFFICIAL, **AB, alpha=False),
    "comfyui long": Writer("model.diffusion_model.", OFFICIAL),
    "bare": Writer("", OFFICIAL, **AB, alpha=False),
    "bare default": Writer(
        "", OFFICIAL, ".lora_A.default.weight", ".lora_B.default.weight", alpha=False
    ),
    "bare plain": Writer("", OFFICIAL, ".lora_A", ".lora_B", alpha=False),
    "pipe.dit": Writer("pipe.dit.", OFFICIAL, **AB, alpha=False),
    "peft": Writer("base_model.model.", OFFICIAL, **AB, alpha=False),
    "peft diffusers": Writer("base_model.model.", DIFFUSERS, **AB, alpha=False),
    "diffusers": Writer("transformer.", DIFFUSERS, **AB, alpha=False),
    "diffusers alpha": Writer("transformer.", DIFFUSERS, **AB),
    "diffusers low": Writer("transformer_2.", DIFFUSERS, **AB, alpha=False),
    "diffusers bare": Writer("", DIFFUSERS, **AB, alpha=False),
    "diffusers _lora": Writer("transformer.", DIFFUSERS, "_lora.down.weight", "_lora.up.weight"),
    "diffusers .lora": Writer("transformer.", DIFFUSERS, ".lora.down.weight", ".lora.up.weight"),
    "diffusers layer": Writer(
        "", DIFFUSERS, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"
    ),
    "ai-toolkit high": Writer("diffusion_model.transformer_1.", OFFICIAL, **AB, alpha=False),
    "kohya": Writer("lora_unet_", OFFICIAL_),
    "kohya double": Writer("lora_unet__", OFFICIAL_),
    "kohya diffusers": Writer("lora_unet_", DIFFUSERS_),
    "lycoris": Writer("lycoris_", DIFFUSERS_),
    "lycoris official": Writer("lycoris_", OFFICIAL_),
}


def expert(seed: int = 0, dtype: torch.dtype = torch.float32) -> WanTransformer:
    """One random expert; norms and modulations are random too."""
    model = WanTransformer(CONFIG, dtype=dtype)
    model.load_state_dict(_state(seed))
    return model.eval().requires_grad_(False)


@cache
def _state(seed: int) -> dict[str, Tensor]:
    state = random_state(WanTransformer(CONFIG), seed)
    generator = torch.Generator().manual_seed(seed)
    for key, value in state.items():
        if "norm" in key:
            state[key] = value + 0.1 * torch.randn(value.shape, generator=generator)
    return state


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    model = WanTransformer(CONFIG, device=torch.device("meta"))
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def factors(seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """``up, down`` of every matrix, by official module; that of the patch embedding has its kernel."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module, *_ in MODULES:
        out, *rest = shapes()[f"{module}.weight"]
        ones = [1] * (len(rest) - 1)
        up = torch.randn(out, RANK, *ones, generator=generator) / 16
        made[module] = up, torch.randn(RANK, *rest, generator=generator) / 16
    return made


def write_low_rank(writer: Writer, made: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """One LoRA in one dialect; without alphas ALPHA / RANK goes into the upper factor."""
    tensors = {}
    for row in MODULES:
        up, down = made[row[OFFICIAL]]
        name = writer.prefix + row[writer.column]
        tensors[name + writer.down] = down.clone()
        tensors[name + writer.up] = up.clone() if writer.alpha else up * (ALPHA / RANK)
        if writer.alpha:
            tensors[name + ".alpha"] = torch.tensor(ALPHA)
    return tensors


def write_full(writer: Writer, generator: torch.Generator) -> dict[str, Tensor]:
    """Full deltas of every bias, norm and modulation."""
    known = shapes()
    tensors = {}
    for row in [*MODULES, *TABLES]:
        name, official = writer.prefix + row[writer.column], row[OFFICIAL]
        if f"{official}.bias" in known:
            shape = known[f"{official}.bias"]
            tensors[f"{name}.diff_b"] = torch.randn(shape, generator=generator) / 8
        if "norm" in official or "modulation" in official:
            shape = known.get(f"{official}.weight") or known[official]
            tensors[f"{name}.diff"] = torch.randn(shape, generator=generator) / 8
    return tensors


def save(tensors: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata=metadata or None)
    return path


def weights(model: WanTransformer) -> dict[str, Tensor]:
    """Every parameter as the network uses it, patches included."""
    found = {}
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            found[name] = patched(module, leaf, parameter, torch.float32)
    return found


def merged(
    model: WanTransformer, made: dict[str, tuple[Tensor, Tensor]], strength: float = 1.0
) -> dict[str, Tensor]:
    """The stored weights with the plain LoRA added in float64."""
    state = {name: p.double() for name, p in model.named_parameters()}
    for module, (up, down) in made.items():
        weight = state[f"{module}.weight"]
        delta = up.double().flatten(1) @ down.double().flatten(1)
        state[f"{module}.weight"] = weight + strength * ALPHA / RANK * delta.view(weight.shape)
    return state


def largest(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference of any weight, over the largest value of that weight."""
    assert got.keys() == wanted.keys()
    return max(float((got[k] - w).abs().max() / w.abs().max()) for k, w in wanted.items())
