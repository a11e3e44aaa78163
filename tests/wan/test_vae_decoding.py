"""Decoding goes on in a smaller plan from the frame where memory ran out, and chooses by what is free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wanexperts.tests.helpers import random_state
from wanexperts.wan.checkpoint import load_vae
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.pipeline import decode_frames, decoding
from wanexperts.wan.vae import (
    COUNTED,
    PLANS,
    DecodePlan,
    TinyVAE,
    WanVAE,
    decode_bytes,
    decode_dtype,
    decode_within,
)
from wanexperts.wan.video import to_uint8

TOLERANCE = 1e-5  # measured: 2.8e-6
CPU = torch.device("cpu")
CONFIG = VAEConfig(dim=16)
LATENTS = torch.randn(1, 16, 4, 6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(random_state(WanVAE(CONFIG), seed=0), path)
    return path


@pytest.fixture(scope="module")
def vae(file: Path) -> WanVAE:
    return load_vae(file)


class Short:
    """Every try of a decode runs out of memory at the latent frame it is given, if any; notes the plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Mapping[int, int]) -> None:
        self.tried: list[DecodePlan] = []
        true = WanVAE.decode_stream

        def decode_stream(vae, latents, plan):
            self.tried.append(plan)
            for index, chunk in enumerate(true(vae, latents, plan)):
                if fails.get(len(self.tried) - 1) == index:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. More words.")
                yield chunk

        monkeypatch.setattr(WanVAE, "decode_stream", decode_stream)


def test_what_runs_out_of_memory_goes_on_where_it_stopped(vae, monkeypatch, caplog) -> None:
    wanted = list(vae.decode_stream(LATENTS))
    short = Short(monkeypatch, {0: 2, 1: 0, 2: 3})
    given = list(decode_within(vae, LATENTS, math.inf, torch.clone))
    assert short.tried == list(PLANS[:4])
    assert [chunk.shape[2] for chunk in given] == [1, 4, 4, 4]
    for chunk, want in zip(given, wanted, strict=True):
        assert (chunk - want).abs().max() < TOLERANCE
    places = [f"CUDA out of memory, at latent frame {number} of 4" for number in (3, 3, 4)]
    assert [record.args[0] for record in caplog.records] == places


def test_what_finishing_takes_counts_and_loses_no_frame(vae) -> None:
    wanted, calls = list(vae.decode_stream(LATENTS)), []

    def finish(chunk: torch.Tensor) -> torch.Tensor:
        calls.append(chunk.shape[2])
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. More words.")
        return chunk

    given = list(decode_within(vae, LATENTS, math.inf, finish))
    assert calls == [1, 4, 4, 1, 4, 4, 4]
    assert len(given) == len(wanted)
    for chunk, want in zip(given, wanted, strict=True):
        assert (chunk - want).abs().max() < TOLERANCE


def test_the_first_plan_follows_the_free_memory(vae, monkeypatch) -> None:
    short = Short(monkeypatch, {})
    needs = [decode_bytes(48, 32, CONFIG, torch.float32, plan) for plan in PLANS]
    for need in needs:
        list(decode_within(vae, LATENTS[:, :, :1], need / COUNTED + 1, torch.clone))
    fastest = [
        next(plan for plan, other in zip(PLANS, needs, strict=True) if other <= need)
        for need in needs
    ]
    assert short.tried == fastest
    assert len(set(fastest)) > 3


def test_the_library_decodes_on_the_cpu_as_it_always_did(vae, file: Path, monkeypatch) -> None:
    wanted = [to_uint8(chunk[0]) for chunk in vae.decode_stream(LATENTS)]
    short = Short(monkeypatch, {})
    monkeypatch.setattr(decoding, "free_memory", lambda _: 1)
    given = list(decode_frames(file, LATENTS, CPU))
    assert short.tried == [PLANS[0]]
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))
    assert decode_dtype("cpu") == torch.float32


def test_the_library_decodes_on_cuda_in_bfloat16_by_the_free_memory(
    file: Path, monkeypatch
) -> None:
    wanted = list(decode_frames(file, LATENTS, CPU, bits=16))
    assert decode_dtype("cuda") == torch.bfloat16
    # What asks for CUDA is told of it; the computation stays here.
    monkeypatch.setattr(decoding, "decode_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(decoding, "_free", lambda _: 1)
    short = Short(monkeypatch, {})
    given = list(decode_frames(file, LATENTS, CPU, bits=16))
    needs = {plan: decode_bytes(48, 32, CONFIG, torch.bfloat16, plan) for plan in PLANS}
    assert short.tried == [min(PLANS, key=needs.__getitem__)] != [PLANS[0]]
    assert [frames.shape for frames in given] == [frames.shape for frames in wanted]
    assert {frames.dtype for frames in given} == {torch.uint16}
    apart = [(a.int() - b.int()).abs().max() / 65535 for a, b in zip(given, wanted, strict=True)]
    assert 1e-4 < max(apart) < 0.1  # bfloat16; measured: 0.017


def test_after_the_last_plan_one_sentence_says_what_helps(file: Path, monkeypatch) -> None:
    short = Short(monkeypatch, dict.fromkeys(range(len(PLANS)), 1))
    frames = decode_frames(file, LATENTS, CPU, kept=Path("clip.latent"))
    assert next(frames).shape == (1, 48, 32, 3)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        next(frames)
    assert short.tried == list(PLANS)
    assert str(caught.value) == (
        "decoding 32x48 in float32 needs more memory than is free, in the smallest strips too (CUDA "
        "out of memory, at latent frame 2 of 4); use fewer pixels or a tiny decoder such as taew2_1 "
        "or bfloat16; the latents are in clip.latent"
    )
    # Nothing that a frame had made is held by the error.
    assert caught.value.__context__ is None


def test_a_tiny_decoder_has_no_smaller_plan(monkeypatch) -> None:
    def decode_stream(_decoder, _latents):
        raise torch.cuda.OutOfMemoryError("none left. More words.")
        yield

    monkeypatch.setattr(TinyVAE, "decode_stream", decode_stream)
    tiny = TinyVAE(CONFIG, normalized=False)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        list(decode_within(tiny, LATENTS.bfloat16(), math.inf, torch.clone))
    assert str(caught.value) == (
        "decoding 32x48 in bfloat16 needs more memory than is free (none left, at latent frame 1 of 4); "
        "use fewer pixels"
    )
