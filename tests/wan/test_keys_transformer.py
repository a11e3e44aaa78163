"""Official and diffusers names of the transformer are one bijection, checked on the real networks."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.keys.transformer import diffusers_key, known_keys, official_key
from wanexperts.wan.transformer import WanTransformer

CONFIG = TransformerConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=12, text_dim=32)
META = torch.device("meta")


def theirs(cls: str = "WanTransformer3DModel", **extra: object) -> dict[str, tuple[int, ...]]:
    diffusers = pytest.importorskip("diffusers")
    arguments = {
        "num_attention_heads": CONFIG.num_heads,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": CONFIG.text_dim,
        "ffn_dim": CONFIG.ffn_dim,
        "num_layers": CONFIG.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    }
    with META:
        network = getattr(diffusers, cls)(**arguments, **extra)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def ours() -> dict[str, tuple[int, ...]]:
    network = WanTransformer(CONFIG, device=META)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def test_the_same_tensors_in_the_same_shapes_under_both_names():
    assert {diffusers_key(key): shape for key, shape in ours().items()} == theirs()
    assert {official_key(key): shape for key, shape in theirs().items()} == ours()


@pytest.mark.parametrize(
    ("cls", "extra"),
    [
        ("WanTransformer3DModel", {"image_dim": 48, "added_kv_proj_dim": 128, "pos_embed_seq_len": 514}),
        ("WanVACETransformer3DModel", {"vace_layers": [0, 1], "vace_in_channels": 96}),
    ],
    ids=["image branch", "VACE"],
)  # fmt: skip
def test_every_name_of_the_other_variants_is_known_and_comes_back(cls, extra):
    keys = theirs(cls, **extra)
    assert len(keys) > len(theirs())
    official = {key: official_key(key) for key in keys}
    assert None not in official.values()
    assert len(set(official.values())) == len(keys)
    assert {key: diffusers_key(name) for key, name in official.items()} == {k: k for k in keys}
    assert set(official.values()) <= set(known_keys(12))


def test_known_names_hold_ours_and_go_there_and_back():
    names = known_keys(12)
    assert set(ours()) <= set(names)
    assert len(set(names)) == len(names)
    assert [official_key(diffusers_key(name)) for name in names] == names


@pytest.mark.parametrize("leaf", ["weight_scale", "input_scale", "comfy_quant", "bias"])
def test_the_last_part_is_kept(leaf):
    assert official_key(f"blocks.3.attn2.to_out.0.{leaf}") == f"blocks.3.cross_attn.o.{leaf}"
    assert diffusers_key(f"head.head.{leaf}") == f"proj_out.{leaf}"


@pytest.mark.parametrize(
    "key",
    ["", "weight", "blocks.0.attn3.to_q.weight", "blocks.x.attn1.to_q.weight", "blocks.0.weight",
     "blocks.0.norm3.weight", "double_blocks.0.img_attn.qkv.weight", "blocks.0.attn1.to_q"],
)  # fmt: skip
def test_other_names_are_unknown(key):
    assert official_key(key) is None


@pytest.mark.parametrize(
    "key", ["blocks.0.norm2.weight", "head.head", "scale_shift_table", "blocks.0"]
)
def test_other_names_are_not_official(key):
    assert diffusers_key(key) is None
