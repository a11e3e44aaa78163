"""Weight files: kinds told by content, safetensors against its own package, paths that are no files."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from wanexperts.wan.files import (
    DTYPES,
    read_header,
    read_tensors,
    read_tokenizer,
    safetensors,
    shown,
)

F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def assembled(header, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file around any header; ``length`` is what it says of its own size."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def refused(path: Path, words: str, kind: type[Exception] = ValueError) -> None:
    """Every way in refuses ``path`` in one printable sentence with ``words`` in it."""
    for read in (read_header, lambda path: read_tensors(path, ["a"]), read_tokenizer):
        with pytest.raises(kind, match=words) as caught:
            read(path)
        told = str(caught.value)
        assert told.isprintable()
        assert told.encode()
        assert told.startswith(shown(path))
        assert len(told) < 1000


# --- safetensors ----------------------------------------------------------------------------------


def test_every_dtype_reads_as_the_package_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    for name, dtype in DTYPES.items():
        bits = 4 if name == "F4" else dtype.itemsize * 8
        entry = {"dtype": name, "shape": [2, 8], "data_offsets": [0, 2 * bits]}
        path.write_bytes(assembled({"a": entry}, bytes(2 * bits)))
        info = read_header(path).tensors["a"]
        assert (info.dtype, info.shape, info.file, info.name) == (name, (2, 8), path, "a")
        with safe_open(str(path), framework="pt") as handle:
            theirs = handle.get_tensor("a")
        ours = read_tensors(path, ["a"])["a"]
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == theirs.shape


def test_tensors_and_metadata_are_what_was_saved(tmp_path):
    path = tmp_path / "x.safetensors"
    state = {"b": torch.randn(3, 4), "a.ü": torch.arange(5), "scalar": torch.tensor(2.0),
             "none": torch.empty(0, 3)}  # fmt: skip
    save_file(state, path, metadata={"format": "pt", "text": '{"a": [1]}'})
    header = read_header(path)
    assert header.container == "safetensors"
    assert dict(header.metadata) == {"format": "pt", "text": '{"a": [1]}'}
    assert {k: info.shape for k, info in header.tensors.items()} == {
        k: tuple(t.shape) for k, t in state.items()
    }
    tensors = read_tensors(path, state)
    assert all(torch.equal(tensors[key], state[key]) for key in state)


def test_a_file_without_tensors_and_a_padded_header(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(assembled({}, b""))
    assert not read_header(path).tensors
    path.write_bytes(assembled(b'  {"__metadata__":null,"a":%s}   ' % json.dumps(F32).encode()))
    assert read_tensors(path, list(read_header(path).tensors))["a"].shape == (4,)


def entry(**changes) -> dict:
    return {"a": {**F32, **changes}}


def two(begin: int, end: int) -> dict:
    return {"a": F32, "b": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}}


DAMAGED = {
    "not JSON": (assembled(b'{"a": nothing}'), "its header: Expecting value"),
    "cut JSON": (assembled(b'{"a": {"dtype": "F32", "sh'), "its header: Unterminated string"),
    "not text": (assembled(b'{"\xff\xfe": 1}'), "its header is not text"),
    "lone surrogate": (assembled(b'{"\\ud800": {}}'), "its header is not text"),
    "two values": (assembled(b"{} {}"), "its header: Extra data"),
    "a name twice": (assembled(b'{"a\\n": {}, "a\\u000a": {}}'), r"'a\\n' is named twice"),
    "a key twice": (assembled(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is named twice"),
    "metadata twice": (assembled(b'{"__metadata__": {}, "__metadata__": {}}'), "named twice"),
    "nested without end": (assembled(b'{"a":' + b"[" * 200_000), "nested without end"),
    "nested objects": (assembled(b'{"a":' * 200_000), "nested without end"),
    "long number": (assembled(b'{"a":' + b"9" * 10_000 + b"}"), "its header: "),
    "not a table of tables": (assembled({"a": 3}), "'a' has no dtype, shape and place"),
    "null entry": (assembled({"a": None}), "'a' has no dtype, shape and place"),
    "no dtype": (assembled({"a": {"shape": [4], "data_offsets": [0, 16]}}), "no dtype"),
    "no place": (assembled({"a": {"shape": [4], "dtype": "F32"}}), "no dtype, shape and place"),
    "unknown dtype": (assembled(entry(dtype="Q9_Z")), "'a' as Q9_Z, which this torch cannot read"),
    "six bits": (assembled(entry(dtype="F6_E2M3")), "'a' as F6_E2M3, which this torch cannot"),
    "dtype is a number": (assembled(entry(dtype=3)), "the dtype of 'a' is no name"),
    "dtype is a list": (assembled(entry(dtype=["F32"])), "the dtype of 'a' is no name"),
    "shape is a number": (assembled(entry(shape=4)), "shape or place of 'a'"),
    "shape of fractions": (assembled(entry(shape=[4.0])), "shape or place of 'a'"),
    "shape of truths": (assembled(entry(shape=[True])), "shape or place of 'a'"),
    "negative shape": (assembled(entry(shape=[-4])), "shape or place of 'a'"),
    "two negative axes": (assembled(entry(shape=[-2, -2])), "shape or place of 'a'"),
    "gigantic axis": (assembled(entry(shape=[2**64])), "shape or place of 'a'"),
    "gigantic product": (assembled(entry(shape=[2**62, 2**62])), "'a' has 16 bytes, which are not"),
    "overflow to zero": (assembled(entry(shape=[2**32, 2**32])), "'a' has 16 bytes, which are not"),
    "many axes": (assembled(entry(shape=[1] * 100)), "shape or place of 'a'"),
    "shape too small": (assembled(entry(shape=[3])), "'a' has 16 bytes, which are not F32 \\[3\\]"),
    "place backwards": (assembled(entry(data_offsets=[16, 0])), "'a' has -16 bytes"),
    "place of three": (assembled(entry(data_offsets=[0, 8, 16])), "shape or place of 'a'"),
    "place negative": (assembled(entry(data_offsets=[-16, 0])), "shape or place of 'a'"),
    "gap at the start": (assembled(entry(data_offsets=[4, 20]), bytes(20)), "leave a gap at 'a'"),
    "gap": (assembled(two(20, 24), bytes(24)), "leave a gap at 'b'"),
    "overlap": (assembled(two(8, 24), bytes(24)), "overlap at 'b'"),
    "same place": (assembled(two(0, 16)), "overlap at 'b'"),
    "metadata are numbers": (assembled({"__metadata__": {"a": 1}}), "its metadata are not text"),
    "metadata are a list": (assembled({"__metadata__": [1]}), "its metadata are not text"),
    "bytes left over": (assembled({"a": F32}, bytes(17)), "1 bytes follow its last tensor"),
    "truncated": (assembled({"a": F32}, bytes(15)), "is truncated: 8[0-9] of 8[0-9] bytes"),
    "far outside": (
        assembled(entry(shape=[2**50], data_offsets=[0, 2**52])), "is truncated: .* bytes; download"
    ),
    "header longer than the file": (assembled({"a": F32}, length=5000), "truncated: 8. of 5008"),
    "header of a terabyte": (assembled({"a": F32}, length=2**40), "announces a header of 1099511627"),
    "header too short": (assembled({"a": F32}, length=9), "damaged safetensors file"),
    "no header": (assembled({"a": F32}, length=0), "damaged safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_safetensors(tmp_path, name):
    content, words = DAMAGED[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_header(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert told.isprintable()
    assert len(told) < 800


@pytest.mark.parametrize("name", sorted(set(DAMAGED) - {"six bits"}))
def test_the_package_refuses_the_same_files(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[name][0])
    with pytest.raises(SafetensorError):
        safe_open(str(path), framework="pt")
    with pytest.raises(ValueError, match="is a damaged safetensors file"):
        read_tensors(path, ["a"])


def test_a_tensor_twice_is_refused_where_the_package_takes_the_last(tmp_path):
    path = tmp_path / "x.safetensors"
    told = json.dumps(F32)
    path.write_bytes(assembled(f'{{"a": {told}, "a": {told}}}'.encode()))
    with safe_open(str(path), framework="pt") as handle:
        assert list(handle.keys()) == ["a"]
    with pytest.raises(ValueError, match="'a' is named twice"):
        read_header(path)


def test_many_names_and_long_names_make_short_sentences(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(assembled({"n\n" * 100_000: 3}))
    with pytest.raises(ValueError, match="has no dtype, shape and place") as caught:
        read_header(path)
    assert len(str(caught.value)) < 1500


def test_a_header_of_too_many_parts_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "STRUCTURE_LIMIT", 5)
    path = tmp_path / "x.safetensors"
    path.write_bytes(assembled({"a": F32}))
    with pytest.raises(ValueError, match="has more parts than any model"):
        read_header(path)


def test_a_name_that_is_not_there(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors holds no tensor 'b\\n'; use another file"):
        read_tensors(tmp_path / "x.safetensors", ["b\n"])


# --- what it is not -------------------------------------------------------------------------------

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 28577081696
"""
FOREIGN = {
    "empty": (b"", "is empty; download it again"),
    "git-lfs": (POINTER, "is a git-LFS pointer.*download the file itself"),
    "web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
    "web page without doctype": (b"<html lang='en'>\xc3\xbc", "is a web page"),
    "server error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "words": (b"Entry not found", "holds text .'Entry not found'., not weights"),
    "JSON answer": (b'{"error":"Repository not found"}\n', "holds text"),
    "an index": (b'{\r\n\t"metadata": {}, "weight_map": {}}', "holds text"),
    "YAML": (b"model:\n  target: ldm\n", "holds text"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "is a 7z archive"),
    "RAR": (b"Rar!\x1a\x07\x01\0", "is a RAR archive"),
    "pickle": (pickle.dumps({"a": 1}), "is a bare pickle"),
    "zeros": (bytes(4096), "starts with zeros: its download did not finish"),
    "noise": (bytes(range(1, 256)), "is not a weight file of a known kind"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(30), "is not a weight file of a known kind"),
    "a few bytes": (b"\x08\0\0\0\0\0\0", "is not a weight file of a known kind"),
    "GGML": (b"lmgg" + bytes(50), "is not a weight file of a known kind"),
    "torch of 2016": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a bare pickle"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".gguf"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_content_is_named(tmp_path, name, suffix):
    content, words = FOREIGN[name]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refused(path, words)


@pytest.mark.parametrize("suffix", [".pth", ".gguf", ".bin", ""])
def test_the_content_decides_not_the_suffix(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    save_file({"a": torch.ones(2)}, path)
    assert read_header(path).container == "safetensors"
    assert torch.equal(read_tensors(path, ["a"])["a"], torch.ones(2))


# --- paths ----------------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    refused(tmp_path / "x.safetensors", "does not exist; check the name", FileNotFoundError)
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "x.gguf", "does not exist; check the name", FileNotFoundError)


def test_a_folder(tmp_path):
    refused(tmp_path, "is a folder; choose a file in it", IsADirectoryError)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links(tmp_path):
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    refused(loop, r"cannot be read \(too many levels of symbolic links\)", OSError)
    dangling = tmp_path / "dangling.safetensors"
    dangling.symlink_to(tmp_path / "gone")
    refused(dangling, "is a link to a file that does not exist", FileNotFoundError)
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    good = tmp_path / "good.safetensors"
    good.symlink_to(tmp_path / "x.safetensors")
    assert "a" in read_header(good).tensors


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(tmp_path / "pipe.safetensors", "is a pipe, socket or device", OSError)
    refused(Path("/dev/zero"), "is a pipe, socket or device", OSError)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s.gguf")
        refused(Path("s.gguf"), "is a pipe, socket or device", OSError)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden_files(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    path.chmod(0)
    refused(path, r"cannot be read \(permission denied\)", PermissionError)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_to_open(tmp_path, monkeypatch, number):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)

    def fail(self, *arguments):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", fail)
    refused(path, os.strerror(number).lower(), OSError)


def test_names_that_are_no_paths(tmp_path):
    refused(tmp_path / ("x" * 300), "file name too long", OSError)
    refused(tmp_path / "a\0b", "is not a path; choose a file")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take such names")
def test_names_that_are_not_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.safetensors"))
    path.write_bytes(b"x")
    refused(path, "has a name that is not valid UTF-8; rename the file")
    assert shown(path).endswith(r"\udcff\udcfe.safetensors")


@pytest.mark.parametrize(
    "name", ["模型 ü.safetensors", "a\nb.safetensors", "a\x1b[31mb.safetensors"]
)
def test_unusual_names_are_read_and_shown_on_one_line(tmp_path, name):
    path = tmp_path / name
    save_file({"a": torch.ones(2)}, path)
    assert "a" in read_header(path).tensors
    assert torch.equal(read_tensors(path, ["a"])["a"], torch.ones(2))
    path.write_bytes(b"")
    refused_words = "is empty"
    with pytest.raises(ValueError, match=refused_words) as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    assert ("模型" in str(caught.value)) == ("模型" in name)


def test_shown():
    assert shown(Path("模型/a b.gguf")) == str(Path("模型/a b.gguf"))
    assert shown("C:\\models\\x") == "C:\\models\\x"
    assert shown("a\nb\t\udc80") == r"a\nb\t\udc80"
    assert len(shown("x" * 10_000)) < 500
