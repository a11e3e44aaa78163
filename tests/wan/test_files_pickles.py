"""Torch's own files: what is read against ``torch.load``, what is refused, and that no code runs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from wanexperts.wan.files import DTYPES, archive, read_header, read_tensors

ROOT = Path(__file__).resolve().parents[2]


def every_dtype() -> dict[str, torch.Tensor]:
    plain = {name: dtype for name, dtype in DTYPES.items() if name != "F4"}
    return {name: torch.arange(2, 8).reshape(2, 3).to(dtype) for name, dtype in plain.items()}


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def test_every_dtype_under_the_names_of_safetensors(tmp_path):
    path = tmp_path / "x.pth"
    state = every_dtype()
    torch.save(state, path)
    header = read_header(path)
    assert header.container == "pickle"
    assert {name: info.dtype for name, info in header.tensors.items()} == {n: n for n in state}
    assert {info.shape for info in header.tensors.values()} == {(2, 3)}
    tensors = read_tensors(path, state)
    assert all(equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize("wrapper", ["model_state", "state_dict", "model"])
def test_a_wrapper_is_taken_off_and_other_entries_are_left(tmp_path, wrapper):
    path = tmp_path / "x.pth"
    state = OrderedDict(weight=torch.ones(2), note="text", step=3)
    torch.save({wrapper: state, "epoch": 7, "lr": [0.1, None], "name": "run"}, path)
    assert list(read_header(path).tensors) == ["weight"]


def test_tensors_beside_a_wrapper_go_first(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"bias": torch.ones(2), "model": {"weight": torch.ones(2)}}, path)
    assert list(read_header(path).tensors) == ["bias"]


def test_modules_parameters_views_and_shared_storages(tmp_path):
    path = tmp_path / "x.pth"
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        **nn.Linear(3, 2).state_dict(),
        "parameter": nn.Parameter(torch.ones(3)),
        "transposed": base.t(),
        "rows": base[1:3],
        "columns": base[:, 2:4],
        "scalar": torch.tensor(5.0),
        "empty": torch.empty(0, 3),
    }
    torch.save(state, path)
    tensors = read_tensors(path, state)
    for name, tensor in state.items():
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].is_contiguous()
        assert not tensors[name].requires_grad
    rows, parameter = tensors["rows"], tensors["parameter"]
    assert rows.untyped_storage().nbytes() == base.nbytes
    assert parameter.shape == read_header(path).tensors["parameter"].shape


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_tensors_are_mapped_and_the_file_stays_as_it_is(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.zeros(1 << 20)}, path)
    before = path.read_bytes()
    tensor = read_tensors(path, ["weight"])["weight"]
    assert str(path) in Path("/proc/self/maps").read_text()
    tensor += 1
    assert path.read_bytes() == before


def test_the_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "x.gguf"
    torch.save({"weight": torch.ones(2)}, path)
    assert read_header(path).container == "pickle"
    assert torch.equal(read_tensors(path, ["weight"])["weight"], torch.ones(2))


def test_torch_itself_goes_by_one_suffix(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"is a torch file by its content; rename it to .pth"):
        read_header(path)


# --- refusals -------------------------------------------------------------------------------------


class Code:
    """Unpickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path: Path) -> tuple[Code, ...]:
    """Calls that would leave ``path`` behind."""
    return (
        Code(os.system, f"touch {path}"),
        Code(eval, f"open({str(path)!r}, 'w')"),
        Code(exec, f"open({str(path)!r}, 'w')"),
        Code(open, str(path), "w"),
        Code(Path.touch, path),
        Code(os.mkdir, str(path)),
        Code(torch.save, torch.ones(2), str(path)),
        Code(subprocess.call, ["touch", str(path)]),
        Code(setattr, Path, "x", 1),
        Code(__import__, "antigravity"),
    )


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("number", range(10))
def test_code_never_runs(tmp_path, number, protocol):
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    code = touch(mark)[number]
    torch.save({"weight": torch.ones(2), "more": code}, path, pickle_protocol=protocol)
    for read in (read_header, lambda path: read_tensors(path, ["weight"])):
        with pytest.raises(
            ValueError, match=r"holds code or objects .* is not loaded; use the .safetensors"
        ):
            read(path)
    assert not mark.exists()


def test_the_code_of_the_test_would_run(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    torch.save({"more": touch(mark)[3]}, path)
    torch.load(path, weights_only=False)["more"].close()
    assert mark.exists()


def test_what_a_host_lets_torch_load_is_still_refused(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    torch.save({"weight": torch.ones(2), "more": touch(mark)[5]}, path)
    allowed = torch.serialization.safe_globals([Path, (os.mkdir, "posix.mkdir")])
    with allowed, pytest.raises(ValueError, match=r"holds code or objects \(posix.mkdir\)"):
        read_header(path)
    assert not mark.exists()


def test_nothing_else_is_opened_or_started(tmp_path):
    """Watched from inside a process of its own, since such a watch cannot be taken off again."""
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pth")
    for number, code in enumerate(touch(tmp_path / "mark")):
        torch.save({"weight": torch.ones(2), "more": code}, tmp_path / f"{number}.pth")
    lines = f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from wan.files import read_header, read_tensors
        folder = Path({str(tmp_path)!r})
        read_tensors(folder / "good.pth", ["weight"])
        seen = set()
        sys.addaudithook(lambda event, arguments: seen.add((event, str(arguments))))
        refused = 0
        for path in sorted(folder.glob("*.pth")):
            try:
                read_tensors(path, ["weight"])
            except ValueError:
                refused += 1
        bad = ("os.system", "subprocess.Popen", "os.mkdir", "socket", "os.exec", "ctypes", "os.remove")
        found = [e for e in seen if e[0].startswith(bad) or e[0] == "import"]
        found += [e for e in seen if e[0] == "open" and str(folder) not in e[1]]
        opened = [e for e in seen if e[0] == "open"]
        print(refused, found, bool(opened))
    """
    script = "\n".join(line.strip() if not line[8:].startswith(" ") else line[8:]
                       for line in lines.splitlines())  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "10 [] True", done.stdout + done.stderr
    assert not (tmp_path / "mark").exists()


def assembled(
    *,
    numel=16,
    size=(16,),
    stride=(1,),
    offset=0,
    key="0",
    kind="FloatStorage",
    tail=b"",
    device="cpu",
) -> bytes:
    """A pickle of one tensor ``a``, told as wrongly as one likes."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def whole(value: int) -> bytes:
        encoded = pickle.encode_long(value)
        return b"\x8a" + bytes([len(encoded)]) + encoded

    def row(values) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(device)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(numel) + b"tQ"
    tensor += whole(offset) + row(size) + row(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("a") + tensor + b"s" + tail + b"."


def packed(path, content: bytes, *, compression=zipfile.ZIP_STORED, **parts: bytes) -> Path:
    """A torch archive around a pickle; ``parts`` come beside it."""
    with zipfile.ZipFile(path, "w", compression) as zipped:
        zipped.writestr("archive/data.pkl", content)
        for name, data in {"data/0": bytes(64), "version": b"3\n", **parts}.items():
            zipped.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "unheard-of"])
def test_the_assembled_file_is_sound_without_damage(tmp_path, device):
    tensor = read_tensors(packed(tmp_path / "x.pth", assembled(device=device)), ["a"])["a"]
    assert torch.equal(tensor, torch.zeros(16))


LIES = {
    "storage shorter than told": {"numel": 1000},
    "storage longer than the part": {"numel": 10**12},
    "storage absurd": {"numel": 2**70},
    "storage negative": {"numel": -5},
    "storage smaller than the part": {"numel": 8, "size": (8,)},
    "tensor larger than its storage": {"size": (10**10,)},
    "tensor past its storage": {"size": (4,), "offset": 14},
    "negative offset": {"size": (4,), "offset": -4},
    "negative size": {"size": (-4,)},
    "negative stride": {"size": (4,), "stride": (-1,), "offset": 8},
    "stride past the end": {"size": (4,), "stride": (2**40,)},
    "sizes and strides differ": {"size": (4, 4), "stride": (1,)},
    "part that is not there": {"key": "7"},
    "part outside": {"key": "../../../../etc/passwd"},
    "part by absolute path": {"key": "/etc/passwd"},
    "not a storage": {"kind": "Size"},
    "left-over stack": {"tail": b"t"},
    "memo that is not there": {"tail": b"h\x09"},
    "storage made by a call": {"tail": b"ctorch.storage\nUntypedStorage\n(\x8a\x06\0\0\0\0\0\x7ftR0"},
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_what_does_not_fit_the_file_is_refused(tmp_path, name):
    path = packed(tmp_path / "x.pth", assembled(**LIES[name]))
    with pytest.raises(ValueError, match="is a damaged torch file") as caught:
        read_header(path)
    assert str(caught.value).isprintable()


def test_a_view_that_repeats_its_storage_is_not_blown_up(tmp_path):
    path = packed(tmp_path / "x.pth", assembled(size=(10**12,), stride=(0,)))
    with pytest.raises(ValueError, match="'a' as a repeated view"):
        read_tensors(path, ["a"])


def foreign(tmp_path) -> dict[str, tuple[Path, str]]:
    """Files that start like ours, and the words of their refusal."""
    made = {}

    def make(name: str, words: str, write) -> None:
        path = tmp_path / f"{len(made)}.pth"
        write(path)
        made[name] = path, words

    def save(value, **options):
        return lambda path: torch.save(value, path, **options)

    def zipped(*names: str):
        def write(path):
            with zipfile.ZipFile(path, "w") as file:
                for name in names:
                    file.writestr(name, b"text")

        return write

    state = {"a": torch.zeros(1000)}
    make("legacy", "bare pickle.*use the .safetensors",
         save(state, _use_new_zipfile_serialization=False))  # fmt: skip
    make("plain pickle", "bare pickle", lambda p: p.write_bytes(pickle.dumps({"a": 1})))
    make("protocol 5", "pickle protocol 5", save(state, pickle_protocol=5))
    make(
        "module", r"holds code or objects \(torch.nn.modules.linear.Linear\)", save(nn.Linear(2, 2))
    )
    make("bytes", r"holds code or objects \(_codecs.encode\)", save({**state, "bytes": b"x"}))
    make(
        "allocation",
        r"holds code or objects \(__builtin__.bytearray\)",
        save({**state, "b": bytearray(9)}),
    )
    make("a tensor alone", "no named tensors", save(torch.ones(3)))
    make("a list", "no named tensors", save([torch.ones(3)]))
    make("no tensors", "no named tensors", save({"a": 1, "model": {"b": "c"}}))
    make("numbered tensors", "no named tensors", save({0: torch.ones(3)}))
    make("sparse", "holds code", save({"a": torch.ones(3).to_sparse()}))
    make("script", "TorchScript", lambda p: torch.jit.save(torch.jit.script(nn.ReLU()), str(p)))
    make("zip", "not of torch weights", zipped("a.txt", "folder/b.txt"))
    make("zip with a pickle", "not of torch weights", zipped("data.pkl"))
    make("zip of two tops", "not of torch weights", zipped("a/data.pkl", "b/data/0"))
    make("two of one name", "two parts of one name", zipped("a/data.pkl", "a/DATA.pkl"))
    make("not a pickle", "its pickle cannot be read", zipped("a/data.pkl"))
    make("empty zip", "is not a weight file", zipped())
    make("bomb", "compressed or encrypted",
         lambda p: packed(p, assembled(), compression=zipfile.ZIP_DEFLATED, big=bytes(10**6)))  # fmt: skip
    make("big-endian", "big-endian byte order", lambda p: packed(p, assembled(), byteorder=b"big"))
    make("many bytes of order", "pickle is larger",
         lambda p: packed(p, assembled(), byteorder=bytes(5 * 10**6)))  # fmt: skip
    make("large pickle", "pickle is larger", lambda p: packed(p, bytes(5 * 10**6)))
    return made


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:.*torch.jit:DeprecationWarning")
def test_foreign_files_are_told_apart(tmp_path):
    for name, (path, words) in foreign(tmp_path).items():
        with pytest.raises(ValueError, match=words) as caught:
            read_header(path)
        assert str(caught.value).startswith(str(path)), name
        assert str(caught.value).isprintable(), name


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(tmp_path, keep):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(10_000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match="is truncated"):
        read_header(path)


def test_parts_larger_than_the_file(tmp_path):
    """The directory says so; the sizes of a part are repeated there as 32-bit numbers."""
    path = packed(tmp_path / "x.pth", assembled())
    content = path.read_bytes()
    place = content.rindex(b"archive/data/0") - 46 + 20
    for size in (100_000, 2**31):
        path.write_bytes(content[:place] + size.to_bytes(4, "little") * 2 + content[place + 8 :])
        with pytest.raises(ValueError, match="parts do not fit the file"):
            read_header(path)


def test_parts_that_overlap(tmp_path):
    """Many names for the same bytes: together they are larger than the file."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", assembled())
        file.writestr("a/data/0", bytes(100_000))
        first = file.filelist[-1]
        for number in range(1, 20):
            copy = zipfile.ZipInfo(f"a/data/{number}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, name, getattr(first, name))
            file.filelist.append(copy)
    with pytest.raises(ValueError, match="parts do not fit the file"):
        read_header(path)


def test_the_directory_is_bounded_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "DIRECTORY_LIMIT", 100)
    with pytest.raises(ValueError, match="directory of parts has"):
        read_header(packed(tmp_path / "x.pth", assembled()))


def test_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 2)
    with pytest.raises(ValueError, match="it has 3 parts"):
        read_header(packed(tmp_path / "x.pth", assembled()))


def test_a_name_that_is_not_there(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no tensor 'b'"):
        read_tensors(tmp_path / "x.pth", ["b"])
