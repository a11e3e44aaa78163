"""Damaged containers, files that hold no weights at all, and folders that are not what they seem."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import socket
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wanexperts.tests.wan.family import TEXT
from wanexperts.tests.wan.zoo_base import (
    GENERATE,
    LOAD,
    Kind,
    expert,
    layout,
    spiece,
    text,
    vae,
    write,
    write_raw,
)

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def content(data: bytes, name: str = "model.safetensors") -> Callable[[Path], Path]:
    """The maker of a file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def header(value: object, payload: int | None = None) -> Callable[[Path], Path]:
    """The maker of a safetensors file of this header."""
    return lambda folder: write_raw(folder / "model.safetensors", value, payload)


def _named(name: str) -> Callable[[Path], Path]:
    """The maker of a file that holds something else under this name."""
    return lambda folder: write(folder / name, {"conv.weight": torch.zeros(2, 2)})


# --- safetensors


def _truncated(folder: Path) -> Path:
    path = write(folder / "model.safetensors", expert())
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _truncated_header(folder: Path) -> Path:
    path = write(folder / "model.safetensors", expert())
    path.write_bytes(path.read_bytes()[:700])
    return path


def _two_in_one(folder: Path) -> Path:
    path = write(folder / "model.safetensors", expert())
    path.write_bytes(path.read_bytes() * 2)
    return path


def _twice_named(folder: Path) -> Path:
    one = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return write_raw(folder / "model.safetensors", f"{{{one},{one}}}".encode(), 4)


def _swapped_offsets(folder: Path) -> Path:
    entries = layout({"a": ("F32", (4,), 16), "b": ("F32", (4,), 16)})
    entries["b"]["data_offsets"] = [8, 24]
    return write_raw(folder / "model.safetensors", entries, 32)


# --- nothing to open


def _loop(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(folder / "other.safetensors")
    (folder / "other.safetensors").symlink_to(folder / "model.safetensors")
    return folder / "model.safetensors"


def _dangling(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(folder / "moved" / "away.safetensors")
    return folder / "model.safetensors"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.safetensors")
    return folder / "model.safetensors"


def _socket(folder: Path) -> Path:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(folder)  # the path of a socket is at most 108 bytes long
        try:
            made.bind("model.safetensors")
        finally:
            os.chdir(here)
    return folder / "model.safetensors"


def _forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """No permission to read; the superuser has every permission, so it is played there."""
    if os.geteuid():
        path.chmod(0)
        return
    opened = Path.open

    def refusing(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)


# --- folders of shards


def shards(
    folder: Path,
    *,
    weight_map: Mapping[str, object] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """An official expert folder of two shards; ``weight_map`` overrides entries of its index."""
    place = folder / "high_noise_model"
    place.mkdir()
    state = expert() if state is None else state
    listed: dict[str, object] = {}
    for number, keys in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        name = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        write(place / name, {key: state[key] for key in keys})
        listed |= dict.fromkeys(keys, name)
    index = {"metadata": {}, "weight_map": {**listed, **(weight_map or {})}}
    (place / INDEX).write_text(json.dumps(index))
    return place


FIRST = "diffusion_pytorch_model-00001-of-00002.safetensors"
SECOND = "diffusion_pytorch_model-00002-of-00002.safetensors"


def _missing_shard(folder: Path) -> Path:
    place = shards(folder)
    (place / SECOND).unlink()
    return place


def _missing_index(folder: Path) -> Path:
    place = shards(folder)
    (place / INDEX).unlink()
    return place


def _indexed(replacement: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = shards(folder)
        (place / INDEX).write_bytes(replacement)
        return place

    return make


def _index_names(shard: object) -> Callable[[Path], Path]:
    """The maker of a folder whose index puts one tensor into ``shard``."""
    return lambda folder: shards(folder, weight_map={"head.modulation": shard})


def _names_a_neighbour(folder: Path) -> Path:
    write(folder / "secret.safetensors", {"head.modulation": expert()["head.modulation"]})
    return _index_names("../secret.safetensors")(folder)


def _names_by_absolute_path(folder: Path) -> Path:
    path = write(folder / "secret.safetensors", {"head.modulation": expert()["head.modulation"]})
    return _index_names(str(path))(folder)


def _swapped_shards(folder: Path) -> Path:
    place = shards(folder)
    (place / FIRST).rename(place / "x")
    (place / SECOND).rename(place / FIRST)
    (place / "x").rename(place / SECOND)
    return place


def _truncated_shard(folder: Path) -> Path:
    place = shards(folder)
    (place / SECOND).write_bytes((place / SECOND).read_bytes()[:-1])
    return place


def _pickled_shard(folder: Path) -> Path:
    place = shards(folder)
    torch.save(dict(expert()), place / SECOND)
    return place


def _fifo_index(folder: Path) -> Path:
    place = shards(folder)
    (place / INDEX).unlink()
    os.mkfifo(place / INDEX)
    return place


def _huge_index(folder: Path) -> Path:
    place = shards(folder)
    with (place / INDEX).open("ab") as handle:
        handle.truncate(4 << 30)
    return place


def _index_of_less(folder: Path) -> Path:
    """The shards hold a tensor that the index does not list."""
    place = shards(folder)
    index = json.loads((place / INDEX).read_text())
    del index["weight_map"]["head.head.bias"]
    (place / INDEX).write_text(json.dumps(index))
    return place


def _two_indexes(folder: Path) -> Path:
    place = shards(folder)
    (place / "diffusion_pytorch_model.fp16.safetensors.index.json").write_bytes(
        (place / INDEX).read_bytes()
    )
    return place


def _empty_folder(folder: Path) -> Path:
    (folder / "high_noise_model").mkdir()
    return folder / "high_noise_model"


def _folder_called_like_a_file(folder: Path) -> Path:
    (folder / "model.safetensors").mkdir()
    return folder / "model.safetensors"


# --- torch archives


class Runs:
    """Leaves a file behind when a pickle of it is read."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.sentinel),)


def sentinel(path: Path) -> Path:
    """What code in the pickles of this folder would make."""
    return path.parent / "CODE_HAS_RUN"


def code_archive(path: Path) -> Path:
    """An archive of torch with weights and code."""
    torch.save({**vae(), "extra": Runs(sentinel(path))}, path)
    return path


def code_pickle(path: Path, protocol: int = 2) -> Path:
    """A bare pickle that is nothing but code."""
    path.write_bytes(pickle.dumps(Runs(sentinel(path)), protocol=protocol))
    return path


def code_in_tensors(path: Path) -> Path:
    """An archive that reaches for code by an opcode alone, without an object of its own."""
    # Protocol 2; posix.mkdir of the sentinel; the result is thrown away; an empty dict remains.
    program = b"\x80\x02cposix\nmkdir\n(" + b"V" + str(sentinel(path)).encode() + b"\ntR0}."
    return archive(path, {"data.pkl": program, "version": b"3\n"})


def archive(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A zip archive in the form of torch's."""
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members.items():
            made.writestr(f"archive/{name}", data)
    return path


def _bomb(folder: Path) -> Path:
    members = {"data.pkl": b"\x80\x02}.", "data/0": bytes(50_000_000)}
    return archive(folder / "vae.pth", members, zipfile.ZIP_DEFLATED)


def _lying_bomb(folder: Path) -> Path:
    """Stored members that overlap: the directory promises more than there is."""
    path = archive(folder / "vae.pth", {"data.pkl": b"\x80\x02}.", "data/0": bytes(1000)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data)
    return path


def _many_members(folder: Path) -> Path:
    """One small part under 100,001 names."""
    path = archive(folder / "vae.pth", {"data.pkl": b"\x80\x02}."})
    data = path.read_bytes()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[begin:end]
    entries = b"".join(
        entry.replace(b"archive/data.pkl", b"archive/%08d" % number) for number in range(100_001)
    )
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entries), begin, 0)
    path.write_bytes(data[:begin] + entries + last)
    return path


def _legacy(folder: Path) -> Path:
    torch.save(vae(), folder / "vae.pth", _use_new_zipfile_serialization=False)
    return folder / "vae.pth"


def _whole_module(folder: Path) -> Path:
    torch.save(torch.nn.Linear(2, 2), folder / "vae.pth")
    return folder / "vae.pth"


def _truncated_archive(folder: Path) -> Path:
    torch.save(vae(), folder / "vae.pth")
    (folder / "vae.pth").write_bytes((folder / "vae.pth").read_bytes()[:-500])
    return folder / "vae.pth"


def _documents(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "workflow.pth", "w") as made:
        made.writestr("workflow.json", "{}")
    return folder / "workflow.pth"


def _list_of_tensors(folder: Path) -> Path:
    torch.save([torch.zeros(2)], folder / "vae.pth")
    return folder / "vae.pth"


def _deep_pickle(folder: Path) -> Path:
    members = {"data.pkl": b"\x80\x02" + b"(" * 100_000 + b".", "version": b"3\n"}
    return archive(folder / "vae.pth", members)


# --- GGUF


def string(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_bytes(
    tensors: Mapping[str, tuple[tuple[int, ...], int]],
    fields: Mapping[str, str] | None = None,
    version: int = 3,
    payload: int = 0,
) -> bytes:
    """A GGUF file of tensors name -> (shape, type), all at the first byte of ``payload`` zeros."""
    fields = {"general.architecture": "wan", **(fields or {})}
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for key, value in fields.items():
        out += string(key) + struct.pack("<I", 8) + string(value)
    offset = 0
    for name, (shape, kind) in tensors.items():
        out += string(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, offset)
        offset += 32
    return out + bytes(-len(out) % 32) + bytes(payload)


F32, IQ2_XXS = 0, 16
LLAMA = {"token_embd.weight": ((8,), F32), "blk.0.attn_q.weight": ((8,), F32),
         "blk.0.ffn_gate.weight": ((8,), F32), "output_norm.weight": ((8,), F32)}  # fmt: skip


def _no_gguf(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)


def _gguf_code(folder: Path) -> Path:
    return content(gguf_bytes(LLAMA, payload=128), "model.gguf")(folder)


# --- metadata


def _with(**metadata: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "high.safetensors", expert(), **metadata)


def _beside(name: str, place: Callable[[Path], None]) -> Callable[[Path], Path]:
    """The maker of a good expert file with something odd beside it."""

    def make(folder: Path) -> Path:
        place(folder / name)
        return write(folder / "transformer" / "diffusion_pytorch_model.safetensors", expert())

    return make


def _tokenizer(stored: torch.Tensor) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "text.safetensors", {**text(), "spiece_model": stored})


def _huge_tokenizer(folder: Path) -> Path:
    state = {k: v for k, v in text().items() if k != "spiece_model"}
    shapes = {k: ("F32", tuple(v.shape), v.numel() * 4) for k, v in state.items()}
    shapes["spiece_model"] = ("U8", (1 << 31,), 1 << 31)
    return write_raw(folder / "text.safetensors", layout(shapes))


def _no_tokenizer(folder: Path) -> Path:
    state = {k: v for k, v in text().items() if k != "spiece_model"}
    return write(folder / "text.safetensors", state)


def _fifo_tokenizer(folder: Path) -> Path:
    os.mkfifo(folder / "spiece.model")
    return _no_tokenizer(folder)


def _few_rows(folder: Path) -> Path:
    return write(folder / "text.safetensors", text(replace(TEXT, vocab_size=16)))


def _garbage_tokenizer(folder: Path) -> Path:
    (folder / "spiece.model").write_bytes(b"<!DOCTYPE html>")
    return _no_tokenizer(folder)


def _png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(64)


def _tar() -> bytes:
    out = io.BytesIO()
    import tarfile

    with tarfile.open(fileobj=out, mode="w:gz") as made:
        made.addfile(tarfile.TarInfo("model"))
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f2e\nsize 28577000000\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
README = b"---\nlicense: apache-2.0\n---\n# Wan2.2\n"
ACCESS = b'{"error":"Access to model is restricted. You must be authenticated"}'
NESTED = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
BELONGS_TO_NOBODY = "is not a weight file of a known kind"
LATE_TOKENIZER = (LOAD, GENERATE, "inspect")

KINDS = [
    Kind(name="empty file", make=content(b""), words="is empty", host=True),
    Kind(name="LFS pointer", make=content(POINTER), words="git-LFS pointer", host=True),
    Kind(name="web page", make=content(PAGE), words="is a web page", host=True),
    Kind(name="README renamed", make=content(README), words="holds text ('---"),
    Kind(name="error message of a download", make=content(ACCESS), words="download it again"),
    Kind(name="picture renamed", make=content(_png()), words=BELONGS_TO_NOBODY),
    Kind(name="tar.gz renamed", make=content(_tar()), words="is a gzip archive; unpack it"),
    Kind(name="zeros of an unfinished download", make=content(bytes(4096)), words="starts with zeros"),
    Kind(name="four bytes", make=content(b"\x01\x02\x03\xff"), words=BELONGS_TO_NOBODY),
    Kind(name="truncated weights", make=_truncated, words="is truncated: ", host=True),
    Kind(name="truncated header", make=_truncated_header, words="is truncated: "),
    Kind(name="two files in one", make=_two_in_one, words="bytes follow its last tensor"),
    Kind(name="header is no JSON", make=header(b"{broken"), words="is a damaged safetensors file"),
    Kind(name="header is not text", make=header(b'{"\xff'), words="its header is not text"),
    Kind(name="header nested without end", make=header(NESTED), words="is nested without end"),
    Kind(name="header of a petabyte", make=content(b"\0\0\0\0\0\0\4\0{}"), words="announces a header"),
    Kind(name="name twice in a header", make=_twice_named, words="is named twice"),
    Kind(name="overlapping tensors", make=_swapped_offsets, words="overlap at 'b'"),
    Kind(
        name="negative offsets", words="is impossible",
        make=header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, 8),
    ),
    Kind(
        name="shape beyond the file", words="which are not F32",
        make=header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
    ),
    Kind(
        name="dtype of the future", words="as F6_E2M3, which this torch cannot read",
        make=header({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}),
    ),
    Kind(
        name="metadata are not text", words="its metadata are not text",
        make=header({"__metadata__": {"a": 1}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1),
    ),
    Kind(name="no tensors at all", make=header({}), words="holds 'nothing'"),
    Kind(name="no such file", make=lambda folder: folder / "gone.safetensors", words="does not exist; check the name"),
    Kind(name="no such folder", make=lambda folder: folder / "gone" / "high.safetensors", words="does not exist; check the name"),
    Kind(name="name with a NUL", make=lambda folder: folder / "a\0b.safetensors", words="is not a path"),
    Kind(name="endless name", make=lambda folder: folder / ("x" * 5000), words="cannot be read (file name too long)"),
    Kind(name="loop of links", make=_loop, words="too many levels of symbolic links", host=True),
    Kind(name="link to nothing", make=_dangling, words="is a link to a file that does not exist"),
    Kind(name="pipe", make=_fifo, words="is a pipe, socket or device", host=True),
    Kind(name="socket", make=_socket, words="is a pipe, socket or device"),
    Kind(name="device", make=lambda folder: Path("/dev/zero"), words="is a pipe, socket or device"),
    Kind(name="no permission", make=_truncated, words="cannot be read (permission denied)", emulate=_forbid),
    Kind(
        name="name is not UTF-8", words="is not valid UTF-8; rename the file", host=True,
        make=lambda folder: write_raw(folder / os.fsdecode(b"caf\xe9.safetensors"), {}),
    ),
    Kind(name="name of two lines", make=_named("high\nnoise\x1b[31m.safetensors"), words="high\\nnoise\\x1b[31m.safetensors", host=True),
    Kind(name="name that turns right to left", make=_named("a\u202eb.safetensors"), words="a\\u202eb"),
    # Folders.
    Kind(name="empty folder", make=_empty_folder, words="holds 0 .safetensors files"),
    Kind(name="folder called like a file", make=_folder_called_like_a_file, words="holds 0 .safetensors files"),
    Kind(name="missing shard", make=_missing_shard, words=f"{SECOND} does not exist", host=True),
    Kind(name="shards without index", make=_missing_index, words="and no index"),
    Kind(name="two indexes", make=_two_indexes, words="holds 2 indexes of shards"),
    Kind(name="index is no JSON", make=_indexed(b"{"), words="is not an index of shards"),
    Kind(name="index is not text", make=_indexed(b"\xff\xfe"), words="is not an index of shards"),
    Kind(name="index of another form", make=_indexed(b'{"weight_map": [1]}'), words="is not an index of shards"),
    Kind(name="index is empty", make=_indexed(b'{"weight_map": {}}'), words="is not an index of shards"),
    Kind(name="index nested without end", make=_indexed(NESTED), words="is not an index of shards"),
    Kind(name="index is a pipe", make=_fifo_index, words="is a pipe, socket or device"),
    Kind(name="index of 4 GB", make=_huge_index, words="more than any file of its kind"),
    Kind(name="index names a file above", make=_names_a_neighbour, words="which is not in its folder", host=True),
    Kind(name="index names an absolute path", make=_names_by_absolute_path, words="which is not in its folder"),
    Kind(name="index names its own folder", make=_index_names("."), words="which is not in its folder"),
    Kind(name="index names the folder above", make=_index_names(".."), words="which is not in its folder"),
    Kind(name="index names nothing", make=_index_names(""), words="which is not in its folder"),
    Kind(name="index names a number", make=_index_names(7), words="is not an index of shards"),
    Kind(name="index names a NUL", make=_index_names("a\0b"), words="which is not in its folder"),
    Kind(name="index names Windows' folder above", make=_index_names("..\\secret.safetensors"), words="which is not in its folder"),
    Kind(name="index lists a tensor of no shard", make=lambda folder: shards(folder, weight_map={"extra.weight": FIRST}), words="lacks 1 tensors its index lists (first: extra.weight)"),
    Kind(name="index lists less than there is", make=_index_of_less, words="which diffusion_pytorch_model.safetensors.index.json does not list there", doors=(LOAD, GENERATE, "inspect", "convert")),
    Kind(name="shards under each other's names", make=_swapped_shards, words="does not list there"),
    Kind(name="truncated shard", make=_truncated_shard, words="is truncated: "),
    Kind(name="shard is a pickle", make=_pickled_shard, words="is a torch file by its content"),
    # Torch's archives.
    Kind(name="archive with code", part="vae", make=lambda folder: code_archive(folder / "vae.pth"), words="holds code or objects (posix.mkdir)", host=True),
    Kind(name="archive with code under another name", part="vae", make=lambda folder: code_archive(folder / "vae.safetensors"), words="holds code or objects (posix.mkdir)", host=True),
    Kind(name="archive that calls by opcode", part="vae", make=lambda folder: code_in_tensors(folder / "vae.pth"), words="holds code or objects (posix.mkdir)"),
    Kind(name="bare pickle with code", part="vae", make=lambda folder: code_pickle(folder / "vae.pth"), words="is a bare pickle", host=True),
    Kind(name="bare pickle of protocol 0", part="vae", make=lambda folder: code_pickle(folder / "vae.pth", 0), words="not weights"),
    Kind(name="bare pickle of protocol 4", part="vae", make=lambda folder: code_pickle(folder / "vae.pth", 4), words="is a bare pickle"),
    Kind(name="pickle of torch before 1.6", part="vae", make=_legacy, words="is a bare pickle"),
    Kind(name="whole module pickled", part="vae", make=_whole_module, words="holds code or objects (torch.nn.modules.linear.Linear)"),
    Kind(name="zip bomb", part="vae", make=_bomb, words="is a compressed or encrypted archive"),
    Kind(name="zip that promises too much", part="vae", make=_lying_bomb, words="its parts do not fit the file"),
    Kind(name="zip of 100,001 members", part="vae", make=_many_members, words="it has 100001 parts"),
    Kind(name="truncated archive", part="vae", make=_truncated_archive, words="is truncated"),
    Kind(name="zip of documents", part="vae", make=_documents, words="but not of torch weights"),
    Kind(name="list of tensors", part="vae", make=_list_of_tensors, words="holds no named tensors"),
    Kind(name="pickle that only opens brackets", part="vae", make=_deep_pickle, words="is a damaged torch file"),
    # GGUF.
    Kind(name="GGUF of a language model", make=_gguf_code, words="is a language model, not", host=True),
    Kind(name="GGUF of version 1", make=content(gguf_bytes(LLAMA, version=1), "model.gguf"), words="(version 1)"),
    Kind(name="GGUF of version 4", make=content(gguf_bytes(LLAMA, version=4), "model.gguf"), words="(version 4)"),
    Kind(name="GGUF of the other byte order", make=content(gguf_bytes(LLAMA, version=3 << 24), "model.gguf"), words="(big-endian)"),
    Kind(name="truncated GGUF", make=content(gguf_bytes(LLAMA, payload=8), "model.gguf"), words="is truncated: "),
    Kind(name="truncated GGUF header", make=content(gguf_bytes(LLAMA)[:60], "model.gguf"), words="is a damaged GGUF file"),
    Kind(name="GGUF of an unknown type", make=content(gguf_bytes({"a": ((8,), 255)}), "model.gguf"), words="in GGUF type 255"),
    Kind(name="GGUF of too many tensors", make=content(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "model.gguf"), words="more than it has room for"),
    Kind(name="one part of a split GGUF", make=content(gguf_bytes(LLAMA, {"split.count": "3"}), "model.gguf"), words="is one of 3 parts"),
    Kind(name="GGUF without the package", make=_gguf_code, words="run `pip install gguf`", emulate=_no_gguf),
    # What headers and neighbours say.
    Kind(name="settings of another kind", make=_with(wan_config='{"sampling": {"steps": "many"}}'), words="steps='many'", doors=(LOAD, GENERATE)),
    Kind(name="boundary is no number", make=_with(wan_config='{"sampling": {"boundary": NaN}}'), words="boundary=nan", doors=(LOAD, GENERATE)),
    Kind(name="text encoder without tokenizer", part="text", make=_no_tokenizer, words="holds no tokenizer; put umT5's spiece.model beside it", doors=LATE_TOKENIZER),
    Kind(name="tokenizer of floats", part="text", make=_tokenizer(torch.ones(9)), words="spiece_model", doors=LATE_TOKENIZER),
    Kind(name="tokenizer of two axes", part="text", make=_tokenizer(spiece(60)[None]), words="spiece_model", doors=LATE_TOKENIZER),
    Kind(name="tokenizer is garbage", part="text", make=_tokenizer(torch.zeros(9, dtype=torch.uint8)), words="are not a sentencepiece model", doors=LATE_TOKENIZER),
    Kind(name="tokenizer of 2 GB", part="text", make=_huge_tokenizer, words="spiece_model", doors=LATE_TOKENIZER),
    Kind(name="tokenizer beside is a web page", part="text", make=_garbage_tokenizer, words="are not a sentencepiece model", doors=LATE_TOKENIZER),
    Kind(name="tokenizer beside is a pipe", part="text", make=_fifo_tokenizer, words="holds no tokenizer", doors=LATE_TOKENIZER),
    Kind(name="tokenizer of more pieces than rows", part="text", make=_few_rows, words="its encoder 16", doors=LATE_TOKENIZER),
]  # fmt: skip
