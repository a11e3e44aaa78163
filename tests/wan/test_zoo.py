"""Every kind of the zoo through every door a person has: one sentence, and nothing else happens."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wanexperts.tests.wan import zoo_loras
from wanexperts.tests.wan.family import EXPERT, write_family
from wanexperts.tests.wan.zoo import KINDS
from wanexperts.tests.wan.zoo_base import (
    CONVERT,
    GENERATE,
    INSPECT,
    LOAD,
    OPEN,
    RESOLVE,
    Kind,
    write,
    write_raw,
)
from wanexperts.tests.wan.zoo_files import sentinel
from wanexperts.wan.checkpoint import find_parts, open_checkpoint
from wanexperts.wan.cli import main
from wanexperts.wan.files import shown
from wanexperts.wan.lora import parameter_shapes, read_lora, resolve
from wanexperts.wan.pipeline import LoraUse, Pipeline
from wanexperts.wan.transformer import WanTransformer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and permissions")

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2.0
MEMORY = 150_000_000
HANGS_AFTER = 30
LONGEST = 1500
EXPECTED = {"high": "transformer", "vae": "vae", "text": "text_encoder"}
LINUX = Path("/proc/self/maps").exists()


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[Kind], tuple[Path, Path]]:
    """The folder and the file of a kind, made once for all doors: none of them may change it."""
    places: dict[str, tuple[Path, Path]] = {}

    def make(kind: Kind) -> tuple[Path, Path]:
        if kind.name not in places:
            folder = tmp_path_factory.mktemp("kind")
            places[kind.name] = folder, kind.make(folder)
        return places[kind.name]

    return make


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What is there before need not be looked at again by each collection of garbage."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> Iterator[None]:
    """No door may reach for the network, not even in vain."""
    reached: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        reached.append(args)
        raise OSError("there is no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    yield
    assert not reached


@dataclass(frozen=True)
class Visit:
    """What a door may use."""

    kind: Kind
    path: Path
    family: dict[str, Path]
    out: Path
    capsys: pytest.CaptureFixture[str]

    def command(self, *arguments: object) -> tuple[str, str]:
        """What a command that must end with 2 wrote."""
        assert main([str(argument) for argument in arguments]) == 2
        return self.capsys.readouterr()


def through_open(visit: Visit) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        open_checkpoint(visit.path, EXPECTED[visit.kind.part])
    return str(caught.value)


def through_load(visit: Visit) -> str:
    if visit.kind.part == "lora":
        pipeline = Pipeline.load(**visit.family, device="cpu")
        with pytest.raises((ValueError, OSError)) as caught:
            pipeline.with_loras([LoraUse(path=visit.path)])
        return str(caught.value)
    with pytest.raises((ValueError, OSError)) as caught:
        Pipeline.load(**{**visit.family, visit.kind.part: visit.path}, device="cpu")
    return str(caught.value)


def through_generate(visit: Visit) -> str:
    parts = {**visit.family, visit.kind.part: visit.path}
    named = [word for part, path in parts.items() for word in (f"--{part}", path)]
    out, err = visit.command("generate", "--prompt", "a cat", "--out", visit.out, *named)
    assert not out
    return _after("error: ", err)


def through_inspect(visit: Visit) -> str:
    out, err = visit.command("inspect", visit.path)
    assert err == "error: 1 of 1 files cannot be used\n"
    return _after("not usable: ", out)


def through_convert(visit: Visit) -> str:
    options = ["--to", "single", "--dtype", "bfloat16"]
    out, err = visit.command("convert", visit.path, visit.out, *options)
    assert not out
    return _after("error: ", err)


def through_resolve(visit: Visit) -> str:
    names = parameter_shapes(WanTransformer(EXPERT, device=torch.device("meta")))

    def use() -> None:
        for section in read_lora(visit.path).sections.values():
            resolve(section, names)

    with pytest.raises((ValueError, OSError)) as caught:
        use()
    return str(caught.value)


def _after(start: str, told: str) -> str:
    assert told.startswith(start)
    assert told.endswith("\n")
    return told.removeprefix(start)[:-1]


DOORS = {
    OPEN: through_open,
    LOAD: through_load,
    GENERATE: through_generate,
    INSPECT: through_inspect,
    CONVERT: through_convert,
    RESOLVE: through_resolve,
}
VISITS = [(kind, door) for kind in KINDS.values() for door in kind.doors]


@contextmanager
def no_trace(*folders: Path) -> Iterator[None]:
    """Nothing written, no handle or mapping left, no time or memory wasted, and never a hang."""

    def hang(*_: object) -> None:
        raise AssertionError(f"still busy after {HANGS_AFTER} s")

    before = [_listing(folder) for folder in folders]
    handles, started, memory = _handles(), time.process_time(), _reset_peak()
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
    assert time.process_time() - started < SECONDS
    assert _peak() - memory < MEMORY
    assert [_listing(folder) for folder in folders] == before
    if _handles() - handles or _mapped(folders):
        gc.collect()  # a cycle around an exception is no leak
        assert not _handles() - handles
        assert not _mapped(folders)


def _listing(folder: Path) -> list[object]:
    stats = ((p, p.lstat()) for p in sorted(folder.rglob("*")))
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _handles() -> set[str]:
    return set(os.listdir("/proc/self/fd")) if LINUX else set()


def _mapped(folders: Sequence[Path]) -> bool:
    """Whether a file in ``folders`` is still mapped into memory."""
    maps = Path("/proc/self/maps").read_text() if LINUX else ""
    return any(f"{folder}/" in maps for folder in folders)


def _reset_peak() -> int:
    if not LINUX:
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    if not LINUX:
        return 0
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def check_sentence(sentence: str, path: Path) -> None:
    """One printable line: given, rule; way out."""
    assert sentence.isprintable(), "more than one line, or signs that act on a terminal"
    assert len(sentence) < LONGEST
    assert shown(path.name)[-60:] in sentence, "does not name the file"
    given, _, way_out = sentence.rpartition("; ")
    assert len(given) > 10, "says no way out"
    assert len(way_out) > 5, "says no way out"
    for word in ("Traceback", "Errno", "Error(", "object at 0x", "codec"):
        assert word not in sentence


@pytest.mark.parametrize(
    ("kind", "door"), VISITS, ids=[f"{kind.name}-{door}" for kind, door in VISITS]
)
def test_one_sentence_and_nothing_else(
    kind, door, family, made, tmp_path, capsys, monkeypatch
) -> None:
    folder, path = made(kind)
    if kind.emulate:
        kind.emulate(monkeypatch, path)
    visit = Visit(kind, path, family, tmp_path / "out.safetensors", capsys)
    with no_trace(folder, tmp_path):
        sentence = DOORS[door](visit)
    assert kind.words in sentence
    check_sentence(sentence, path)
    assert not sentinel(path).exists(), "code of a pickle has run"
    assert capsys.readouterr() == ("", "")


def test_the_zoo_is_large_and_every_door_is_used() -> None:
    assert len(KINDS) >= 45
    assert {door for _, door in VISITS} == set(DOORS)
    assert len({kind.make for kind in KINDS.values()}) > 40


@pytest.mark.parametrize("name", ["LFS pointer", "name is not UTF-8"])
def test_a_process_of_its_own_says_the_same(name, made) -> None:
    kind = KINDS[name]
    _, path = made(kind)
    done = subprocess.run(
        [sys.executable, "-m", "wan", "inspect", os.fsencode(path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: 1 of 1 files cannot be used\n")
    sentence = _after("not usable: ", done.stdout)
    assert kind.words in sentence
    check_sentence(sentence, path)


def test_one_sentence_for_each_of_many_files(made, capsys) -> None:
    """A bad file does not hide the next one."""
    kinds = [kind for kind in KINDS.values() if INSPECT in kind.doors and not kind.emulate]
    paths = [made(kind)[1] for kind in kinds]
    assert main(["inspect", *map(str, paths)]) == 2
    out, err = capsys.readouterr()
    for kind, line in zip(kinds, out.splitlines(), strict=True):
        assert kind.words in line
    assert err == f"error: {len(kinds)} of {len(kinds)} files cannot be used\n"


@pytest.mark.parametrize("name", ["loop of links", "pipe", "bare pickle with code", "web page"])
def test_a_bad_neighbour_does_not_keep_a_family_from_being_found(name, family, tmp_path) -> None:
    for path in family.values():
        (tmp_path / path.name).symlink_to(path)
    KINDS[name].make(tmp_path)
    assert {path.name for path in find_parts(tmp_path).values()} == {
        p.name for p in family.values()
    }


def test_a_link_to_a_folder_elsewhere_is_followed(family, tmp_path) -> None:
    """People keep models on another disk."""
    (tmp_path / "models").symlink_to(family["high"].parent)
    assert Pipeline.load(**find_parts(tmp_path / "models"), device="cpu")


def test_settings_that_cannot_be_read_are_told_and_left(family, tmp_path, caplog) -> None:
    state = load_file(family["high"])
    path = tmp_path / "high.safetensors"
    for told in ("{", '{"a":' * 50_000):
        save_file(state, path, metadata={"wan_role": "high_noise", "wan_config": told})
        Pipeline.load(**{**family, "high": path}, device="cpu")
        assert caplog.messages.pop() == f"{path}: its wan_config is not JSON and is ignored"


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf"])
def test_a_strength_that_is_no_number(strength, family, tmp_path, capsys) -> None:
    path = write(tmp_path / "style.safetensors", zoo_loras.lora())
    named = [str(word) for part, path in family.items() for word in (f"--{part}", path)]
    options = ["--out", str(tmp_path / "x.mp4"), "--lora", f"{path}:{strength}", *named]
    assert main(["generate", "--prompt", "a cat", *options]) == 2
    sentence = _after("error: ", capsys.readouterr().err)
    assert sentence == f"the strength of style.safetensors is {strength}; use a number"


# What no header tells: the run must end in a sentence, and never in a black clip.
NOT_FINITE = {
    "high": ("head.head.bias", "step 1 of 3 (sigma"),
    "low": ("head.head.bias", "step 3 of 3 (sigma"),
    "text": ("norm.weight", "step 1 of 3 (sigma"),
    "vae": ("decoder.head.2.bias", "the decoded frames hold NaN or infinity"),
}


@pytest.mark.parametrize(("part", "key", "words"), [(p, *told) for p, told in NOT_FINITE.items()])
def test_weights_of_nan_end_the_run_without_a_clip(
    part, key, words, family, tmp_path, capsys
) -> None:
    with safe_open(family[part], "pt") as file:
        metadata = file.metadata()
    state = load_file(family[part])
    state[key] = torch.full_like(state[key], float("nan"))
    save_file(state, tmp_path / "nan.safetensors", metadata=metadata)
    out = tmp_path / "clip" / "out.mp4"
    out.parent.mkdir()
    parts = {**family, part: tmp_path / "nan.safetensors"}
    named = [str(word) for part, path in parts.items() for word in (f"--{part}", path)]
    assert (
        main(["generate", "--prompt", "a cat", "--out", str(out), "--switch-step", "2", *named])
        == 1
    )
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    assert words in told
    assert "; " in told
    # What good steps made is kept; there is no clip, whole or broken.
    assert {path.name for path in out.parent.iterdir()} <= {".wan-runs"}


# Fuzzed headers, the whole way: whatever a file says of itself, a door opens or ends in a sentence.
ROUNDS = 150
SHAPES = (
    [],
    [0],
    [1],
    [64],
    [2**24],
    [2**40, 0],
    [0, 2**62],
    [1, 2, 2**31],
    [128, 16, 1, 2, 2],
    [3] * 9,
)
DTYPES = ("F32", "BF16", "F8_E4M3", "I8", "U8", "I64", "BOOL", "C64", "F99", "", None, 7)
TEXTS = (
    "{}",
    "[]",
    "null",
    "two\nlines",
    '{"layers": {"blocks.0.ffn.0": {"format": "int8"}}}',
    "\ud800",
    "[" * 9999,
)


def _bend(header: dict[str, dict[str, object]], chance: random.Random) -> None:
    """Change one thing that a header says."""
    names = [name for name in header if name != "__metadata__"]
    name = chance.choice(names)
    what = chance.randrange(7)
    if what == 0:
        header[name]["shape"] = chance.choice(SHAPES)
    elif what == 1:
        header[name]["dtype"] = chance.choice(DTYPES)
    elif what == 2:
        # Consistent in itself: nothing but the network can tell.
        header[name] |= {
            "shape": chance.choice([s for s in SHAPES if 0 in s]),
            "data_offsets": [0, 0],
        }
    elif what == 3:
        ends = (
            "",
            ".weight_scale",
            ".comfy_quant",
            ".scale_weight",
            ".lora_up.weight",
            "\n",
            "\ud800",
        )
        header[name + chance.choice(ends)] = header.pop(name)
    elif what == 4:
        del header[name]
    elif what == 5:
        header[f"blocks.{chance.choice([1, 7, 10**9, '٣', '00'])}.modulation"] = header[name]
    else:
        keys = ("wan_config", "wan_role", "wan_release", "boundary_ratio", "_quantization_metadata")
        header.setdefault("__metadata__", {})[chance.choice(keys)] = chance.choice(TEXTS)


def _close_gaps(header: dict[str, dict[str, object]]) -> int:
    """Let the tensors follow each other again; returns the bytes they take."""
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            begin, stop = entry["data_offsets"]
            entry["data_offsets"] = [end, end + stop - begin]
            end += stop - begin
    return end


@pytest.mark.parametrize("part", EXPECTED)
def test_fuzzed_headers(part, family, tmp_path) -> None:
    chance = random.Random(part)
    data = family[part].read_bytes()
    length = int.from_bytes(data[:8], "little")
    path = tmp_path / "fuzzed.safetensors"
    refused = 0
    for number in range(ROUNDS):
        header = json.loads(data[8 : 8 + length])
        for _ in range(chance.randrange(1, 4)):
            _bend(header, chance)
        write_raw(path, header, _close_gaps(header))
        try:
            Pipeline.load(**{**family, part: path}, device="cpu")
        except (ValueError, OSError) as error:
            refused += 1
            check_sentence(str(error), path)
        except BaseException as error:
            raise AssertionError(f"round {number}: {path.read_bytes()[8:400]!r}") from error
    assert refused > ROUNDS / 2
