"""Strips, streams and whole clips of the VAE's decoder give the same frames."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from wanexperts.tests.helpers import random_state, relative
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.vae import CausalCache, DecodePlan, WanVAE, strips
from wanexperts.wan.vae.blocks import Upsample
from wanexperts.wan.vae.strips import halos, run_strip, split_rows

TOLERANCE = 1e-5  # measured: 6.7e-6 of 1, against the whole clip in another order of sums


def make(dim: int) -> WanVAE:
    vae = WanVAE(VAEConfig(dim=dim)).eval().requires_grad_(False)
    state = random_state(vae, seed=0)
    generator = torch.Generator().manual_seed(1)
    for key in [key for key in state if key.endswith("gamma")]:
        state[key] += 0.3 * torch.randn(state[key].shape, generator=generator)
    vae.load_state_dict(state)
    return vae


@pytest.fixture(scope="module")
def vae():
    return make(16)


def decode(vae, latents, **plan):
    return torch.cat(list(vae.decode_stream(latents, DecodePlan(**plan))), dim=2)


@pytest.mark.parametrize(
    ("frames", "height", "width", "batch", "counts"),
    [
        (1, 3, 4, 2, (2, 4, 6)),
        (2, 7, 3, 1, (2, 3, 8, 14)),
        (5, 5, 2, 2, (2, 4, 8)),
        (9, 3, 2, 1, (2, 4)),
        (21, 2, 1, 1, (2, 4)),
    ],
)
def test_stream_strips_and_whole_agree(vae, frames, height, width, batch, counts, record_property):
    torch.manual_seed(frames)
    latents = torch.randn(batch, 16, frames, height, width)
    with torch.no_grad():
        whole = vae.decode_whole(latents).clamp(-1, 1)
    assert 0.1 < whole.std() < 0.9
    streamed = decode(vae, latents)
    assert streamed.shape == (batch, 3, 4 * frames - 3, 8 * height, 8 * width)
    record_property("vae_stream_vs_whole_fp32", relative(streamed, whole))
    assert (streamed - whole).abs().max() < TOLERANCE
    for count in counts:
        in_strips = decode(vae, latents, strips=count, offloaded=count // 2)
        record_property("vae_strips_vs_stream_fp32", relative(in_strips, streamed))
        assert (in_strips - streamed).abs().max() < TOLERANCE


@pytest.fixture(scope="module")
def published():
    return make(96)


def test_strips_agree_at_the_published_width(published):
    latents = torch.randn(1, 16, 2, 3, 2, generator=torch.Generator().manual_seed(4))
    streamed = decode(published, latents)
    assert 0.1 < streamed.std() < 0.9
    for count in (2, 4):
        in_strips = decode(published, latents, strips=count)
        # Measured: 1.8e-6, and 1.5e-6 without AVX512.
        assert (in_strips - streamed).abs().max() < TOLERANCE


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="seen with oneDNN on AVX512 alone"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strips_are_bit_equal_at_the_published_width(published, dtype):
    # oneDNN's order of sums does not depend on the number of rows. With a batch of one and few
    # values PyTorch computes float32 itself, equal to 3e-6 (above).
    vae = deepcopy(published).to(dtype)
    latents = torch.randn(2, 16, 2, 3, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    streamed = decode(vae, latents)
    for count in (2, 4):
        assert torch.equal(decode(vae, latents, strips=count), streamed)


CHANNELS = [64, 32, 32, 32, 32, 16, 16, 16, 16]


@pytest.mark.parametrize("first", range(9))
def test_halos_are_as_wide_as_needed_and_no_wider(vae, first):
    # What no number can show (the outermost row weighs 1e-6), NaN does: it reaches all that sees it.
    layers, (start, stop) = vae.decoder.segments()[-1][first:], (12, 15)
    halo = halos(layers)[0]
    for row, reaches in [(start - halo, True), (start - halo - 1, False),
                         (stop + halo - 1, True), (stop + halo, False)]:  # fmt: skip
        x = torch.randn(1, CHANNELS[first], 30, 2)
        x[:, :, row] = torch.nan
        with torch.no_grad():
            strip = run_strip(layers, x, (start, stop), CausalCache())
            whole = run_strip(layers, x, (0, 30), CausalCache())
        assert strip.isnan().any() == reaches
        scale = whole.shape[2] // 30
        assert torch.equal(strip.isnan(), whole[:, :, scale * start : scale * stop].isnan())


def test_a_halo_too_small_is_seen(vae, monkeypatch):
    torch.manual_seed(0)
    latents = torch.randn(1, 16, 3, 6, 3)
    streamed = decode(vae, latents)
    for short in ([6, 10, 8, 6, 4, 7, 5, 3, 0], [6, 10, 8, 6, 4, 6, 4, 2, 1]):
        monkeypatch.setattr(strips, "halos", lambda layers, short=short: short)
        assert (decode(vae, latents, strips=2) - streamed).abs().max() > 100 * TOLERANCE


def test_no_strip_may_see_another_s_past(vae):
    layers, x = vae.decoder.segments()[-1], torch.randn(1, 64, 8, 3)
    caches = [CausalCache() for _ in range(2)]
    with torch.no_grad():
        for rows, cache in zip([(0, 4), (4, 8)], caches, strict=True):
            run_strip(layers, x, rows, cache)
        with pytest.raises(RuntimeError, match="must match"):
            run_strip(layers, x, (2, 8), caches[0])


def test_rows_are_split_evenly_and_completely():
    assert split_rows(7, 3) == [(0, 2), (2, 4), (4, 7)]
    for rows in range(1, 40):
        for count in range(1, rows + 1):
            found = split_rows(rows, count)
            assert [r for start, stop in found for r in range(start, stop)] == [*range(rows)]
            sizes = {stop - start for start, stop in found}
            assert max(sizes) - min(sizes) <= 1


def test_what_is_kept_elsewhere_is_kept_elsewhere(vae, monkeypatch):
    moved = []
    true = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        moved.extend(a for a in args if isinstance(a, torch.device))
        return true(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    latents = torch.randn(1, 16, 2, 2, 2)
    decode(vae, latents, strips=2)
    resident = len(moved)
    decode(vae, latents, strips=2, offloaded=2)
    assert len(moved) > resident


def test_where_the_past_waits_changes_no_bit(vae):
    latents = torch.randn(1, 16, 4, 4, 3, generator=torch.Generator().manual_seed(3))
    for count in (1, 2, 4):
        resident = decode(vae, latents, strips=count)
        for offloaded in {1, count}:
            assert torch.equal(decode(vae, latents, strips=count, offloaded=offloaded), resident)


def test_refusals(vae):
    latents = torch.zeros(1, 16, 1, 2, 2)
    with pytest.raises(ValueError, match="strips=5 does not fit 4 rows; use 1 to 4"):
        decode(vae, latents, strips=5)
    with pytest.raises(ValueError, match="use 1 strip or more"):
        decode(vae, latents, strips=0)
    with pytest.raises(ValueError, match="offload no more than all of them"):
        decode(vae, latents, strips=2, offloaded=3)
    with pytest.raises(TypeError, match="AttentionBlock sees more than some rows"):
        halos(vae.decoder.segments()[0])
    assert isinstance(vae.decoder.segments()[-1][0], Upsample)
