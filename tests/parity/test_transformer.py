"""The transformer against diffusers' WanTransformer3DModel on shared random weights."""

from __future__ import annotations

import pytest
import torch
from wanexperts.tests.helpers import relative
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.keys.transformer import diffusers_key
from wanexperts.wan.transformer import WanTransformer

diffusers = pytest.importorskip("diffusers")

CONFIG = TransformerConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=3, text_dim=48)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(
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
    state = theirs.state_dict()
    for name, parameter in state.items():
        if "norm" in name or "scale_shift" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = WanTransformer(CONFIG).eval()
    ours.load_state_dict({key: state[diffusers_key(key)] for key in ours.state_dict()})
    return ours, theirs


@pytest.mark.parametrize("shape", [(1, 16, 1, 4, 4), (2, 16, 3, 4, 6), (1, 16, 5, 8, 10)])
@pytest.mark.parametrize("timestep", [0, 1, 875, 999, 612.37])
@torch.no_grad()
def test_equals_diffusers(pair, shape, timestep, record_property):
    ours, theirs = pair
    torch.manual_seed(1)
    x = torch.randn(shape)
    context = torch.randn(shape[0], 512, CONFIG.text_dim)
    context[:, 37:] = 0
    t = torch.full((shape[0],), timestep, dtype=torch.float32)
    expected = theirs(x, t, context).sample
    difference = relative(ours(x, t, context), expected)
    record_property("transformer_fp32_vs_diffusers", difference)
    assert difference < 1e-5
    assert relative(ours(x, t, context[:, :37]), expected) < 1e-5  # short text: zero rows implied


@torch.no_grad()
def test_timesteps_per_sample(pair):
    ours, theirs = pair
    torch.manual_seed(2)
    x, context = torch.randn(3, 16, 2, 4, 4), torch.randn(3, 512, CONFIG.text_dim)
    t = torch.tensor([999.0, 500.5, 3.0])
    assert relative(ours(x, t, context), theirs(x, t, context).sample) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_drift_is_not_worse_than_theirs(pair, dtype, record_property):
    ours, theirs = pair
    torch.manual_seed(3)
    x, context = torch.randn(1, 16, 3, 6, 6), torch.randn(1, 512, CONFIG.text_dim)
    t = torch.tensor([900.0])
    truth = ours(x, t, context)
    mine = WanTransformer(CONFIG, dtype=dtype).eval()
    mine.load_state_dict(ours.state_dict())
    other = diffusers.WanTransformer3DModel.from_config(theirs.config).eval()
    other.load_state_dict(theirs.state_dict())
    other.to(dtype)
    for name, parameter in other.named_parameters():  # their loader keeps these in float32
        if any(part in name for part in other._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    drift = relative(mine(x.to(dtype), t, context), truth)
    drift_theirs = relative(other(x.to(dtype), t, context.to(dtype)).sample.float(), truth)
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    record_property(f"transformer_{name}_drift_ours", drift)
    record_property(f"transformer_{name}_drift_diffusers", drift_theirs)
    assert drift <= drift_theirs
