"""Weight files: what is recognised from headers, what loads, and the sentence of every refusal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.checkpoint import (
    check_pair,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    identify,
    load_text_encoder,
    load_transformer,
    load_vae,
    open_checkpoint,
    place,
)
from wanexperts.wan.config import TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.text import UMT5Encoder, hf_key
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE

EXPERT = TransformerConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32)
TEXT = TextConfig(
    vocab_size=50, dim=32, attn_dim=16, num_heads=2, ffn_dim=24, num_layers=2, num_buckets=32
)


def expert_state(config: TransformerConfig = EXPERT, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {k: torch.randn_like(v) for k, v in WanTransformer(config).state_dict().items()}


def write_expert(path, state=None, **metadata):
    save_file(state or expert_state(), path, metadata={"format": "pt", **metadata})
    return path


def write_sharded(folder, state):
    folder.mkdir()
    keys = sorted(state)
    halves = {"a.safetensors": keys[: len(keys) // 2], "b.safetensors": keys[len(keys) // 2 :]}
    for name, part in halves.items():
        save_file({key: state[key] for key in part}, folder / name)
    index = {"weight_map": {key: name for name, part in halves.items() for key in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model."])
def test_expert_file_with_any_prefix(tmp_path, prefix):
    state = {prefix + key: tensor for key, tensor in expert_state().items()}
    path = write_expert(tmp_path / "expert.safetensors", state)
    assert detect_transformer_config(open_checkpoint(path, "transformer")) == EXPERT
    loaded = load_transformer(path).state_dict()
    assert all(torch.equal(loaded[key.removeprefix(prefix)], state[key]) for key in state)


def test_official_sharded_folder_equals_the_single_file(tmp_path):
    state = expert_state()
    loaded = load_transformer(write_sharded(tmp_path / "high_noise_model", state)).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_sharded(tmp_path / "high_noise_model", expert_state())
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors does not exist"):
        open_checkpoint(folder)


@pytest.mark.parametrize("change", ["unlisted", "elsewhere"])
def test_shards_and_index_must_agree(tmp_path, change):
    folder = write_sharded(tmp_path / "high_noise_model", expert_state())
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    told = json.loads(index.read_text())
    key = min(told["weight_map"])
    if change == "unlisted":
        del told["weight_map"][key]
    else:
        told["weight_map"][key] = "b.safetensors"
    index.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=rf"a\.safetensors holds '{key}', which .* does not list"):
        open_checkpoint(folder)


def component(root, name="transformer", index='{"boundary_ratio": 0.9}'):
    """An expert in a component folder; ``index`` is the repository's."""
    (root / name).mkdir()
    (root / "model_index.json").write_text(index)
    return write_expert(root / name / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("stated", "read"), [("0.9", "0.9"), ("1", "1.0"), ("1.0", "1.0"), ("null", None)]
)
def test_the_boundary_of_a_repository(tmp_path, stated, read):
    path = component(tmp_path, index=f'{{"boundary_ratio": {stated}}}')
    for given in (path, path.parent):
        assert open_checkpoint(given).metadata.get("boundary_ratio") == read


@pytest.mark.parametrize(
    ("index", "sentence"),
    [("{", "is not a list of components; download"), ("[]", "is not a list of components; download"),
     *((f'{{"boundary_ratio": {ratio}}}', "is not a number above 0 and up to 1; download")
       for ratio in ('"0.9"', "true", "0", "1.1", "-1", "NaN", "[]"))],
)  # fmt: skip
def test_a_damaged_repository(tmp_path, index, sentence):
    path = component(tmp_path, index=index)
    for given in (path, path.parent):
        with pytest.raises(ValueError, match=sentence):
            open_checkpoint(given)


def test_nothing_is_read_beside_a_folder_of_another_name(tmp_path):
    path = component(tmp_path, name="diffusion_models", index="{")
    for given in (path, path.parent):
        assert "boundary_ratio" not in open_checkpoint(given).metadata


STORED = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_loading_converts_nothing(tmp_path, stored):
    state = {key: tensor.to(stored) for key, tensor in expert_state().items()}
    path = write_expert(tmp_path / "expert.safetensors", state)
    for dtype in (None, torch.bfloat16, torch.float32):
        model = load_transformer(path, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {stored}
        assert model.dtype == (dtype or torch.float32)
        before = [p.data_ptr() for p in model.parameters()]
        place(model, torch.device("cpu"), torch.bfloat16)
        assert [p.data_ptr() for p in model.parameters()] == before


@pytest.mark.parametrize(
    ("stored", "arrives"),
    [*((stored, torch.bfloat16) for stored in STORED[:3]), (STORED[3], STORED[3])],
    ids=str,
)
def test_another_device_gets_nothing_wider_than_needed(tmp_path, stored, arrives):
    state = {
        key: tensor.to(stored)
        for key, tensor in expert_state(replace(EXPERT, num_layers=1)).items()
    }
    packed = "blocks.0.ffn.0"
    state[f"{packed}.weight"] = torch.ones(96, 128, dtype=torch.int8)
    state[f"{packed}.weight_scale"] = torch.ones(96, 1)
    model = load_transformer(write_expert(tmp_path / "expert.safetensors", state))
    there = torch.device("meta")
    place(model, there, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {arrives}
    assert {t.device for t in [*model.parameters(), *model.buffers()]} == {there}
    moved = model.state_dict()
    assert moved.keys() == state.keys()
    assert moved[f"{packed}.weight"].dtype == torch.int8
    assert moved[f"{packed}.weight_scale"].dtype == torch.float32
    assert not any(p.requires_grad for p in model.parameters())


def test_vae_file(tmp_path):
    config = VAEConfig(dim=8)
    vae = WanVAE(config)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    assert detect_vae_config(open_checkpoint(tmp_path / "vae.safetensors", "vae")) == config
    latents = torch.randn(1, 16, 2, 4, 4)
    assert torch.equal(load_vae(tmp_path / "vae.safetensors").decode(latents), vae.decode(latents))


@pytest.mark.parametrize("naming", ["official", "transformers"])
def test_text_encoder_file_carries_its_tokenizer(tmp_path, naming):
    state = UMT5Encoder(TEXT).state_dict()
    if naming == "transformers":
        state = {hf_key(key): tensor for key, tensor in state.items()}
    state["spiece_model"] = torch.frombuffer(bytearray(sentencepiece_model(48)), dtype=torch.uint8)
    save_file(state, tmp_path / "text.safetensors")
    checkpoint = open_checkpoint(tmp_path / "text.safetensors", "text_encoder")
    assert detect_text_config(checkpoint) == TEXT
    encoder, tokenizer = load_text_encoder(tmp_path / "text.safetensors")
    assert encoder.config == TEXT
    assert tokenizer.encode("")[-1] == 1


def test_text_encoder_without_tokenizer_is_refused(tmp_path):
    save_file(UMT5Encoder(TEXT).state_dict(), tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"holds no tokenizer; put umT5's spiece\.model beside it"):
        load_text_encoder(tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("name", "metadata", "role"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", {}, "high_noise"),
        ("Wan2_2-T2V-A14B-LOW_bf16.safetensors", {}, "low_noise"),
        ("expert.safetensors", {}, None),
        ("Wan22_T2V_HighNoise.safetensors", {}, "high_noise"),
        ("wan22lownoise14B.safetensors", {}, "low_noise"),
        ("highland.safetensors", {}, None),
        ("high_and_low.safetensors", {}, None),
        ("low.safetensors", {"wan_role": "high_noise"}, "high_noise"),
    ],
)
def test_role_from_header_then_name(tmp_path, name, metadata, role):
    assert identify(open_checkpoint(write_expert(tmp_path / name, **metadata))).role == role


def test_role_from_the_official_folder_name(tmp_path):
    folder = write_sharded(tmp_path / "low_noise_model", expert_state())
    assert identify(open_checkpoint(folder)).role == "low_noise"
    (tmp_path / "low vram").mkdir()
    path = write_expert(tmp_path / "low vram" / "expert_1.safetensors")
    assert identify(open_checkpoint(path)).role is None


class TestRefusals:
    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist; check the name"):
            open_checkpoint(tmp_path / "nothing.safetensors")

    @pytest.mark.parametrize(
        "content",
        [b"", b"PK\x03\x04 not weights at all", b"\xff" * 64]
        + [
            len(text).to_bytes(8, "little") + text
            for text in (b"[]", b'{"a": 1}', b'{"a": {}}', b'"text"', b"{", b"\xff\xfe")
        ],
    )
    def test_not_safetensors(self, tmp_path, content):
        path = tmp_path / "fake.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"fake\.safetensors (is|holds) .*; "):
            open_checkpoint(path)

    @pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 1}'])
    def test_damaged_index(self, tmp_path, index):
        folder = write_sharded(tmp_path / "high_noise_model", expert_state())
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
        with pytest.raises(ValueError, match=r"index\.json is not an index of shards"):
            open_checkpoint(folder)

    def test_tensor_of_another_rank(self, tmp_path):
        state = {**expert_state(), "patch_embedding.weight": torch.zeros(4)}
        path = write_expert(tmp_path / "expert.safetensors", state)
        with pytest.raises(ValueError, match="with 1 axes, not 5"):
            load_transformer(path)

    def test_truncated(self, tmp_path):
        path = write_expert(tmp_path / "expert.safetensors")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"is truncated: \d+ of \d+ bytes; download it again"):
            open_checkpoint(path)

    def test_file_of_another_kind(self, tmp_path):
        save_file(WanVAE(VAEConfig(dim=8)).state_dict(), tmp_path / "vae.safetensors")
        with pytest.raises(ValueError, match="is a VAE, not an expert"):
            load_transformer(tmp_path / "vae.safetensors")

    def test_file_of_another_project(self, tmp_path):
        save_file({"unet.weight": torch.zeros(1)}, tmp_path / "sd.safetensors")
        with pytest.raises(ValueError, match=r"is not an expert .* holds 'unet\.weight'"):
            open_checkpoint(tmp_path / "sd.safetensors", "transformer")

    def test_image_to_video_expert(self, tmp_path):
        state = expert_state(replace(EXPERT, in_dim=36))
        path = write_expert(tmp_path / "i2v.safetensors", state)
        with pytest.raises(ValueError, match="maps 36 to 16 channels"):
            load_transformer(path)

    def test_wrong_vae(self, tmp_path):
        save_file(WanVAE(VAEConfig(dim=8, z_dim=48)).state_dict(), tmp_path / "vae.safetensors")
        with pytest.raises(ValueError, match=r"48 latent channels; T2V-A14B needs the Wan2\.1 VAE"):
            load_vae(tmp_path / "vae.safetensors")

    def test_incomplete(self, tmp_path):
        state = expert_state()
        del state["blocks.1.ffn.0.weight"]
        path = write_expert(tmp_path / "expert.safetensors", state)
        with pytest.raises(ValueError, match=r"1 missing \(first: blocks\.1\.ffn\.0\.weight\)"):
            load_transformer(path)

    def test_a_packing_that_is_not_read(self, tmp_path):
        state = {**expert_state(), "blocks.0.ffn.0.weight_scale_2": torch.zeros(2)}
        path = write_expert(tmp_path / "expert.safetensors", state)
        with pytest.raises(ValueError, match="quantised as NVFP4, which is not read"):
            open_checkpoint(path, "transformer")

    def test_same_expert_twice(self, tmp_path):
        expert = open_checkpoint(write_expert(tmp_path / "expert.safetensors"))
        with pytest.raises(ValueError, match="was given for both experts"):
            check_pair(expert, expert)

    def test_swapped_experts(self, tmp_path):
        high = open_checkpoint(write_expert(tmp_path / "high.safetensors"))
        low = open_checkpoint(write_expert(tmp_path / "low.safetensors", expert_state(seed=1)))
        check_pair(high, low)
        with pytest.raises(ValueError, match="the experts are swapped"):
            check_pair(low, high)

    def test_two_experts_of_one_role(self, tmp_path):
        high = open_checkpoint(write_expert(tmp_path / "high.safetensors"))
        other = open_checkpoint(write_expert(tmp_path / "high_v2.safetensors"))
        with pytest.raises(ValueError, match=r"high_v2\.safetensors is the other expert"):
            check_pair(high, other)

    def test_experts_of_two_models(self, tmp_path):
        high = open_checkpoint(write_expert(tmp_path / "high.safetensors"))
        state = expert_state(replace(EXPERT, num_layers=1))
        low = open_checkpoint(write_expert(tmp_path / "low.safetensors", state))
        with pytest.raises(ValueError, match="choose two experts of one model"):
            check_pair(high, low)
