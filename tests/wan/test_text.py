"""The umT5 encoder and its tokenizer by their own rules, without an oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.config import TINY
from wanexperts.wan.text import Tokenizer, UMT5Encoder, clean, encode_prompt, hf_key, official_key
from wanexperts.wan.text.umt5 import bucket_edges, clamp_float16, position_buckets

TEXT = (
    "A red circle moves left on a white background.",
    "A blue square moves up on a black background.",
    "一个红色的圆形在白色背景上向左移动。",
    "一个蓝色的方块在黑色背景上向上移动。",
)
CONFIG = replace(TINY.text, vocab_size=96, dim=32, attn_dim=48, ffn_dim=40, text_len=12)


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A small sentencepiece model in the T5 layout: pad 0, end 1, unknown 2."""
    return sentencepiece_model(96, TEXT)


@pytest.fixture(scope="module")
def encoder() -> UMT5Encoder:
    torch.manual_seed(3)
    return UMT5Encoder(CONFIG).eval()


def test_bucket_edges_are_the_published_ones() -> None:
    assert bucket_edges(32, 128) == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]


def test_buckets_follow_the_logarithm_between_edges() -> None:
    length = 400
    buckets = position_buckets(length, num_buckets=32, max_distance=128)
    for distance in (0, 1, 7, 9, 11, 13, 20, 30, 40, 60, 90, 92, 127, 200, 399):
        far = 8 + int(math.log(max(distance, 8) / 8) / math.log(16) * 8)
        expected = distance if distance < 8 else min(15, far)
        assert buckets[distance, 0] == expected
        assert buckets[0, distance] == expected + (16 if distance else 0)


def test_every_layer_has_its_own_position_table(encoder: UMT5Encoder) -> None:
    ids = torch.arange(6)[None] + 3
    before = encoder(ids)
    for block in encoder.blocks:
        table = block.pos_embedding.embedding.weight
        kept = table.detach().clone()
        with torch.no_grad():
            table.add_(torch.randn_like(table))
        assert not torch.allclose(encoder(ids), before, atol=1e-4)
        with torch.no_grad():
            table.copy_(kept)


def test_padding_changes_nothing(encoder: UMT5Encoder) -> None:
    ids = torch.tensor([[5, 9, 2, 30, 1]])
    padded = torch.cat([ids, torch.zeros(1, 7, dtype=torch.int64)], dim=1)
    mask = (torch.arange(12) < 5).long()[None]
    with torch.no_grad():
        torch.testing.assert_close(encoder(padded, mask)[:, :5], encoder(ids), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(encoder(padded)[:, :5], encoder(ids), atol=1e-3)


def test_state_dict_has_the_official_keys(encoder: UMT5Encoder) -> None:
    block = {
        "norm1.weight",
        "attn.q.weight",
        "attn.k.weight",
        "attn.v.weight",
        "attn.o.weight",
        "pos_embedding.embedding.weight",
        "norm2.weight",
        "ffn.gate.0.weight",
        "ffn.fc1.weight",
        "ffn.fc2.weight",
    }
    expected = {"token_embedding.weight", "norm.weight"}
    expected |= {f"blocks.{n}.{name}" for n in range(CONFIG.num_layers) for name in block}
    assert set(encoder.state_dict()) == expected
    assert {official_key(hf_key(key) or "") for key in expected} == expected


def test_full_size_has_the_published_parameter_count() -> None:
    from wanexperts.wan.config import T2V_A14B

    encoder = UMT5Encoder(T2V_A14B.text, device=torch.device("meta"), dtype=torch.bfloat16)
    assert len(encoder.state_dict()) == 242
    assert sum(p.numel() for p in encoder.parameters()) == 5_680_910_336


@pytest.mark.parametrize(
    "key",
    ["", "shared", "encoder.block.0.layer.2.x.weight", "decoder.block.0.layer.0.layer_norm.weight"],
)
def test_foreign_keys_have_no_official_name(key: str) -> None:
    assert official_key(key) is None


def test_quantisation_parts_follow_their_layer() -> None:
    key = "encoder.block.7.layer.1.DenseReluDense.wi_1.scale_weight"
    assert official_key(key) == "blocks.7.ffn.fc1.scale_weight"
    assert hf_key("blocks.7.ffn.fc1.scale_weight") == key
    assert official_key("encoder.embed_tokens.weight") == official_key("shared.weight")


def test_float16_infinities_are_pulled_back() -> None:
    half = torch.tensor([float("inf"), -float("inf"), 3.0, 65504.0], dtype=torch.float16)
    assert clamp_float16(half).tolist() == [64512.0, -64512.0, 3.0, 64512.0]
    assert clamp_float16(half[2:]).tolist() == [3.0, 65504.0]
    assert clamp_float16(half.float()).isinf().any()


def test_compute_dtype_is_the_embeddings_unless_asked() -> None:
    class Casting:
        """Layers that compute in the input's dtype, as a host's do."""

        class Linear(torch.nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.nn.functional.linear(x, self.weight.to(x.dtype))

        Embedding = torch.nn.Embedding

    encoder = UMT5Encoder(CONFIG, ops=Casting, dtype=torch.bfloat16)
    ids = torch.tensor([[4, 1]])
    assert encoder(ids).dtype is torch.bfloat16
    wide = encoder(ids, dtype=torch.float32)
    assert wide.dtype is torch.float32
    reference = UMT5Encoder(CONFIG)
    reference.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(wide, reference(ids), rtol=1e-5, atol=1e-6)


def test_uneven_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="attn_dim=50 is not a multiple of num_heads=4"):
        UMT5Encoder(replace(CONFIG, attn_dim=50))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("  a\t red\n\ncircle ", "a red circle"),
        ("a &amp;amp; b", "a & b"),
        # Text with a tag is left alone by ftfy, so both levels fall to html.unescape.
        ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),
        ("caf&eacute; Red", "café Red"),
        ("schÃ¶n", "schön"),
        ("&nbsp; 红色\u3000圆 ", "红色 圆"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_cleaning(given: str, expected: str) -> None:
    assert clean(given) == expected


def test_tokenizer_ends_and_truncates(spiece: bytes) -> None:
    tokenizer = Tokenizer(spiece, text_len=6)
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode(" \n ") == [1]
    short = tokenizer.encode("A red")
    assert short[-1] == 1
    assert len(short) <= 6
    long = tokenizer.encode(TEXT[0])
    assert len(long) == 6
    assert long[-1] == 1
    assert long[:-1] == Tokenizer(spiece).encode(TEXT[0])[:5]
    assert tokenizer.encode("A  red ") == short


def test_tokenizer_reads_files_and_refuses_others(spiece: bytes, tmp_path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(spiece)
    assert Tokenizer.from_file(path).encode(TEXT[2]) == Tokenizer(spiece).encode(TEXT[2])
    with pytest.raises(ValueError, match="5 bytes are not a sentencepiece model"):
        Tokenizer(b"hello")
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file(tmp_path / "missing.model")
    with pytest.raises(ValueError, match="text_len=0"):
        Tokenizer(spiece, text_len=0)


def test_context_is_the_text_then_zero_rows(spiece: bytes, encoder: UMT5Encoder) -> None:
    tokenizer = Tokenizer(spiece, text_len=CONFIG.text_len)
    ids = tokenizer.encode("A red")
    context = encode_prompt(encoder, tokenizer, "A red")
    assert context.shape == (1, CONFIG.text_len, CONFIG.dim)
    assert not context.requires_grad
    assert torch.equal(context[:, : len(ids)], encoder(torch.tensor([ids])))
    assert context[:, : len(ids)].abs().amin(dim=(0, 1)).max() > 0
    assert torch.equal(context[:, len(ids) :], torch.zeros_like(context[:, len(ids) :]))
    full = encode_prompt(encoder, tokenizer, TEXT[0] * 3)
    assert full.shape == context.shape
