"""The VAE against diffusers' AutoencoderKLWan on shared random weights."""

from __future__ import annotations

import pytest
import torch
from wanexperts.tests.helpers import relative
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.keys.vae import diffusers_key
from wanexperts.wan.vae import WanVAE

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = VAEConfig(dim=16)
    theirs = diffusers.AutoencoderKLWan(base_dim=16).eval()
    ours = WanVAE(config).eval()
    state = theirs.state_dict()
    for parameter in state.values():
        if parameter.ndim <= 4 and parameter.unique().numel() == 1:  # norms are all ones: stir
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.load_state_dict(state)
    ours.load_state_dict({k: state[diffusers_key(k)] for k in ours.state_dict()})
    return ours, theirs


@pytest.mark.parametrize("frames", [1, 5, 17, 33])
@torch.no_grad()
def test_encode_and_decode_equal_diffusers(pair, frames, record_property):
    ours, theirs = pair
    torch.manual_seed(frames)
    video = torch.rand(1, 3, frames, 32, 48) * 2 - 1
    expected = theirs.encode(video).latent_dist.mode()
    latents = ours.encode(video)
    record_property("vae_encode_fp32_vs_diffusers", relative(latents, expected))
    assert relative(latents, expected) < 1e-5
    assert relative(ours.encode_whole(video), expected) < 1e-5
    expected_video = theirs.decode(expected).sample
    difference = relative(ours.decode(expected), expected_video)
    record_property("vae_decode_fp32_vs_diffusers", difference)
    assert difference < 1e-5
    assert relative(ours.decode_whole(expected).clamp(-1, 1), expected_video) < 1e-5


@torch.no_grad()
def test_bf16_drift_is_not_worse_than_theirs(pair, record_property):
    ours, theirs = pair
    torch.manual_seed(3)
    z = torch.randn(1, 16, 3, 4, 6)
    truth = ours.decode(z)
    mine, other = WanVAE(ours.config).eval(), diffusers.AutoencoderKLWan(base_dim=16).eval()
    mine.load_state_dict(ours.state_dict())
    other.load_state_dict(theirs.state_dict())
    drift = relative(mine.bfloat16().decode(z.bfloat16()).float(), truth)
    drift_theirs = relative(other.bfloat16().decode(z.bfloat16()).sample.float(), truth)
    record_property("vae_bf16_drift_ours", drift)
    record_property("vae_bf16_drift_diffusers", drift_theirs)
    assert drift <= 1.5 * drift_theirs
