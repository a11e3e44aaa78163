"""The VAE by its own rules: streaming equals whole, memory of a stream, scaling, refusals."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.vae import DecodePlan, DecoderRun, WanVAE, denormalize, normalize
from wanexperts.wan.vae.blocks import ChannelNorm

CONFIG = VAEConfig(dim=8)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return WanVAE(CONFIG).eval().requires_grad_(False)


def test_official_size_and_keys():
    vae = WanVAE(VAEConfig(), device=torch.device("meta"))
    state = vae.state_dict()
    assert len(state) == 194
    assert sum(tensor.numel() for tensor in state.values()) == 126_892_531
    assert state["encoder.downsamples.5.time_conv.weight"].shape == (192, 192, 3, 1, 1)
    assert state["decoder.upsamples.3.time_conv.weight"].shape == (768, 384, 3, 1, 1)
    assert state["decoder.middle.1.to_qkv.weight"].shape == (1152, 384, 1, 1)


def test_stream_equals_whole_clip(vae):
    torch.manual_seed(1)
    video = torch.rand(2, 3, 13, 16, 32) * 2 - 1
    latents = vae.encode(video)
    assert latents.shape == (2, 16, 4, 2, 4)
    assert torch.allclose(latents, vae.encode_whole(video), atol=1e-6)
    frames = list(vae.decode_stream(latents))
    assert [chunk.shape[2] for chunk in frames] == [1, 4, 4, 4]
    whole = vae.decode_whole(latents).clamp(-1, 1)
    assert torch.allclose(torch.cat(frames, dim=2), whole, atol=1e-5)


def test_time_is_causal(vae):
    torch.manual_seed(2)
    latents = torch.randn(1, 16, 4, 2, 2)
    later = latents.clone()
    later[:, :, 3] += 1.0
    first, second = vae.decode(latents), vae.decode(later)
    assert torch.equal(first[:, :, :9], second[:, :, :9])
    assert not torch.equal(first[:, :, 9:], second[:, :, 9:])


def test_a_stream_holds_the_same_bytes_however_long_it_runs(vae):
    run, held = DecoderRun(DecodePlan(strips=2)), []
    with torch.no_grad():
        for frame in torch.randn(6, 1, 16, 2, 2):
            list(vae.decoder.step(frame, run))
            held.append([cache.nbytes for cache in (run.lower, *run.strips)])
    assert held[2:] == [held[2]] * 4
    assert min(held[0]) > 0


def test_two_streams_at_once_do_not_mix(vae):
    a, b = torch.randn(2, 1, 16, 3, 2, 2)
    pairs = list(zip(vae.decode_stream(a), vae.decode_stream(b), strict=True))
    assert torch.equal(torch.cat([left for left, _ in pairs], dim=2), vae.decode(a))
    assert torch.equal(torch.cat([right for _, right in pairs], dim=2), vae.decode(b))


def test_normalisation_round_trip():
    raw = torch.randn(1, 16, 2, 3, 3)
    assert torch.allclose(denormalize(normalize(raw, CONFIG), CONFIG), raw, atol=1e-6)
    mean = torch.tensor(CONFIG.latent_mean).view(1, 16, 1, 1, 1)
    assert torch.equal(normalize(mean, CONFIG), torch.zeros_like(mean))


def test_faint_half_precision_features_survive_the_norm():
    norm = ChannelNorm(16, 3, factory={"dtype": torch.float16})
    faint = torch.full((1, 16, 1, 1, 1), 1e-5, dtype=torch.float16)
    assert torch.allclose(norm(faint).float(), torch.ones(1), atol=1e-2)  # 1 / 1e-5 overflows


def test_refusals(vae):
    with pytest.raises(ValueError, match=r"num_frames=4 is not 4k\+1; use 1 or 5"):
        vae.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(ValueError, match="width=20 is not a positive multiple of 16"):
        vae.encode(torch.zeros(1, 3, 1, 16, 20))
    with pytest.raises(ValueError, match=r"it needs \(batch, 16, frames"):
        vae.decode(torch.zeros(1, 48, 1, 2, 2))
    with pytest.raises(ValueError, match=r"it needs \(batch, 16, frames"):
        normalize(torch.zeros(1, 48, 1, 2, 2), CONFIG)
    with pytest.raises(ValueError, match="chunk 1 has 2 frames, not 4"):
        list(vae.encode_stream([torch.zeros(1, 3, 1, 16, 16), torch.zeros(1, 3, 2, 16, 16)]))


@torch.no_grad()
def test_frames_may_lie_in_memory_as_images_do(vae):
    """A clip of images has its channels side by side, and may be a window of larger ones."""
    images = torch.rand(9, 40, 56, 3) * 2 - 1
    clip = images[:, 4:36, 2:50].permute(3, 0, 1, 2)[None]
    wanted = vae.encode_whole(clip.contiguous())
    got = torch.cat(list(vae.encode_stream(torch.split(clip, [1, 4, 4], dim=2))), dim=2)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
