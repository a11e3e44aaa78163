"""Conversion between layouts: other programs load the result, the way back gives the same weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.checkpoint import (
    family_defaults,
    identify,
    load_text_encoder,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from wanexperts.wan.config import TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.convert import convert, weights
from wanexperts.wan.files import read_header
from wanexperts.wan.files.write import Entry, write_safetensors

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

import diffusers
import transformers
from wanexperts.tests.parity import networks
from wanexperts.tests.parity.layouts import (
    Kind,
    Scaled,
    as_bytes,
    gguf_file,
    gguf_kind,
    plain,
    random_weights,
    sharded,
    single,
)
from wanexperts.tests.parity.loaded import assert_holds, difference

EXPERT = TransformerConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=2, text_dim=64)
TEXT = TextConfig(
    vocab_size=64, dim=64, attn_dim=64, num_heads=2, ffn_dim=96, num_layers=2, num_buckets=32
)
SMALL_VAE = VAEConfig(dim=8)
SHARD = 400_000
BF16 = torch.bfloat16
SPIECE = sentencepiece_model(60)
STATES = {
    "expert": random_weights(networks.expert_shapes(EXPERT), 1),
    "text": random_weights(networks.text_shapes(TEXT), 2),
    "vae": random_weights(networks.vae_shapes(SMALL_VAE), 3),
}
GRID = (2, 4, 4)
HIGH = "wan2.2_t2v_high_noise_14B_fp32.safetensors"


def to(source: Path, out: Path, layout: str, **options: object) -> Path:
    """``source`` in another layout."""
    written = convert(open_checkpoint(source), out, layout=layout, **options)
    assert all(path.is_file() for path in written)
    made = {path for path in out.rglob("*") if path.is_file()} if out.is_dir() else {out}
    assert made <= set(written)
    return out


def write_expert(folder: Path, name: str = HIGH) -> Path:
    return single(folder / name, STATES["expert"], plain(torch.float32)).path


def write_text(folder: Path) -> Path:
    path = folder / "umt5.safetensors"
    extra = {"spiece_model": as_bytes(SPIECE)}
    return single(path, STATES["text"], plain(BF16), name=networks.hf_name, extra=extra).path


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Names, dtypes and bits."""
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def run_expert(model: torch.nn.Module) -> torch.Tensor:
    return networks.run_expert(model, EXPERT, GRID)


def run_text(model: torch.nn.Module) -> torch.Tensor:
    return networks.run_text(model, TEXT)


@pytest.mark.parametrize("shard", [SHARD, 10**9])
def test_expert_there_and_back(tmp_path, shard):
    folder = to(write_expert(tmp_path), tmp_path / "transformer", "diffusers", shard_bytes=shard)
    theirs = diffusers.WanTransformer3DModel.from_pretrained(folder, local_files_only=True)
    original = networks.diffusers_expert(EXPERT, STATES["expert"])
    assert equal(theirs.state_dict(), original.state_dict())
    assert difference(theirs.eval(), original, run_expert) == 0
    one = to(folder, tmp_path / "one.safetensors", "single")
    assert equal(load_file(one), STATES["expert"])
    official = to(one, tmp_path / "high", "official", shard_bytes=shard)
    assert (len(list(official.glob("*.safetensors"))) > 1) == (shard == SHARD)
    assert_holds(load_transformer(official), STATES["expert"])
    config = json.loads((official / "config.json").read_text())
    assert (config["model_type"], config["dim"], config["num_layers"]) == ("t2v", 128, 2)
    back = to(official, tmp_path / "back.safetensors", "single")
    assert equal(load_file(back), STATES["expert"])


def test_shards_are_those_of_the_index(tmp_path):
    folder = to(write_expert(tmp_path), tmp_path / "high", "official", shard_bytes=SHARD)
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    held = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert index["weight_map"] == {key: name for name, state in held.items() for key in state}
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for s in held.values() for t in s.values()
    )
    # A tensor larger than the limit has a shard of its own.
    assert all(
        len(state) == 1 or sum(t.nbytes for t in state.values()) <= SHARD for state in held.values()
    )


def test_vae_there_and_back(tmp_path):
    pth = single(tmp_path / "Wan2.1_VAE.pth", STATES["vae"], plain(torch.float32)).path
    folder = to(pth, tmp_path / "vae", "diffusers")
    theirs = diffusers.AutoencoderKLWan.from_pretrained(folder, local_files_only=True)
    original = networks.diffusers_vae(SMALL_VAE, STATES["vae"])
    assert equal(theirs.state_dict(), original.state_dict())
    unlike = {
        key
        for key, value in original.config.items()
        if not key.startswith("_") and json.dumps(theirs.config[key]) != json.dumps(value)
    }
    assert not unlike
    one = to(folder, tmp_path / "vae.safetensors", "single")
    assert equal(load_file(one), STATES["vae"])
    back = to(one, tmp_path / "back.pth", "official")
    assert equal(torch.load(back, weights_only=True), STATES["vae"])
    assert_holds(load_vae(back), STATES["vae"])


def test_text_encoder_there_and_back(tmp_path):
    source = write_text(tmp_path)
    folder = to(source, tmp_path / "text_encoder", "diffusers", shard_bytes=100_000)
    theirs = transformers.UMT5EncoderModel.from_pretrained(
        folder, local_files_only=True, dtype="auto"
    )
    assert theirs.dtype == BF16
    stored = {key: tensor.to(BF16) for key, tensor in STATES["text"].items()}
    meaning = {key: tensor.float() for key, tensor in stored.items()}
    original = networks.transformers_text(TEXT, meaning)
    assert difference(theirs.float().eval(), original, run_text) == 0
    unlike = {
        key
        for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads",
                    "relative_attention_num_buckets", "relative_attention_max_distance",
                    "layer_norm_epsilon", "dense_act_fn", "is_gated_act")
        if getattr(theirs.config, key) != getattr(original.config, key)
    }  # fmt: skip
    assert not unlike
    (tmp_path / "official").mkdir()
    pth = to(folder, tmp_path / "official" / "models_t5.pth", "official")
    assert equal(torch.load(pth, weights_only=True), stored)
    encoder, tokenizer = load_text_encoder(pth)
    assert_holds(encoder, meaning)
    assert (pth.parent / "google" / "umt5-xxl" / "spiece.model").read_bytes() == SPIECE
    one = to(pth, tmp_path / "back.safetensors", "single")
    assert equal(load_file(one), load_file(source))
    assert tokenizer.vocab_size == load_text_encoder(one)[1].vocab_size


PACKED = {
    "fp8 scaled": lambda path: single(path, STATES["expert"], Scaled(dtype=torch.float8_e4m3fn)),
    "fp8 plain": lambda path: single(path, STATES["expert"], plain(torch.float8_e5m2)),
    "int8": lambda path: single(
        path, STATES["expert"], Scaled(dtype=torch.int8, leaf="weight_scale", shape=(-1, 1))
    ),
    "Q8_0": lambda path: gguf_file(path, "wan", STATES["expert"], gguf_kind(Kind.Q8_0)),
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_packed_weights_are_unpacked_to_the_dtype_asked_for(tmp_path, packing, dtype):
    written = PACKED[packing](tmp_path / "packed")
    with pytest.raises(ValueError, match="is packed; say which dtype to unpack it to: float32"):
        convert(open_checkpoint(written.path), tmp_path / "out", layout="diffusers")
    out = to(written.path, tmp_path / "out.safetensors", "single", dtype=dtype)
    assert equal(load_file(out), {key: t.to(dtype) for key, t in written.meaning.items()})


def test_another_dtype(tmp_path):
    out = to(write_expert(tmp_path), tmp_path / "out", "official", dtype=torch.float16)
    held = {key: t for file in out.glob("*.safetensors") for key, t in load_file(file).items()}
    assert equal(held, {key: t.half() for key, t in STATES["expert"].items()})


@pytest.mark.parametrize(
    ("name", "role", "release"),
    [
        (HIGH, "high_noise", "Wan2.2"),
        ("Wan2_2-T2V-A14B-LOW_fp32.safetensors", "low_noise", "Wan2.2"),
        ("wan2.1_t2v_14B.safetensors", None, "Wan2.1"),
        ("unknown.safetensors", None, None),
    ],
)
@pytest.mark.parametrize("layout", ["single", "official", "diffusers"])
def test_a_renamed_file_still_knows_what_it_is(tmp_path, name, role, release, layout):
    out = to(write_expert(tmp_path, name), tmp_path / "renamed", layout, shard_bytes=SHARD)
    (tmp_path / name).unlink()
    known = identify(open_checkpoint(out))
    assert (known.role, known.release) == (role, release)
    assert known.role_source == ("header" if role else "")
    again = identify(open_checkpoint(to(out, tmp_path / "again.safetensors", "single")))
    assert (again.role, again.release) == (role, release)


def test_the_boundary_of_a_diffusers_repository_is_kept(tmp_path):
    sharded(tmp_path / "transformer", STATES["expert"], plain(BF16), size=SHARD)
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.9}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    out = to(tmp_path / "transformer", tmp_path / "elsewhere.safetensors", "single")
    assert family_defaults(open_checkpoint(out)).boundary == 0.9
    assert identify(open_checkpoint(out)).role == "high_noise"


def text_without_tokenizer(folder: Path) -> Path:
    return single(folder / "bare.safetensors", STATES["text"], plain(BF16)).path


def incomplete(folder: Path) -> Path:
    state = {key: t for key, t in STATES["expert"].items() if key != "blocks.1.norm3.bias"}
    return single(folder / "incomplete.safetensors", state, plain(BF16)).path


def image_expert(folder: Path) -> Path:
    wide = torch.zeros(128, 36, 1, 2, 2)
    state = STATES["expert"] | {"patch_embedding.weight": wide}
    return single(folder / "i2v.safetensors", state, plain(BF16)).path


REFUSED = {
    "text without tokenizer": (text_without_tokenizer, "holds no tokenizer"),
    "incomplete": (incomplete, r"1 missing \(first: blocks\.1\.norm3\.bias\)"),
    "another model": (image_expert, "is an image-to-video expert"),
}


@pytest.mark.parametrize("layout", ["single", "official", "diffusers"])
@pytest.mark.parametrize("source", REFUSED)
def test_a_refusal_writes_nothing(tmp_path, source, layout):
    write, sentence = REFUSED[source]
    (tmp_path / "from").mkdir()
    path = write(tmp_path / "from")
    with pytest.raises(ValueError, match=sentence):
        convert(open_checkpoint(path), tmp_path / "to" / "out", layout=layout)
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "from", path])


def test_nothing_is_overwritten(tmp_path):
    source = write_expert(tmp_path)
    for layout in ("single", "official", "diffusers"):
        for out in (source, tmp_path):
            with pytest.raises(FileExistsError, match="exists already; choose another name"):
                convert(open_checkpoint(source), out, layout=layout)
    text = write_text(tmp_path)
    spiece = tmp_path / "google" / "umt5-xxl" / "spiece.model"
    spiece.parent.mkdir(parents=True)
    spiece.write_bytes(b"another")
    with pytest.raises(FileExistsError, match=r"spiece\.model exists already"):
        convert(open_checkpoint(text), tmp_path / "t5.pth", layout="official")
    assert not (tmp_path / "t5.pth").exists()
    spiece.write_bytes(SPIECE)  # the same one may stay
    to(text, tmp_path / "t5.pth", "official")


def test_unknown_layout_and_missing_folder(tmp_path):
    source = open_checkpoint(write_expert(tmp_path))
    with pytest.raises(ValueError, match="layout='onnx' is unknown; use one of single, official"):
        convert(source, tmp_path / "out", layout="onnx")
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        convert(source, tmp_path / "no" / "out.safetensors", layout="single")


@pytest.mark.parametrize("layout", ["single", "official", "diffusers"])
def test_a_run_that_fails_leaves_nothing(tmp_path, layout, monkeypatch):
    source = open_checkpoint(write_expert(tmp_path))
    written = []

    def full(path: Path, entries: object, metadata: object) -> None:
        write_safetensors(path, entries, metadata)
        written.append(path)
        if len(written) == (1 if layout == "single" else 2):
            raise OSError("no space left")

    monkeypatch.setattr(weights, "write_safetensors", full)
    with pytest.raises(OSError, match="no space left"):
        convert(source, tmp_path / "out", layout=layout, shard_bytes=SHARD)
    assert list(tmp_path.iterdir()) == [source.path]


def test_written_files_are_those_of_safetensors(tmp_path):
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
              torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
              torch.bool)  # fmt: skip
    state = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in dtypes}
    state |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "Ünïcode": torch.ones(1)}
    entries = {
        key: Entry(shape=tuple(t.shape), dtype=t.dtype, make=lambda t=t: t)
        for key, t in state.items()
    }
    write_safetensors(tmp_path / "ours", entries, {"note": "Ü"})
    save_file(state, tmp_path / "theirs")
    assert equal(load_file(tmp_path / "ours"), load_file(tmp_path / "theirs"))
    with safe_open(str(tmp_path / "ours"), framework="pt") as handle:
        assert handle.metadata() == {"format": "pt", "note": "Ü"}


def test_a_header_of_any_length_is_read(tmp_path):
    entry = Entry(shape=(1,), dtype=torch.uint8, make=lambda: torch.ones(1, dtype=torch.uint8))
    lengths = set()
    for padding in range(0, 1400, 8):  # 640 bytes, for one, are 80 02 as the start of a pickle is
        write_safetensors(tmp_path / "a", {"a": entry}, {"note": "x" * padding})
        lengths.add(int.from_bytes((tmp_path / "a").read_bytes()[:8], "little"))
        assert list(read_header(tmp_path / "a").tensors) == ["a"]
    assert {0x0280, 0x0380, 0x0480, 0x0580} <= lengths


@pytest.mark.parametrize(
    ("part", "layout", "name", "made"),
    [
        ("expert", "single", "out.pth", "a .safetensors file"),
        ("vae", "official", "out.safetensors", "a .pth file"),
        ("expert", "diffusers", "out.safetensors", "a folder"),
    ],
)
def test_an_ending_that_lies_is_refused(tmp_path, part, layout, name, made):
    source = single(tmp_path / f"{part}.safetensors", STATES[part], plain(BF16)).path
    with pytest.raises(ValueError, match=f"would be {re.escape(made)}; give it another ending"):
        convert(open_checkpoint(source), tmp_path / name, layout=layout)
    assert not (tmp_path / name).exists()


def test_a_weight_too_large_for_float16_is_refused(tmp_path):
    state = {**STATES["expert"], "head.head.bias": torch.full((64,), 1e6)}
    source = single(tmp_path / "large.safetensors", state, plain(torch.float32)).path
    with pytest.raises(ValueError, match=r"head\.head\.bias does not fit into float16"):
        convert(
            open_checkpoint(source), tmp_path / "out.safetensors", layout="single",
            dtype=torch.float16,
        )  # fmt: skip
    assert not (tmp_path / "out.safetensors").exists()
