"""Names of the VAE's tensors, official and diffusers': one to one, and the same network."""

from __future__ import annotations

import pytest
import torch
from wanexperts.tests.helpers import relative
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.keys.vae import diffusers_key, official_key
from wanexperts.wan.vae import WanVAE

diffusers = pytest.importorskip("diffusers")
CONFIG = VAEConfig(dim=8)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=CONFIG.dim).eval()
    for parameter in vae.parameters():
        parameter.data = torch.randn_like(parameter) * max(parameter[0].numel(), 1) ** -0.5
    return vae


def test_the_names_are_one_to_one(theirs):
    official = set(WanVAE(CONFIG, device=torch.device("meta")).state_dict())
    assert {diffusers_key(key) for key in official} == set(theirs.state_dict())
    assert {official_key(key) for key in theirs.state_dict()} == official
    assert all(official_key(diffusers_key(key)) == key for key in official)


@torch.no_grad()
def test_a_diffusers_state_loads_whole_and_decodes_the_same(theirs):
    ours = WanVAE(CONFIG).eval()
    state = {official_key(key): tensor for key, tensor in theirs.state_dict().items()}
    assert ours.load_state_dict(state, strict=True)
    video = torch.rand(1, 3, 5, 16, 32) * 2 - 1
    expected = theirs.encode(video).latent_dist.mode()
    encoded = relative(ours.encode(video), expected)
    decoded = relative(ours.decode(expected), theirs.decode(expected).sample)
    assert encoded < 3e-6  # 2.5e-7
    assert decoded < 1e-5  # 1.0e-6


@torch.no_grad()
def test_our_state_loads_whole_into_diffusers(theirs):
    state = {diffusers_key(key): t for key, t in WanVAE(CONFIG).state_dict().items()}
    other = diffusers.AutoencoderKLWan(base_dim=CONFIG.dim)
    assert other.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    "key",
    [
        "", "conv1", "weight", "conv3.weight", "encoder.conv2.weight", "blocks.0.modulation",
        "encoder.upsamples.0.residual.2.weight", "decoder.downsamples.0.residual.2.weight",
        "decoder.upsamples.0.time_conv.weight", "decoder.upsamples.3.residual.2.weight",
        "decoder.upsamples.0.upsamples.0.residual.2.weight", "encoder.middle.1.residual.2.weight",
        "encoder.downsamples.x.residual.2.weight", "decoder.middle.0.shortcut",
    ],
)  # fmt: skip
def test_other_names_have_no_diffusers_name(key):
    assert diffusers_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "", "quant_conv", "decoder.quant_conv.weight", "encoder.up_blocks.0.resnets.0.conv1.weight",
        "decoder.down_blocks.0.conv1.weight", "decoder.up_blocks.0.resnets.3.conv1.weight",
        "decoder.up_blocks.0.upsamplers.1.time_conv.weight", "encoder.mid_block.resnets.2.conv1.bias",
        "decoder.up_blocks.0.upsamplers.0.conv1.weight", "conv1.weight",
        "encoder.down_blocks.0.resnets.0.conv1.weight", "encoder.down_blocks.0.conv3.weight",
    ],
)  # fmt: skip
def test_other_names_have_no_official_name(key):
    assert official_key(key) is None
