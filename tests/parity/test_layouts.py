"""Every published layout, written by another program from one random model: loaded whole, and the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.checkpoint import (
    check_keys,
    check_pair,
    family_defaults,
    find_parts,
    identify,
    load_text_encoder,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from wanexperts.wan.config import TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.pipeline import Pipeline
from wanexperts.wan.text import UMT5Encoder
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE

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
    block_files,
    gguf_file,
    gguf_kind,
    header_notes,
    mixed,
    plain,
    prefixed,
    random_weights,
    sharded,
    single,
)
from wanexperts.tests.parity.loaded import assert_holds, difference, own_memory, with_weights

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2, I8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
META = torch.device("meta")
# Widths are multiples of 256, the block of the K types.
EXPERT = TransformerConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=256)
TEXT = TextConfig(
    vocab_size=64, dim=256, attn_dim=256, num_heads=4, ffn_dim=512, num_layers=2, num_buckets=32
)
SMALL_VAE = VAEConfig(dim=8)
GRID = (2, 4, 4)
SHARD = 1_500_000
Layout = Callable[[Path, State], Written]


def file(file_name: str, /, *args: object, **options: object) -> Layout:
    """A layout that is one file."""
    return lambda folder, state: single(folder / file_name, state, *args, **options)


def gguf_layout(architecture: str, linear: str, **options: object) -> Layout:
    choose = gguf_kind(Kind[linear], options.pop("rest", Kind.F16))
    return lambda folder, state: gguf_file(
        folder / f"model-{linear}.gguf", architecture, state, choose, **options
    )


def legacy_marker(count: int) -> State:
    """ComfyUI's ``scaled_fp8``; two elements ask for full-precision products."""
    return {"scaled_fp8": torch.zeros(count, dtype=E4M3)}


def diffusers_folder(size: int) -> Layout:
    def write(folder: Path, state: State) -> Written:
        model = networks.diffusers_expert(EXPERT, state)
        model.save_pretrained(folder / "transformer", max_shard_size=size)
        return Written(path=folder / "transformer", meaning=state)

    return write


NOTE = {"format": "float8_e4m3fn"}
EXPERT_LAYOUTS: dict[str, Layout] = {
    "fp32": file("a.safetensors", plain(F32)),
    "fp16": file("a.safetensors", plain(F16)),
    "bf16": file("a.safetensors", plain(BF16)),
    "torch file": file("a.pth", plain(BF16)),
    **{
        f"prefix {prefix}": file("a.safetensors", plain(F16), name=prefixed(prefix))
        for prefix in ("model.diffusion_model.", "diffusion_model.", "model.")
    },
    "official shards": lambda f, s: sharded(f / "high_noise_model", s, plain(F32), size=SHARD),
    "diffusers shards": diffusers_folder(SHARD),
    "diffusers file": diffusers_folder(10**9),
    "diffusers names, scaled": file(
        "a.safetensors",
        Scaled(dtype=E4M3, leaf="weight_scale", input_leaf="input_scale"),
        name=networks.diffusers_name,
    ),
    "Kijai bf16": file("a.safetensors", mixed(BF16)),
    "Kijai fp8": file("a.safetensors", mixed(E4M3)),
    "Kijai fp8 scaled": file(
        "a.safetensors", Scaled(dtype=E4M3, shape=(1,)), extra=legacy_marker(0)
    ),
    "plain e4m3fn": file("a.safetensors", plain(E4M3)),
    "plain e5m2": file("a.safetensors", plain(E5M2)),
    "scaled_fp8": file("a.safetensors", Scaled(dtype=E4M3, rest=F16), extra=legacy_marker(0)),
    "scaled_fp8, full precision": file(
        "a.safetensors", Scaled(dtype=E4M3, input_leaf="scale_input"), extra=legacy_marker(2)
    ),
    "scaled_fp8 e5m2 behind a prefix": lambda f, s: single(
        f / "a.safetensors", s, Scaled(dtype=E5M2, input_leaf="scale_input"),
        name=prefixed("model.diffusion_model."),
        extra={"model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=E5M2)},
    ),
    "comfy_quant": file("a.safetensors", Scaled(dtype=E4M3, leaf="weight_scale", note=NOTE)),
    "comfy_quant, full precision": file(
        "a.safetensors",
        Scaled(
            dtype=E5M2, leaf="weight_scale", input_leaf="input_scale",
            note={"format": "float8_e5m2", "full_precision_matrix_mult": True},
        ),
    ),
    "quantization metadata": lambda f, s: header_notes(f / "a.safetensors", s, ""),
    "quantization metadata behind a prefix": lambda f, s: header_notes(
        f / "a.safetensors", s, "model.diffusion_model."
    ),
    "LightX2V fp8": file("a.safetensors", Scaled(dtype=E4M3, leaf="weight_scale", shape=(-1, 1))),
    "LightX2V int8": file("a.safetensors", Scaled(dtype=I8, leaf="weight_scale", shape=(-1, 1))),
    "LightX2V int8, bf16 scales": file(
        "a.safetensors", Scaled(dtype=I8, leaf="weight_scale", shape=(-1, 1), scale_dtype=BF16)
    ),
    "LightX2V blocks": lambda f, s: block_files(
        f / "low_noise_model", s, Scaled(dtype=I8, leaf="weight_scale", shape=(-1, 1))
    ),
    **{f"GGUF {kind}": gguf_layout("wan", kind) for kind in ("F16", "Q8_0", "Q4_K", "Q5_K", "Q6_K")},
    **{f"GGUF {kind}": gguf_layout("wan", kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")},
    "GGUF BF16": gguf_layout("wan", "BF16", rest=Kind.BF16),
    "GGUF folded": gguf_layout("wan", "Q8_0", fold=True),
    "GGUF behind a prefix": gguf_layout("wan", "Q8_0", name=prefixed("model.diffusion_model.")),
}  # fmt: skip

SPIECE = sentencepiece_model(60)
PROMPT = "a red circle moves left"
CARRIED = {"spiece_model": as_bytes(SPIECE)}


def tokens(text: str) -> list[int]:
    """What sentencepiece makes of ``text``, and the end token."""
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(SPIECE)
    return [*processor.EncodeAsIds(text), processor.eos_id()]


def beside(layout: Layout, place: str = "spiece.model") -> Layout:
    """A layout with its tokenizer in a file of its own."""

    def write(folder: Path, state: State) -> Written:
        written = layout(folder, state)
        spiece = folder / place
        spiece.parent.mkdir(parents=True, exist_ok=True)
        spiece.write_bytes(SPIECE)
        return written

    return write


def transformers_folder(size: int) -> Layout:
    def write(folder: Path, state: State) -> Written:
        model = networks.transformers_text(TEXT, state)
        model.save_pretrained(folder / "text_encoder", max_shard_size=size)
        return Written(path=folder / "text_encoder", meaning=state)

    return beside(write, "tokenizer/spiece.model")


HF = {"name": networks.hf_name}
TEXT_LAYOUTS: dict[str, Layout] = {
    "official": beside(file("models_t5.pth", plain(BF16)), "google/umt5-xxl/spiece.model"),
    "official as safetensors": beside(file("a.safetensors", plain(BF16))),
    "transformers shards": transformers_folder(SHARD),
    "transformers file": transformers_folder(10**9),
    "transformers file by name": lambda f, s: replace(
        TEXT_LAYOUTS["transformers file"](f, s), path=f / "text_encoder" / "model.safetensors"
    ),
    "ComfyUI fp16": file("a.safetensors", plain(F16), extra=CARRIED, **HF),
    "ComfyUI prefix": file(
        "a.safetensors", plain(F16), extra=CARRIED,
        name=lambda key: f"text_encoders.umt5xxl.transformer.{networks.hf_name(key)}",
    ),
    "ComfyUI plain fp8": file("a.safetensors", plain(E4M3), extra=CARRIED, **HF),
    "ComfyUI scaled_fp8": file(
        "a.safetensors", Scaled(dtype=E4M3, rest=F16), extra=CARRIED | legacy_marker(0), **HF
    ),
    "ComfyUI comfy_quant": file(
        "a.safetensors", Scaled(dtype=E4M3, leaf="weight_scale", note=NOTE), extra=CARRIED, **HF
    ),
    "LightX2V int8": beside(
        file("models_t5.pth", Scaled(dtype=I8, leaf="weight_scale", shape=(-1, 1)))
    ),
    "LightX2V fp8": beside(
        file("a.safetensors", Scaled(dtype=E4M3, leaf="weight_scale", shape=(-1, 1)))
    ),
    **{
        f"GGUF {kind}": gguf_layout(
            "t5encoder", kind, rest=rest, spiece=SPIECE, name=networks.t5_gguf_name
        )
        for kind, rest in (
            ("F16", Kind.F16), ("Q8_0", Kind.Q8_0), ("Q4_K", Kind.F16), ("Q5_K", Kind.Q8_0),
            ("Q6_K", Kind.Q8_0),
        )
    },
}  # fmt: skip


def diffusers_vae_folder(folder: Path, state: State) -> Written:
    networks.diffusers_vae(SMALL_VAE, state).save_pretrained(folder / "vae")
    return Written(path=folder / "vae", meaning=state)


def wrapped(folder: Path, state: State) -> Written:
    torch.save({"model_state": state}, folder / "vae.pth")
    return Written(path=folder / "vae.pth", meaning=state)


VAE_LAYOUTS: dict[str, Layout] = {
    "official": file("Wan2.1_VAE.pth", plain(F32)),
    "wrapped": wrapped,
    "fp32": file("a.safetensors", plain(F32)),
    "bf16": file("a.safetensors", plain(BF16)),
    "fp16": file("a.safetensors", plain(F16)),
    "prefix vae.": file("a.safetensors", plain(F32), name=prefixed("vae.")),
    "prefix first_stage_model.": file(
        "a.safetensors", plain(F16), name=prefixed("first_stage_model.")
    ),
    "diffusers": diffusers_vae_folder,
}

STATES = {
    "expert": random_weights(networks.expert_shapes(EXPERT), 1),
    "text": random_weights(networks.text_shapes(TEXT), 2),
    "vae": random_weights(networks.vae_shapes(SMALL_VAE), 3),
}


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_expert(tmp_path, layout, record_property):
    written = EXPERT_LAYOUTS[layout](tmp_path, STATES["expert"])
    checkpoint = open_checkpoint(written.path, "transformer")
    check_keys(WanTransformer(EXPERT, device=META).state_dict(), checkpoint)
    assert checkpoint.tensors.keys() == written.meaning.keys()
    model = load_transformer(written.path)
    assert model.config == EXPERT
    assert_holds(model, written.meaning)
    twin = with_weights(WanTransformer(EXPERT, device=META), written.meaning)
    oracle = networks.diffusers_expert(EXPERT, written.meaning)

    def run(network: nn.Module) -> Tensor:
        return networks.run_expert(network, EXPERT, GRID)

    assert difference(own_memory(model), twin, run) == 0
    to_diffusers = difference(model, oracle, run)
    record_property("expert_layouts_vs_diffusers", to_diffusers)
    assert to_diffusers < 1e-5  # 3.8e-6


@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
def test_text_encoder(tmp_path, layout, record_property):
    written = TEXT_LAYOUTS[layout](tmp_path, STATES["text"])
    checkpoint = open_checkpoint(written.path, "text_encoder")
    check_keys(UMT5Encoder(TEXT, device=META).state_dict(), checkpoint)
    assert checkpoint.tensors.keys() - {"spiece_model"} == written.meaning.keys()
    encoder, tokenizer = load_text_encoder(written.path, dtype=None)
    assert encoder.config == TEXT
    assert tokenizer.encode(PROMPT) == tokens(PROMPT)
    assert_holds(encoder, written.meaning)
    twin = with_weights(UMT5Encoder(TEXT, device=META), written.meaning)
    oracle = networks.transformers_text(TEXT, written.meaning)

    def run(network: nn.Module) -> Tensor:
        return networks.run_text(network, TEXT)

    assert difference(own_memory(encoder), twin, run) == 0
    to_transformers = difference(encoder, oracle, run)
    record_property("text_layouts_vs_transformers", to_transformers)
    assert to_transformers < 1e-5  # 7e-7


@pytest.mark.parametrize("layout", VAE_LAYOUTS)
def test_vae(tmp_path, layout, record_property):
    written = VAE_LAYOUTS[layout](tmp_path, STATES["vae"])
    checkpoint = open_checkpoint(written.path, "vae")
    check_keys(WanVAE(SMALL_VAE, device=META).state_dict(), checkpoint)
    assert checkpoint.tensors.keys() == written.meaning.keys()
    vae = load_vae(written.path)
    assert_holds(vae, written.meaning)
    twin = with_weights(WanVAE(SMALL_VAE, device=META), written.meaning)
    oracle = networks.diffusers_vae(SMALL_VAE, written.meaning)

    def run(network: nn.Module) -> Tensor:
        return networks.run_vae(network, SMALL_VAE)

    assert difference(own_memory(vae), twin, run) == 0
    to_diffusers = difference(vae, oracle, run)
    record_property("vae_layouts_vs_diffusers", to_diffusers)
    assert to_diffusers < 1e-5  # 2.5e-6


def two_experts() -> dict[str, State]:
    shapes = networks.expert_shapes(EXPERT)
    return {"high": STATES["expert"], "low": random_weights(shapes, 7)}


def official_repository(root: Path) -> Path:
    """As published: two folders of shards, torch files, and the tokenizer in a folder of its own."""
    for part, state in two_experts().items():
        folder = root / f"{part}_noise_model"
        sharded(folder, state, plain(F32), size=SHARD)
        (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 256}))
    text = beside(
        file("models_t5_umt5-xxl-enc-bf16.pth", plain(BF16)), "google/umt5-xxl/spiece.model"
    )
    text(root, STATES["text"])
    single(root / "Wan2.1_VAE.pth", STATES["vae"], plain(F32))
    return root


def diffusers_repository(root: Path) -> Path:
    for name, state in zip(("transformer", "transformer_2"), two_experts().values(), strict=True):
        model = networks.diffusers_expert(EXPERT, state)
        model.save_pretrained(root / name, max_shard_size=SHARD)
    TEXT_LAYOUTS["transformers file"](root, STATES["text"])
    diffusers_vae_folder(root, STATES["vae"])
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.9, "expand_timesteps": False}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.mark.parametrize("write", [official_repository, diffusers_repository])
def test_repository(tmp_path, write):
    parts = find_parts(write(tmp_path))
    high, low = (open_checkpoint(parts[part], "transformer") for part in ("high", "low"))
    check_pair(high, low)
    assert [identify(expert).role for expert in (high, low)] == ["high_noise", "low_noise"]
    assert [identify(expert).role_source for expert in (high, low)] == ["folder", "folder"]
    for part, state in two_experts().items():
        assert_holds(load_transformer(parts[part]), state)
    assert_holds(load_vae(parts["vae"]), STATES["vae"])
    encoder, tokenizer = load_text_encoder(parts["text"])
    stored = BF16 if write is official_repository else F32
    assert_holds(encoder, {key: t.to(stored).float() for key, t in STATES["text"].items()})
    assert tokenizer.encode(PROMPT) == tokens(PROMPT)
    assert family_defaults(high).boundary == (0.875 if write is official_repository else 0.9)
    pipeline = Pipeline.load(**parts)
    assert pipeline.defaults.boundary == family_defaults(high).boundary
