"""LoRAs against PEFT and diffusers' own loader, which needs it; skipped where PEFT is not installed."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file
from wanexperts.tests.helpers import relative
from wanexperts.tests.wan.lora_writers import (
    ALPHA,
    CONFIG,
    RANK,
    WRITERS,
    expert,
    factors,
    shapes,
    weights,
    write_low_rank,
)
from wanexperts.wan.keys.transformer import diffusers_key
from wanexperts.wan.lora import apply_loras, read_lora, rename, resolve

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


def theirs():
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=CONFIG.num_heads,
        attention_head_dim=CONFIG.dim // CONFIG.num_heads,
        in_channels=16,
        out_channels=16,
        text_dim=CONFIG.text_dim,
        ffn_dim=CONFIG.ffn_dim,
        num_layers=CONFIG.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ).eval()
    state = {diffusers_key(key): tensor for key, tensor in expert().state_dict().items()}
    network.load_state_dict(state)
    return network.requires_grad_(False)


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    context = torch.zeros(1, 512, CONFIG.text_dim)
    context[:, :9] = torch.randn(1, 9, CONFIG.text_dim, generator=generator)
    return x, torch.tensor([600.0]), context


def in_blocks(tensors):
    """What diffusers' converters read: layers of blocks, with alphas."""
    return {key: tensor for key, tensor in tensors.items() if "blocks" in key}


@pytest.mark.parametrize("config", [{}, {"lora_alpha": 6}, {"lora_alpha": 6, "use_rslora": True},
                                    {"lora_alpha": 6, "alpha_pattern": {"blocks.0.attn1.to_q": 3}}],
                         ids=["none", "alpha", "stabilised", "pattern"])  # fmt: skip
@pytest.mark.parametrize("role", ["high_noise", "low_noise"])
def test_diffusers_own_loader_with_peft(config, role, tmp_path, record_property):
    prefix = {"high_noise": "transformer", "low_noise": "transformer_2"}
    tensors, metadata = {}, {}
    for seed, (name, part) in enumerate(prefix.items()):
        dialect = WRITERS["diffusers low" if name == "low_noise" else "diffusers"]
        tensors |= in_blocks(write_low_rank(dialect, factors(seed)))
        modules = sorted({key.split(".lora_")[0].partition(".")[2] for key in tensors})
        full = {
            "r": RANK,
            "rank_pattern": {},
            "alpha_pattern": {},
            "target_modules": modules,
            **config,
        }
        metadata |= {f"{part}.{key}": value for key, value in full.items()} if config else {}
    path = tmp_path / "both.safetensors"
    told = {"lora_adapter_metadata": json.dumps(metadata)} if config else {}
    save_file(tensors, path, metadata={"format": "pt", **told})
    network = theirs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.load_lora_adapter(
            {k.removeprefix(f"{prefix[role]}."): t for k, t in tensors.items() if k.startswith(f"{prefix[role]}.")},
            prefix=None,
            metadata={k.removeprefix(f"{prefix[role]}."): v for k, v in metadata.items()
                      if k.startswith(f"{prefix[role]}.")} or None,
        )  # fmt: skip
    model = expert()
    apply_loras(model, [(resolve(read_lora(path).sections[role], shapes()), 1.0)])
    difference = relative(model(*inputs()), network(*inputs()).sample)
    record_property("lora_output_vs_diffusers_loader", difference)
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("dora", "bias"), [(False, False), (False, True), (True, False)], ids=["LoRA", "bias", "DoRA"]
)
@pytest.mark.parametrize("stabilised", [False, True], ids=["plain", "stabilised"])
def test_pefts_merge(dora, stabilised, bias, tmp_path, record_property):
    """An adapter that PEFT makes, saves and merges itself, read from its own folder."""
    targets = [r"self_attn\.[qkvo]", r"cross_attn\.[qkvo]", r"ffn\.[02]", r"patch_embedding"]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_rslora=stabilised, use_dora=dora, lora_bias=bias,
        target_modules=rf".*({'|'.join(targets)})", init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peft.get_peft_model(expert(), config)
        for name, parameter in network.named_parameters():
            if "magnitude" in name:
                parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
        network.save_pretrained(tmp_path)
        merged = network.merge_and_unload()
    model = expert()
    (section,) = read_lora(tmp_path / "adapter_model.safetensors").sections.values()
    resolved = resolve(section, shapes())
    assert not resolved.left
    stored = {key: info.shape for key, info in section.tensors.items()}
    written = rename(section, "peft").tensors
    assert {key: tuple(tensor.shape) for key, tensor in written.items()} == stored
    apply_loras(model, [(resolved, 1.0)])
    wanted = dict(merged.named_parameters())
    changed = {name for name, p in expert().named_parameters() if not torch.equal(p, wanted[name])}
    assert changed == set(resolved.deltas)
    difference = max(relative(got, wanted[name]) for name, got in weights(model).items())
    record_property("lora_weights_vs_peft_merge", difference)
    assert difference < 1e-6
