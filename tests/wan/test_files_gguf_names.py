"""Names of umT5 tensors in GGUF files, against the tables of the ``gguf`` package."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.config import TextConfig
from wanexperts.wan.keys.text import gguf_key, hf_key
from wanexperts.wan.text import UMT5Encoder

gguf = pytest.importorskip("gguf")
CONFIG = TextConfig(
    vocab_size=8, dim=8, attn_dim=8, num_heads=2, ffn_dim=8, num_layers=3, num_buckets=8
)


def test_every_tensor_is_found_under_the_name_the_package_gives_it():
    official = list(UMT5Encoder(CONFIG, device=torch.device("meta")).state_dict())
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, CONFIG.num_layers)
    for key in official:
        stored = table.get_name(hf_key(key), try_suffixes=(".weight",))
        assert stored, key
        assert gguf_key(stored) == key


@pytest.mark.parametrize(
    "name",
    ["", "token_embd", "output.weight", "dec.blk.0.attn_q.weight", "enc.blk.0.cross_attn_q.weight",
     "enc.blk.x.attn_q.weight", "blk.0.attn_q.weight", "blocks.0.attn.q.weight", "dec.output_norm.weight"],
)  # fmt: skip
def test_other_names_are_none(name):
    assert gguf_key(name) is None
