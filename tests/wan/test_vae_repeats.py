"""Encoding a clip whose end stands still costs less, with the same latents bit for bit."""

from __future__ import annotations

import pytest
import torch
from wanexperts.tests.helpers import random_state
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.vae import WanVAE, encoding

CHUNKS = 34
GREY = 0.25


@pytest.fixture(scope="module")
def vae():
    vae = WanVAE(VAEConfig(dim=8)).eval().requires_grad_(False)
    vae.load_state_dict(random_state(vae, seed=0))
    return vae


@pytest.fixture
def runs(monkeypatch):
    """How often each stage runs: stages are told apart by their layers."""
    counted = []
    true = encoding._through

    def through(layers, frames, cache):
        counted.append(len(layers))
        return true(layers, frames, cache)

    monkeypatch.setattr(encoding, "_through", through)
    return counted


def chunks_of(picture, moving=()):
    """One picture, some frames that move, and grey to the end, as chunks of 1 and then 4 frames."""
    grey = torch.full((*picture.shape[:2], 4, *picture.shape[3:]), GREY)
    return [picture, *moving, *[grey] * (CHUNKS - 1 - len(moving))]


def plain(vae, chunks, monkeypatch):
    """The same stream without recalling anything."""
    with monkeypatch.context() as patch:
        patch.setattr(encoding.EncoderRun, "stage", lambda self, index, layers, frames, repeated: (
            encoding._through(layers, frames, self.cache), False))  # fmt: skip
        return list(vae.encode_stream(chunks))


def test_a_still_end_is_recalled_bit_for_bit(vae, runs, monkeypatch):
    torch.manual_seed(0)
    clip = chunks_of(torch.rand(1, 3, 1, 16, 32))
    wanted = plain(vae, clip, monkeypatch)
    runs.clear()
    found = list(vae.encode_stream(clip))
    assert all(map(torch.equal, found, wanted))
    # How far back the layers of a stage see says after how many grey chunks its past stands still:
    # 5 convolutions at full rate, then 4 and a halving, 4 and a halving, and 9; every stage but the
    # first waits for the one before it.
    assert [runs.count(n) for n in (4, 3, 6)] == [5, 7 + 12, 30]
    assert len(runs) == 5 + 7 + 12 + 30


def test_what_moves_again_is_encoded_again(vae, runs, monkeypatch):
    torch.manual_seed(1)
    picture, moving = torch.rand(1, 3, 1, 16, 16), torch.rand(1, 3, 4, 16, 16)
    grey = torch.full_like(moving, GREY)
    clip = [picture, *[grey] * 8, moving, *[grey] * 9, grey * 0, *[grey] * 3]
    assert all(map(torch.equal, vae.encode_stream(clip), plain(vae, clip, monkeypatch)))


def test_equal_chunks_in_other_memory_count_as_repeated(vae, runs):
    clip = [chunk.clone() for chunk in chunks_of(torch.rand(1, 3, 1, 16, 16))]
    list(vae.encode_stream(clip))
    assert runs.count(4) == 5


def test_a_moving_clip_is_never_recalled(vae, runs):
    torch.manual_seed(2)
    list(vae.encode_stream([torch.rand(1, 3, 1, 16, 16), *torch.rand(5, 1, 3, 4, 16, 16)]))
    assert len(runs) == 6 * 4


def test_a_past_that_still_moves_is_not_taken_for_still(vae, monkeypatch):
    # Broken on purpose: with every past called still, a stage would be frozen before its time.
    clip = chunks_of(torch.rand(1, 3, 1, 16, 16))
    wanted = plain(vae, clip, monkeypatch)
    monkeypatch.setattr(torch, "equal", lambda a, b: a.shape == b.shape)
    found = list(vae.encode_stream(clip))
    monkeypatch.undo()
    assert not all(map(torch.equal, found, wanted))
