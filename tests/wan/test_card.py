"""The card of a file: every fact on it, for every packing; and ``python -m wan inspect`` and ``convert``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.checkpoint import format_card, identify, open_checkpoint
from wanexperts.wan.config import TextConfig, TransformerConfig, VAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("gguf")

from wanexperts.tests.parity import networks
from wanexperts.tests.parity.layouts import (
    Kind,
    Scaled,
    as_bytes,
    gguf_file,
    gguf_kind,
    is_linear,
    mixed,
    plain,
    random_weights,
    sharded,
    single,
)

ROOT = Path(__file__).resolve().parents[2]
EXPERT = TransformerConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=256)
TEXT = TextConfig(
    vocab_size=64, dim=64, attn_dim=64, num_heads=2, ffn_dim=96, num_layers=1, num_buckets=32
)
STATE = random_weights(networks.expert_shapes(EXPERT), 1)
PACKED = sum(weight.numel() for key, weight in STATE.items() if is_linear(key, weight))
REST = sum(weight.numel() for weight in STATE.values()) - PACKED
LINEARS = sum(is_linear(key, weight) for key, weight in STATE.items())
OTHERS = len(STATE) - LINEARS
WIDE = sum(t.numel() for k, t in STATE.items() if "norm" in k or "modulation" in k)
WIDES = sum("norm" in k or "modulation" in k for k in STATE)
E4M3, BF16, F16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16

AS_IT_IS = "runs: as it is; layers cast where they compute in another format"
CONVERTED = (
    "runs: cast layer by layer; on a GPU ComfyUI converts it once at load, into memory of its own "
    f"(about {2 * (PACKED + REST) / 1e6:.2f} MB)"
)
CAST = "runs: cast layer by layer at each use; smaller, not faster"
UNPACKED = "runs: unpacked layer by layer at each use; smaller, not faster"
FAST = (
    "runs: where ComfyUI has fp8 layers, fp8 products on cards with fp8 units (compute capability "
    "8.9 and up); elsewhere unpacked layer by layer"
)
FULL = "runs: unpacked layer by layer, as the file asks for full-precision products"
ROWS = {"leaf": "weight_scale", "shape": (-1, 1)}


def mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f} MB"


def stored(count: int, how: str, nbytes: float) -> str:
    return f"{count} x {how} ({mb(nbytes)})"


ALL = len(STATE)
FORMS = {
    "bf16": (plain(BF16), [stored(ALL, "bfloat16", 2 * (PACKED + REST))], AS_IT_IS),
    "fp16": (plain(F16), [stored(ALL, "float16", 2 * (PACKED + REST))], AS_IT_IS),
    "fp32": (plain(torch.float32), [stored(ALL, "float32", 4 * (PACKED + REST))], CONVERTED),
    "plain fp8": (plain(E4M3), [stored(ALL, "float8_e4m3fn", PACKED + REST)], CAST),
    "Kijai": (
        mixed(torch.float8_e5m2),
        [stored(OTHERS - WIDES, "bfloat16", 2 * (REST - WIDE)), stored(LINEARS, "float8_e5m2", PACKED),
         stored(WIDES, "float32", 4 * WIDE)],
        CAST,
    ),
    "scaled fp8": (
        Scaled(dtype=E4M3, rest=F16),
        [stored(LINEARS, "float8_e4m3fn scaled per tensor", PACKED), stored(OTHERS, "float16", 2 * REST)],
        FAST,
    ),
    "scaled fp8, full precision": (
        Scaled(dtype=E4M3, leaf="weight_scale",
               note={"format": "float8_e4m3fn", "full_precision_matrix_mult": True}),
        [stored(LINEARS, "float8_e4m3fn scaled per tensor", PACKED), stored(OTHERS, "bfloat16", 2 * REST)],
        FULL,
    ),
    "fp8 per channel": (
        Scaled(dtype=E4M3, **ROWS),
        [stored(LINEARS, "float8_e4m3fn scaled per channel", PACKED), stored(OTHERS, "bfloat16", 2 * REST)],
        UNPACKED,
    ),
    "int8": (
        Scaled(dtype=torch.int8, **ROWS),
        [stored(LINEARS, "int8 scaled per channel", PACKED), stored(OTHERS, "bfloat16", 2 * REST)],
        UNPACKED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_an_expert_is_and_how_it_runs(tmp_path, form):
    encode, weights, runs = FORMS[form]
    path = single(tmp_path / "wan2.2_t2v_low_noise_14B.safetensors", STATE, encode).path
    assert format_card(open_checkpoint(path)).splitlines() == [
        f"{path.name}: Wan2.2 text-to-video expert, low noise by its name",
        f"  layout: official names, one file, safetensors, {mb(path.stat().st_size)}",
        f"  weights: {', '.join(sorted(weights, key=size, reverse=True))}",
        f"  {runs}",
    ]


def size(text: str) -> float:
    """Megabytes at the end of ``3 x bfloat16 (1.23 MB)``."""
    return float(text.rpartition("(")[2].split()[0])


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8.5), ("Q4_K", 4.5), ("Q6_K", 6.5625)])
def test_gguf(tmp_path, kind, bits):
    path = gguf_file(tmp_path / "model.gguf", "wan", STATE, gguf_kind(Kind[kind])).path
    head, layout, weights, runs = format_card(open_checkpoint(path)).splitlines()
    assert head.endswith(
        "expert, high or low noise is not told by header, folder or name, and weights do not tell it"
    )
    assert layout.startswith("  layout: official names, one file, gguf, ")
    assert stored(LINEARS, kind, PACKED * bits / 8) in weights
    assert runs.strip() == UNPACKED


def test_diffusers_shards(tmp_path):
    model = networks.diffusers_expert(EXPERT, STATE)
    model.save_pretrained(tmp_path / "transformer_2", max_shard_size=2_000_000)
    (tmp_path / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.875}))
    files = list((tmp_path / "transformer_2").glob("*.safetensors"))
    assert len(files) > 1
    head, layout, *_ = format_card(open_checkpoint(tmp_path / "transformer_2")).splitlines()
    assert head == "transformer_2: Wan2.2 text-to-video expert, low noise by its folder"
    total = sum(file.stat().st_size for file in files)
    assert layout == f"  layout: diffusers names, shards, safetensors, {mb(total)}"


def test_text_encoder_and_vae(tmp_path):
    state = random_weights(networks.text_shapes(TEXT), 2)
    extra = {"spiece_model": as_bytes(sentencepiece_model(60))}
    path = single(
        tmp_path / "t.safetensors", state, plain(F16), name=networks.hf_name, extra=extra
    ).path
    head, layout, weights, runs = format_card(open_checkpoint(path)).splitlines()
    assert runs == "  runs: cast layer by layer; computed in float32"
    assert head == "t.safetensors: umT5 text encoder"
    assert "transformers names" in layout
    assert f"{len(state)} x float16" in weights
    assert weights.endswith(", tokenizer inside")
    assert "bytes" not in weights
    vae = random_weights(networks.vae_shapes(VAEConfig(dim=8)), 3)
    path = single(tmp_path / "v.pth", vae, plain(torch.float32)).path
    head, layout, _, runs = format_card(open_checkpoint(path)).splitlines()
    assert runs == "  runs: as it is; layers cast where they compute in another format"
    assert head == "v.pth: VAE"
    assert "official names, one file, pickle" in layout


def test_a_packed_text_encoder_without_its_tokenizer(tmp_path):
    state = random_weights(networks.text_shapes(TEXT), 2)
    encode = Scaled(dtype=E4M3)
    path = single(tmp_path / "t.safetensors", state, encode, name=networks.hf_name).path
    *_, runs, tokenizer = format_card(open_checkpoint(path)).splitlines()
    assert runs == "  runs: unpacked layer by layer; computed in float32"
    assert tokenizer.startswith("  tokenizer: none; ")
    assert tokenizer.endswith("which carries it")


def test_an_all_in_one_checkpoint(tmp_path):
    parts = ("model.diffusion_model.", "first_stage_model.", "text_encoders.umt5xxl.")
    state = {prefix + key: t for prefix in parts for key, t in STATE.items()}
    path = single(tmp_path / "aio.safetensors", state, plain(BF16)).path
    with pytest.raises(ValueError, match=r"is an all-in-one checkpoint .* use separate files"):
        open_checkpoint(path)


def test_files_of_one_name_are_told_apart(tmp_path, capsys):
    from wanexperts.wan.cli import main

    paths = []
    for seed, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        state = random_weights(networks.expert_shapes(EXPERT), seed)
        paths.append(single(tmp_path / folder / "a.safetensors", state, plain(BF16)).path)
    assert main(["inspect", *map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert all(f"{path}: Wan" in out for path in paths)
    assert all(f"{path} does not say" in out.splitlines()[-1] for path in paths)


def test_a_repository_has_four_cards(capsys):
    from wanexperts.wan.checkpoint import BUNDLED, find_parts
    from wanexperts.wan.cli import main

    parts = find_parts()
    assert main(["inspect", str(BUNDLED)]) == 0
    out = capsys.readouterr().out
    assert all(f"{path.name}: " in out for path in parts.values())
    assert out.count("  runs: ") == len(parts)
    assert out.splitlines()[-1].startswith("a pair: ")


def wan(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wan", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_inspect_and_convert_as_a_person_runs_them(tmp_path):
    shapes = networks.expert_shapes(EXPERT)
    high = single(tmp_path / "x_high_noise.safetensors", STATE, plain(BF16)).path
    other = random_weights(shapes, 2)
    low = sharded(tmp_path / "low_noise_model", other, plain(BF16), size=2_000_000).path
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(high.read_bytes()[:-7])
    done = wan("inspect", low, high, damaged)
    cards = [format_card(open_checkpoint(path)) for path in (low, high)]
    assert done.stdout.startswith("\n".join(cards) + "\nnot usable: ")
    assert done.stdout.splitlines()[-1] == (
        "a pair: x_high_noise.safetensors is high noise, low_noise_model is low noise"
    )
    assert (done.returncode, done.stderr) == (2, "error: 1 of 3 files cannot be used\n")

    out = tmp_path / "renamed.safetensors"
    done = wan("convert", low, out, "--to", "single", "--dtype", "float16")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert identify(open_checkpoint(out)).role == "low_noise"
    assert all(torch.equal(t, other[key].bfloat16().half()) for key, t in load_file(out).items())
    done = wan("convert", low, out, "--to", "single")
    assert done.returncode == 2
    assert done.stderr == f"error: {out} exists already; choose another name or remove it\n"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a", "b"), "maybe a pair: a.safetensors does not say which expert it is, "
                     "b.safetensors does not say which expert it is"),
        (("a", "b_high"), "maybe a pair: b_high.safetensors is high noise, "
                          "a.safetensors does not say which expert it is"),
        (("b_low", "a"), "maybe a pair: a.safetensors does not say which expert it is, "
                         "b_low.safetensors is low noise"),
        (("x_low", "x_high"), "a pair: x_high.safetensors is high noise, x_low.safetensors is low noise"),
        (("wan2.1_t2v", "wan2.2_t2v_low_noise"), "not a pair: "),
    ],
)  # fmt: skip
def test_two_experts_are_compared(tmp_path, capsys, names, told):
    from wanexperts.wan.cli import main

    shapes = networks.expert_shapes(EXPERT)
    paths = [
        single(tmp_path / f"{name}.safetensors", random_weights(shapes, seed), plain(BF16)).path
        for seed, name in enumerate(names)
    ]
    assert main(["inspect", *map(str, paths)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(told)


def test_inspect_says_when_a_file_is_incomplete(tmp_path, capsys):
    from wanexperts.wan.cli import main

    state = {key: t for key, t in STATE.items() if key != "blocks.1.norm3.bias"}
    path = single(tmp_path / "a.safetensors", state, plain(BF16)).path
    assert main(["inspect", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "not usable" in out
    assert "1 missing (first: blocks.1.norm3.bias)" in out
    assert err == "error: 1 of 1 files cannot be used\n"
