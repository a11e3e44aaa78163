"""GGUF files: what is read against the ``gguf`` package's own reader, and every refusal."""

from __future__ import annotations

import struct
import sys
import time

import pytest
import torch
from wanexperts.wan.files import gguf as ours
from wanexperts.wan.files import read_header, read_tensors

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")

PACKED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "IQ4_XS")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64, "I8": torch.int8,
         "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}  # fmt: skip


def writer(path, architecture="wan"):
    return gguf.GGUFWriter(str(path), architecture)


def close(file):
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def packed_bytes(name, *shape, seed=0):
    """Random bytes in the place of ``shape`` weights: reading does not care what they mean."""
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    size = (*shape[:-1], shape[-1] // block * nbytes)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture
def mixed(tmp_path):
    """A file with a tensor of every kind, and fields of every kind."""
    file = writer(tmp_path / "mixed.gguf")
    for name, dtype in PLAIN.items():
        values = torch.arange(24).to(dtype).reshape(2, 3, 4).numpy()
        file.add_tensor(name, values)
    bf16 = torch.randn(4, 6).bfloat16()
    file.add_tensor(
        "BF16", bf16.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16
    )
    for name in PACKED:
        file.add_tensor(name, packed_bytes(name, 3, 512), raw_dtype=gguf.GGMLQuantizationType[name])
    file.add_tensor("bias", np.ones(5, np.float32))
    file.add_tensor("scalar", np.ones(1, np.float32))
    file.add_string("general.name", "Ünïcode\nname")
    file.add_uint32("a.whole", 7)
    file.add_int64("a.negative", -(2**40))
    file.add_float32("a.fraction", 0.5)
    file.add_bool("a.flag", True)
    file.add_array("a.numbers", [1, 2, 3])
    file.add_array("a.words", ["x", "yy", ""])
    file.add_array("a.nested", [[1, 2], [3, 4]])
    close(file)
    return tmp_path / "mixed.gguf"


def test_a_header_tells_what_the_package_tells(mixed):
    header, theirs = read_header(mixed), gguf.GGUFReader(mixed)
    assert header.container == "gguf"
    assert list(header.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = header.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.dtype == tensor.tensor_type.name
        assert (info.file, info.name) == (mixed, tensor.name)
    scalars = {
        name: field.contents()
        for name, field in theirs.fields.items()
        if not name.startswith("GGUF.") and field.types[0] != gguf.GGUFValueType.ARRAY
    }
    assert scalars.keys() == header.metadata.keys()
    as_text = {
        k: str(v).lower() if isinstance(v, bool | np.bool_) else str(v) for k, v in scalars.items()
    }
    assert dict(header.metadata) == as_text
    assert header.metadata["general.architecture"] == "wan"


def test_tensors_are_what_the_package_reads(mixed):
    header, theirs = read_header(mixed), gguf.GGUFReader(mixed)
    tensors = read_tensors(mixed, header.tensors)
    for tensor in theirs.tensors:
        got = tensors[tensor.name]
        if tensor.name in PLAIN:
            assert got.dtype == PLAIN[tensor.name]
        if got.dtype is torch.bfloat16:
            got = got.view(torch.uint8)
        assert got.shape == tensor.data.shape
        assert torch.equal(got, torch.from_numpy(np.array(tensor.data)))


def test_tensors_are_mapped_and_the_file_stays_as_it_is(tmp_path):
    path = tmp_path / "big.gguf"
    file = writer(path)
    file.add_tensor("weight", np.zeros((1 << 12, 1 << 12), np.float32))  # 64 MB
    close(file)
    before = path.read_bytes()
    began = time.process_time()
    tensor = read_tensors(path, ["weight"])["weight"]
    tensor[0, 0] = 1  # a copy of this page alone
    assert time.process_time() - began < 0.02  # 0.0003 s; reading 64 MB takes 0.03 s
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert str(path) in maps.read()
    path_again = read_tensors(path, ["weight"])["weight"]
    assert path_again[0, 0] == 0
    assert path.read_bytes() == before


def test_the_shape_before_folding_is_honoured(tmp_path):
    path = tmp_path / "folded.gguf"
    file = writer(path)
    file.add_tensor("conv", np.arange(48, dtype=np.float32).reshape(4, 12))
    file.add_array("comfy.gguf.orig_shape.conv", [4, 3, 1, 2, 2])
    file.add_tensor(
        "packed", packed_bytes("Q4_K", 3, 512), raw_dtype=gguf.GGMLQuantizationType.Q4_K
    )
    file.add_array("comfy.gguf.orig_shape.packed", [6, 256])
    file.add_tensor("odd", packed_bytes("Q4_K", 3, 512), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    file.add_array("comfy.gguf.orig_shape.odd", [64, 24, 1, 1])
    close(file)
    infos, tensors = read_header(path).tensors, read_tensors(path, ["conv", "packed", "odd"])
    assert infos["conv"].shape == tensors["conv"].shape == (4, 3, 1, 2, 2)
    assert torch.equal(tensors["conv"].flatten(), torch.arange(48.0))
    assert infos["packed"].shape == (6, 256)
    assert tensors["packed"].shape == (6, 144)
    assert infos["odd"].shape == (64, 24, 1, 1)
    assert tensors["odd"].shape == (3, 288)


def test_five_axes_and_an_unusual_alignment(tmp_path):
    path = tmp_path / "aligned.gguf"
    file = writer(path)
    file.add_custom_alignment(256)
    values = torch.randn(4, 3, 1, 2, 2)
    file.add_tensor("patch_embedding.weight", values.numpy())
    file.add_tensor("after", np.ones(3, np.float16))
    close(file)
    tensors = read_tensors(path, ["patch_embedding.weight", "after"])
    assert torch.equal(tensors["patch_embedding.weight"], values)
    assert torch.equal(tensors["after"], torch.ones(3, dtype=torch.float16))


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "vocabulary.gguf"
    close(writer(path))
    assert not read_header(path).tensors


def test_the_package_is_named_when_it_is_missing(mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(ValueError, match="run `pip install gguf`"):
        read_header(mixed)


# --- damage ---------------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def listed(name=b"a", dims=(4,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def container(*, version=3, tensors=(), fields=(), counts=None, data=b"\0" * 64) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(fields))))
    head += b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


U32, STRING, ARRAY = 4, 8, 9
MANY = struct.pack("<Q", 2**62)
DAMAGED = {
    "magic alone": (b"GGUF", "runs past the end"),
    "version": (container(version=9), "version 9"),
    "version 1": (container(version=1), "version 1"),
    "big-endian": (container(version=3 << 24), "big-endian"),
    "tensor count": (container(counts=(2**63, 0)), "announces 9223372036854775808 tensors"),
    "field count": (container(counts=(0, 2**60)), "fields, more than it has room for"),
    "one tensor too many": (container(tensors=[listed()], counts=(2, 0)), "damaged"),
    "unknown type": (container(tensors=[listed(kind=99)]), "GGUF type 99.*pip install -U gguf"),
    "a type since removed": (container(tensors=[listed(kind=4)]), "GGUF type 4"),
    "axes": (container(tensors=[listed(dims=(1,) * 9)]), "has 9 axes"),
    "announced axes": (container(tensors=[text(b"a") + struct.pack("<I", 2**31)]), "axes"),
    "gigantic": (container(tensors=[listed(dims=(2**40, 2**40))]), "cannot be F32"),
    "empty and gigantic": (container(tensors=[listed(dims=(0, 2**62, 4))]), "cannot be F32"),
    "larger than the file": (container(tensors=[listed(dims=(2**40,))]), "is truncated"),
    "offset": (container(tensors=[listed(offset=2**50)]), "is truncated"),
    "crooked offset": (container(tensors=[listed(offset=2)]), "a place it cannot have"),
    "overlap": (
        container(tensors=[listed(), listed(b"b", offset=8)]), "'b' lies at a place it cannot have"
    ),
    "twice": (container(tensors=[listed(), listed(offset=32)]), "'a' is stored twice"),
    "partial block": (container(tensors=[listed(dims=(40,), kind=8)]), "cannot be Q8_0"),
    "name length": (container(tensors=[MANY]), "a name of"),
    "name not text": (container(tensors=[listed(b"\xff\xfe")]), "not text"),
    "field kind": (container(fields=[field(b"k", 77, b"")]), r"unknown kind \(77\)"),
    "field twice": (container(fields=[field(b"k", U32, bytes(4))] * 2), "'k' is told twice"),
    "string length": (container(fields=[field(b"k", STRING, MANY)]), "runs past the end"),
    "array length": (
        container(fields=[field(b"k", ARRAY, struct.pack("<I", 0) + MANY)]), "more than it has room"
    ),
    "array of strings": (
        container(fields=[field(b"k", ARRAY, struct.pack("<I", STRING) + MANY)]), "more than it has"
    ),
    "string in an array": (
        container(fields=[field(b"k", ARRAY, struct.pack("<IQ", STRING, 1) + MANY)]), "past the end"
    ),
    "array kind": (
        container(fields=[field(b"k", ARRAY, struct.pack("<IQ", 33, 1))]), "unknown kind"
    ),
    "nested without end": (
        container(fields=[field(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 2000)]), "unknown kind"
    ),
    "alignment": (
        container(fields=[field(b"general.alignment", U32, struct.pack("<I", 24))]), "power of two"
    ),
    "no alignment": (
        container(fields=[field(b"general.alignment", U32, bytes(4))]), "power of two"
    ),
    "alignment in words": (
        container(fields=[field(b"general.alignment", STRING, text(b"some"))]), "power of two"
    ),
    "part of several": (
        container(fields=[field(b"split.count", U32, struct.pack("<I", 3))]), "one of 3 parts"
    ),
    "folded wrongly": (
        container(tensors=[listed()], fields=[
            field(b"comfy.gguf.orig_shape.a", ARRAY, struct.pack("<IQ2i", 5, 2, -2, -2))]),
        "cannot be both",
    ),
    "folded in words": (
        container(tensors=[listed()], fields=[
            field(b"comfy.gguf.orig_shape.a", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"4"))]),
        "another kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_in_one_sentence(tmp_path, name):
    content, words = DAMAGED[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_header(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert told.isprintable()
    assert len(told) < 600 + len(str(path))


def test_the_hand_made_file_is_sound_without_damage(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(
        container(tensors=[listed(), listed(b"b", offset=32)], fields=[field(b"k", U32, bytes(4))])
    )
    assert {name: info.shape for name, info in read_header(path).tensors.items()} == {
        "a": (4,), "b": (4,)
    }  # fmt: skip
    assert [tensor.name for tensor in gguf.GGUFReader(path).tensors] == ["a", "b"]


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file(mixed, keep):
    content = mixed.read_bytes()
    mixed.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"truncated|past the end|more than it has room"):
        read_header(mixed)


def test_a_name_that_is_not_there(mixed):
    with pytest.raises(ValueError, match="holds no tensor 'nothing'"):
        read_tensors(mixed, ["nothing"])


def test_a_long_token_list_is_passed_over_quickly(tmp_path):
    path = tmp_path / "tokens.gguf"
    count = 256_384
    words = b"".join(text(b"token") for _ in range(count))
    tokens = field(b"tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, count) + words)
    path.write_bytes(container(tensors=[listed()], fields=[tokens]))
    began = time.process_time()
    assert list(read_header(path).tensors) == ["a"]
    assert time.process_time() - began < 3  # 0.13 s; the package's reader takes 12 s


def test_header_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "HEADER_LIMIT", 100)
    path = tmp_path / "x.gguf"
    path.write_bytes(container(fields=[field(b"k", STRING, text(bytes(500)))]))
    with pytest.raises(ValueError, match="runs past the end"):
        read_header(path)
