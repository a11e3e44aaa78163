"""umT5 and its tokenizer against transformers on shared random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.config import TINY, TextConfig
from wanexperts.wan.text import Tokenizer, UMT5Encoder, clean, hf_key, official_key
from wanexperts.wan.text.umt5 import position_buckets

transformers = pytest.importorskip("transformers")

SHAPES = [
    replace(TINY.text, vocab_size=80),
    replace(TINY.text, vocab_size=80, dim=48, attn_dim=96, num_heads=6, ffn_dim=80, num_layers=3),
    replace(TINY.text, vocab_size=80, dim=64, num_heads=2, num_buckets=16, max_distance=40),
]
TEXT = (
    "A red circle moves left on a white background.",
    "a small GREEN triangle, quickly; moves right!",
    "一个红色的圆形在白色背景上向左移动。",
    "绿色三角形 moves right 向右。",
)


def _oracle(config: TextConfig) -> torch.nn.Module:
    torch.manual_seed(11)
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.attn_dim // config.num_heads,
            d_ff=config.ffn_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            layer_norm_epsilon=config.eps,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough that norms, biases and the softmax all matter to the result.
            weight.normal_(std=1.0 if "bias" in name or "shared" in name else 0.15)
            if "norm" in name:
                weight.add_(1.0)
    return model


def _ours(config: TextConfig, oracle: torch.nn.Module) -> UMT5Encoder:
    mapped = {}
    for key, value in oracle.state_dict().items():
        name = official_key(key)
        assert name is not None, key
        assert name not in mapped or torch.equal(mapped[name], value)
        mapped[name] = value
    encoder = UMT5Encoder(config).eval()
    encoder.load_state_dict(mapped, strict=True)
    assert {hf_key(name) for name in mapped} | {"encoder.embed_tokens.weight"} == set(
        oracle.state_dict()
    )
    return encoder


def _error(given: torch.Tensor, truth: torch.Tensor) -> float:
    return float((given.double() - truth.double()).norm() / truth.double().norm())


def _batch(config: TextConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(
        3, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length)
    )
    mask = torch.ones_like(ids)
    mask[1, max(1, length * 2 // 3) :] = 0
    return ids * mask, mask


@pytest.mark.parametrize("config", SHAPES, ids=["tiny", "wide-heads", "few-buckets"])
@pytest.mark.parametrize("length", [1, 7, 60, 200])
@torch.no_grad()
def test_encoder_equals_transformers(config: TextConfig, length: int, record_property) -> None:
    oracle = _oracle(config)
    ours = _ours(config, oracle)
    ids, mask = _batch(config, length)
    truth = oracle(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    difference = _error(ours(ids, mask)[real], truth[real])
    record_property("umt5_fp32_vs_transformers", difference)
    assert difference < 1e-5
    short = int(mask[1].sum())
    assert _error(ours(ids[1:, :short]), truth[1:, :short]) < 1e-5


def test_buckets_equal_transformers() -> None:
    from transformers.models.umt5.modeling_umt5 import UMT5Attention

    attention = UMT5Attention(
        transformers.UMT5Config(d_model=8, d_kv=4, num_heads=2), has_relative_attention_bias=True
    )
    position = torch.arange(512)
    theirs = attention._relative_position_bucket(position[None] - position[:, None])
    assert torch.equal(position_buckets(512, num_buckets=32, max_distance=128), theirs)


@torch.no_grad()
def test_bfloat16_drift_is_not_worse_than_theirs(record_property) -> None:
    config = SHAPES[1]
    oracle = _oracle(config)
    ours = _ours(config, oracle)
    ids, mask = _batch(config, 60)
    real = mask.bool()
    # Truth is fp32 on the rounded weights, so only the arithmetic is compared.
    oracle = oracle.bfloat16().float()
    truth = oracle(input_ids=ids, attention_mask=mask).last_hidden_state[real]
    theirs = oracle.bfloat16()(input_ids=ids, attention_mask=mask).last_hidden_state[real]
    our_drift = _error(ours.bfloat16()(ids, mask)[real], truth)
    their_drift = _error(theirs, truth)
    record_property("umt5_bf16_drift_ours", our_drift)
    record_property("umt5_bf16_drift_transformers", their_drift)
    assert 0 < our_drift < 1.5 * their_drift


@pytest.mark.parametrize("kind", ["T5Tokenizer", "T5TokenizerFast"])
@pytest.mark.parametrize("seed", range(4))
def test_tokenizer_equals_transformers(tmp_path, kind: str, seed: int) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(sentencepiece_model(120, TEXT))
    if kind == "T5TokenizerFast":
        pytest.importorskip("google.protobuf")
    # The published tokenizer prepends the word mark; built from a bare model it must be told to.
    theirs = getattr(transformers, kind)(str(path), extra_ids=0, add_prefix_space=True)
    ours = Tokenizer.from_file(path, text_len=24)
    generator = torch.Generator().manual_seed(seed)
    words = " ".join(TEXT).split()
    order = torch.randint(len(words), (3 + 9 * seed,), generator=generator)
    for text in (*TEXT, "", "完全没见过 unseen", "  ".join(words[i] for i in order)):
        expected = theirs(clean(text), max_length=24, truncation=True).input_ids
        assert ours.encode(text) == expected, text
