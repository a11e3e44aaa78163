"""The VAE against diffusers' AutoencoderKLWan on shared random weights."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
from wanexperts.tests.helpers import relative
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.keys.vae import diffusers_key
from wanexperts.wan.vae import WanVAE

diffusers = pytest.importorskip("diffusers")

PUBLISHED = VAEConfig().dim
NARROW = 16
TOLERANCE = 1e-5  # measured: 4.3e-6 encoding, 8.6e-6 decoding, both of the published width


@cache
def pair(dim: int):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(base_dim=dim).eval()
    ours = WanVAE(VAEConfig(dim=dim), device=torch.device("meta")).eval()
    state = theirs.state_dict()
    for parameter in state.values():
        if parameter.ndim <= 4 and parameter.unique().numel() == 1:  # norms are all ones: stir
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.load_state_dict(state)
    ours.load_state_dict({k: state[diffusers_key(k)] for k in ours.state_dict()}, assign=True)
    return ours, theirs


@pytest.fixture(scope="module", autouse=True)
def forget_pairs():
    yield
    pair.cache_clear()


# Frames do not know of later ones: 81 of the published width hold the 33 as well.
@pytest.mark.parametrize(
    ("dim", "frames", "height", "width"),
    [(NARROW, frames, 32, 48) for frames in (1, 5, 17, 33, 81)]
    + [(PUBLISHED, frames, 16, 16) for frames in (1, 5, 17, 81)],
)
@torch.no_grad()
def test_encode_and_decode_equal_diffusers(dim, frames, height, width, record_property):
    ours, theirs = pair(dim)
    torch.manual_seed(frames)
    video = torch.rand(1, 3, frames, height, width) * 2 - 1
    expected = theirs.encode(video).latent_dist.mode()
    latents = ours.encode(video)
    record_property("vae_encode_fp32_vs_diffusers", relative(latents, expected))
    assert relative(latents, expected) < TOLERANCE
    expected_video = theirs.decode(expected).sample
    difference = relative(ours.decode(expected), expected_video)
    record_property("vae_decode_fp32_vs_diffusers", difference)
    assert difference < TOLERANCE
    if frames < 81 or dim == NARROW:
        assert relative(ours.encode_whole(video), expected) < TOLERANCE
        assert relative(ours.decode_whole(expected).clamp(-1, 1), expected_video) < TOLERANCE


@pytest.mark.parametrize("dim", [NARROW, PUBLISHED])
@torch.no_grad()
def test_bf16_drift_is_not_worse_than_theirs(dim, record_property):
    ours, theirs = pair(dim)
    torch.manual_seed(3)
    z = torch.randn(1, 16, 3, 4, 6)
    truth = ours.decode(z)
    mine, other = deepcopy(ours).bfloat16(), deepcopy(theirs).bfloat16()
    drift = relative(mine.decode(z.bfloat16()).float(), truth)
    drift_theirs = relative(other.decode(z.bfloat16()).sample.float(), truth)
    record_property(f"vae_bf16_drift_ours_{dim}", drift)
    record_property(f"vae_bf16_drift_diffusers_{dim}", drift_theirs)
    assert drift <= 1.5 * drift_theirs
