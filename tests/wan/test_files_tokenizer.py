"""The tokenizer in a GGUF file's metadata, against the sentencepiece model it was written from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from safetensors import safe_open
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.files import read_tokenizer
from wanexperts.wan.text import Tokenizer

gguf = pytest.importorskip("gguf")
UnknownFieldSet = pytest.importorskip("google.protobuf.unknown_fields").UnknownFieldSet
pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ("a red circle moves left on a white background", "the 3 small cats, and 42 dogs!",
             "一个红色的圆圈在白色背景上向左移动", "鏡頭緩慢推進 镜头 cinematic lighting")  # fmt: skip
TEXTS = (
    *SENTENCES, "", " ", "   two  spaces   inside ", "Tab\tand\nnewline", "ﬁne ﬂour ½ ² Ⅳ ㎏ ＡＢＣ１２３",
    "naïve café cafe\u0301", "Ünïcödé ÄÖÜ ß", "emoji 🐈‍⬛🔥", "\u200bzero\u200bwidth\ufeff", "日本語のテキスト",
    "한국어", "مرحبا", "x" * 300, "a" * 30 + "红" * 30, "<pad></s><unk>", "<0x41>", "▁▁ a▁b", "\u3000全角空格",
    "\x00nul\x01", "!!!???...,,,", "UPPER lower MiXeD", "12345 6.789e-10", "\U00020000\U0010ffff",
)  # fmt: skip


def train(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES] * 20), model_writer=model, hard_vocab_limit=False,
        minloglevel=2, **{"vocab_size": 150, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **options},
    )  # fmt: skip
    return model.getvalue()


def tiny() -> bytes:
    path = ROOT / "tiny" / "weights" / "text_encoders" / "umt5_tiny.safetensors"
    with safe_open(str(path), framework="pt") as handle:
        return bytes(handle.get_tensor("spiece_model").tolist())


def write(path, model: bytes, *, unused: int = 0, leave: tuple[str, ...] = (), kind: str = "t5"):
    """A GGUF file of a T5 encoder that carries ``model`` as converters write it."""
    proto = pb.ModelProto.FromString(model)
    pieces = [(p.piece, p.score, p.type) for p in proto.pieces]
    pieces += [(f"[PAD{len(pieces) + i}]", -10000.0, 5) for i in range(unused)]
    texts, scores, kinds = zip(*pieces, strict=True)
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    file = gguf.GGUFWriter(str(path), "t5encoder")
    told = {
        "model": lambda: file.add_tokenizer_model(kind),
        "tokens": lambda: file.add_token_list([text.encode() for text in texts]),
        "scores": lambda: file.add_token_scores(scores),
        "types": lambda: file.add_token_types(kinds),
        "prefix": lambda: file.add_add_space_prefix(normalizer.add_dummy_prefix),
        "spaces": lambda: file.add_remove_extra_whitespaces(normalizer.remove_extra_whitespaces),
        "unknown": lambda: file.add_unk_token_id(spec.unk_id),
        "end": lambda: file.add_eos_token_id(spec.eos_id),
        "padding": lambda: file.add_pad_token_id(spec.pad_id),
    }
    if normalizer.precompiled_charsmap:
        told["charsmap"] = lambda: file.add_precompiled_charsmap(normalizer.precompiled_charsmap)
    for name, tell in told.items():
        if name not in leave:
            tell()
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    made = sentencepiece.SentencePieceProcessor()
    made.LoadFromSerializedProto(model)
    return made


MODELS = {
    "bundled": tiny,
    "plain": lambda: sentencepiece_model(60),
    "bytes": lambda: train(byte_fallback=True, vocab_size=400),
    "case folded": lambda: train(normalization_rule_name="nmt_nfkc_cf"),
    "not normalised": lambda: train(normalization_rule_name="identity"),
    "no prefix": lambda: train(add_dummy_prefix=False),
    "spaces kept": lambda: train(remove_extra_whitespaces=False),
    "user symbols": lambda: train(user_defined_symbols=["<extra_id_0>", "circle"]),
    "control symbols": lambda: train(control_symbols=["<mask>"], bos_id=3),
}


@pytest.mark.parametrize("unused", [0, 40])
@pytest.mark.parametrize("name", MODELS)
def test_every_text_gets_the_ids_of_the_original(tmp_path, name, unused):
    model = MODELS[name]()
    rebuilt = read_tokenizer(write(tmp_path / "t5.gguf", model, unused=unused))
    ours, theirs = processor(rebuilt), processor(model)
    for text in TEXTS:
        assert ours.EncodeAsIds(text) == theirs.EncodeAsIds(text), text
        assert ours.DecodeIds(ours.EncodeAsIds(text)) == theirs.DecodeIds(theirs.EncodeAsIds(text))
    assert ours.vocab_size() == theirs.vocab_size() + unused
    for special in ("unk_id", "eos_id", "pad_id"):
        assert getattr(ours, special)() == getattr(theirs, special)()
    assert Tokenizer(rebuilt).encode("a red circle") == Tokenizer(model).encode("a red circle")


def test_the_written_message_is_what_protobuf_reads(tmp_path):
    model = MODELS["bytes"]()
    proto, original = (
        pb.ModelProto.FromString(data)
        for data in (read_tokenizer(write(tmp_path / "t5.gguf", model)), model)
    )
    assert [(p.piece, p.score, p.type) for p in proto.pieces] == [
        (p.piece, p.score, p.type) for p in original.pieces
    ]
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    assert spec.model_type == pb.TrainerSpec.UNIGRAM
    for name in ("byte_fallback", "unk_id", "bos_id", "eos_id", "pad_id", "eos_piece", "pad_piece"):
        assert getattr(spec, name) == getattr(original.trainer_spec, name), name
    assert normalizer.precompiled_charsmap == original.normalizer_spec.precompiled_charsmap
    assert not any(len(UnknownFieldSet(part)) for part in (proto, spec, normalizer))


def test_what_converters_may_leave_out(tmp_path):
    model = MODELS["bundled"]()
    path = write(tmp_path / "t5.gguf", model, leave=("prefix", "spaces", "unknown", "padding"))
    ours, theirs = processor(read_tokenizer(path)), processor(model)
    assert all(ours.EncodeAsIds(text) == theirs.EncodeAsIds(text) for text in TEXTS)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_another_kind_of_tokenizer_is_none(tmp_path, kind):
    assert read_tokenizer(write(tmp_path / "x.gguf", sentencepiece_model(60), kind=kind)) is None


def test_a_file_without_tokenizer_is_none(tmp_path):
    left = ("model", "tokens", "scores", "types")
    assert read_tokenizer(write(tmp_path / "x.gguf", sentencepiece_model(60), leave=left)) is None
    assert read_tokenizer(ROOT / "tiny" / "weights" / "vae" / "wan_tiny_vae.safetensors") is None


@pytest.mark.parametrize("lacking", ["tokens", "scores", "types"])
def test_an_incomplete_tokenizer_is_refused(tmp_path, lacking):
    path = write(tmp_path / "x.gguf", sentencepiece_model(60), leave=(lacking,))
    with pytest.raises(ValueError, match="lacks tokens, scores or token types"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("add_token_scores", [0.0], "one score and one type for each"),
        ("add_token_types", [9, 2], "of an unknown type"),
        ("add_token_types", [1, 1], "no unknown token"),
        ("add_token_list", [1, 2], "of another kind"),
        ("add_eos_token_id", 77, "has no token 77"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path, field, value, words):
    told = {"add_token_list": ["a", "b"], "add_token_scores": [0.0, 0.0], "add_token_types": [1, 2]}
    file = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "t5encoder")
    file.add_tokenizer_model("t5")
    for name, content in {**told, field: value}.items():
        getattr(file, name)(content)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    with pytest.raises(ValueError, match=words):
        read_tokenizer(tmp_path / "x.gguf")
