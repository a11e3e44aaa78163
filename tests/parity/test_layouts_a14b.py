"""The layouts at the published widths: one A14B block and one umT5-XXL layer, a file of a gigabyte at a time."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.checkpoint import (
    check_complete,
    load_text_encoder,
    load_transformer,
    open_checkpoint,
)
from wanexperts.wan.config import T2V_A14B

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

from wanexperts.tests.parity import networks
from wanexperts.tests.parity.layouts import (
    Kind,
    Scaled,
    State,
    Written,
    as_bytes,
    gguf_file,
    gguf_kind,
    plain,
    random_weights,
    sharded,
    single,
)
from wanexperts.tests.parity.loaded import assert_holds, difference

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
EXPERT = replace(T2V_A14B.transformer, num_layers=1)
# The vocabulary alone would be 4 GB in float32; nothing depends on its length.
TEXT = replace(T2V_A14B.text, num_layers=1, vocab_size=512)
GRID = (1, 2, 4)
FEW_ROWS = replace(EXPERT, text_len=16)
"""512 rows of text are nearly all of the work, and each goes the same way."""
SHARD = 400_000_000
NOTE = {"format": "float8_e4m3fn"}
SPIECE = sentencepiece_model(60)
PACKED_ROWS = Scaled(dtype=torch.int8, leaf="weight_scale", shape=(-1, 1))
Layout = Callable[[Path, State], Written]


def diffusers_folder(folder: Path, state: State) -> Written:
    model = networks.diffusers_expert(EXPERT, state)
    model.save_pretrained(folder / "transformer", max_shard_size=SHARD)
    return Written(path=folder / "transformer", meaning={k: t.float() for k, t in state.items()})


def gguf_layout(kind: Kind) -> Layout:
    """Random blocks: to quantise a gigabyte in numpy takes a minute."""
    return lambda folder, state: gguf_file(
        folder / "model.gguf", "wan", state, gguf_kind(kind), draw=True
    )


EXPERT_LAYOUTS: dict[str, Layout] = {
    "official file": lambda f, s: single(f / "a.safetensors", s, plain(BF16)),
    "official shards": lambda f, s: sharded(f / "high_noise_model", s, plain(BF16), size=SHARD),
    "diffusers": diffusers_folder,
    "scaled_fp8": lambda f, s: single(
        f / "a.safetensors", s, Scaled(dtype=E4M3), extra={"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    ),
    "comfy_quant": lambda f, s: single(
        f / "a.safetensors", s, Scaled(dtype=E4M3, leaf="weight_scale", note=NOTE)
    ),
    "LightX2V int8": lambda f, s: single(f / "a.safetensors", s, PACKED_ROWS),
    "GGUF Q8_0": gguf_layout(Kind.Q8_0),
    "GGUF Q4_K": gguf_layout(Kind.Q4_K),
}

HF = {"name": networks.hf_name, "extra": {"spiece_model": as_bytes(SPIECE)}}


def official_text(folder: Path, state: State) -> Written:
    (folder / "spiece.model").write_bytes(SPIECE)
    return single(folder / "models_t5_umt5-xxl-enc-bf16.pth", state, plain(BF16))


def gguf_text(folder: Path, state: State) -> Written:
    choose = gguf_kind(Kind.Q8_0, Kind.Q8_0)
    return gguf_file(
        folder / "a.gguf",
        "t5encoder",
        state,
        choose,
        name=networks.t5_gguf_name,
        spiece=SPIECE,
        draw=True,
    )


TEXT_LAYOUTS: dict[str, Layout] = {
    "official": official_text,
    "ComfyUI scaled": lambda f, s: single(
        f / "a.safetensors", s, Scaled(dtype=E4M3, rest=torch.float16), **HF
    ),
    "LightX2V int8": lambda f, s: single(f / "a.safetensors", s, PACKED_ROWS, **HF),
    "GGUF Q8_0": gguf_text,
}


@pytest.fixture(scope="module")
def expert() -> Iterator[State]:
    state = random_weights(networks.expert_shapes(EXPERT), 1, BF16)
    yield state
    state.clear()


@pytest.fixture(scope="module")
def text() -> State:
    return random_weights(networks.text_shapes(TEXT), 2, BF16)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)
    gc.collect()


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_expert(folder, expert, layout, record_property):
    written = EXPERT_LAYOUTS[layout](folder, expert)
    checkpoint = open_checkpoint(written.path, "transformer")
    check_complete(checkpoint)
    assert checkpoint.tensors.keys() == written.meaning.keys()
    model = load_transformer(written.path)
    assert model.config == EXPERT
    assert_holds(model, written.meaning)
    model.config = FEW_ROWS
    oracle = networks.diffusers_expert(EXPERT, written.meaning)
    found = difference(model, oracle, lambda network: networks.run_expert(network, FEW_ROWS, GRID))
    record_property("a14b_layouts_vs_diffusers", found)
    assert found < 1e-5


@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
def test_text_encoder(folder, text, layout, record_property):
    written = TEXT_LAYOUTS[layout](folder, text)
    checkpoint = open_checkpoint(written.path, "text_encoder")
    check_complete(checkpoint)
    encoder, _ = load_text_encoder(written.path)
    assert encoder.config == TEXT
    assert_holds(encoder, written.meaning)
    oracle = networks.transformers_text(TEXT, written.meaning)
    found = difference(encoder, oracle, lambda network: networks.run_text(network, TEXT))
    record_property("umt5_xxl_layouts_vs_transformers", found)
    assert found < 1e-5
