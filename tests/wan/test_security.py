"""Files are data: no pickle runs, nothing is downloaded, nothing outside what was chosen is opened."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from wanexperts.tests.canary import Canaries
from wanexperts.tests.wan.family import write_family
from wanexperts.tests.wan.zoo import KINDS
from wanexperts.tests.wan.zoo_base import expert, text, write
from wanexperts.tests.wan.zoo_files import (
    FIRST,
    INDEX,
    Runs,
    code_archive,
    code_in_tensors,
    code_pickle,
    sentinel,
    shards,
)
from wanexperts.wan.checkpoint import find_parts, open_checkpoint
from wanexperts.wan.cli import main
from wanexperts.wan.lora import read_lora
from wanexperts.wan.pipeline import LoraUse, Pipeline

# What would tell that a file was more than data, whoever did it.
DEEDS = (
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
    "socket.connect", "socket.getaddrinfo", "urllib.Request", "os.mkdir", "ctypes.dlopen",
)  # fmt: skip
_seen: list[str] | None = None


def _listen(event: str, _: object) -> None:
    if _seen is not None and event in DEEDS:
        _seen.append(event)


sys.addaudithook(_listen)  # for good: Python has no way to take one away


@pytest.fixture
def deeds() -> Iterator[list[str]]:
    """What was done in this process beside computing and reading files."""
    global _seen  # noqa: PLW0603
    _seen = []
    yield _seen
    _seen = None


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


CARRIERS: dict[str, Callable[[Path], Path]] = {
    "archive": code_archive,
    "opcode": code_in_tensors,
    "protocol 0": lambda path: code_pickle(path, 0),
    "protocol 2": lambda path: code_pickle(path, 2),
    "protocol 5": lambda path: code_pickle(path, 5),
}
ENDINGS = ("pth", "pt", "safetensors", "gguf", "ckpt", "bin", "")


@pytest.mark.parametrize("carrier", CARRIERS)
def test_the_code_would_run(carrier, tmp_path, deeds) -> None:
    """Without this the tests below would prove nothing."""
    path = CARRIERS[carrier](tmp_path / "weights.pth")
    with suppress(RuntimeError):  # what the code leaves behind is no archive
        torch.load(path, weights_only=False)
    assert sentinel(path).is_dir()
    assert "os.mkdir" in deeds


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_no_pickle_runs_through_any_door(carrier, ending, family, tmp_path, deeds, capsys) -> None:
    path = CARRIERS[carrier](tmp_path / f"weights.{ending}")
    for expected in (None, "transformer", "vae", "text_encoder"):
        with pytest.raises(ValueError, match="weights"):
            open_checkpoint(path, expected)
    for part in family:
        with pytest.raises(ValueError, match="weights"):
            Pipeline.load(**{**family, part: path}, device="cpu")
    with pytest.raises(ValueError, match="weights"):
        read_lora(path)
    with pytest.raises(ValueError, match="weights"):
        Pipeline.load(**family, device="cpu").with_loras([LoraUse(path=path)])
    assert main(["inspect", str(path)]) == 2
    for layout in ("single", "diffusers", "kohya"):
        assert main(["convert", str(path), str(tmp_path / "out"), "--to", layout]) == 2
    assert not sentinel(path).exists()
    assert not deeds
    assert "Traceback" not in "".join(capsys.readouterr())


def _shard(folder: Path) -> Path:
    place = shards(folder)
    torch.save({**expert(), "extra": Runs(sentinel(place))}, place / FIRST)
    return place


def _index(folder: Path) -> Path:
    place = shards(folder)
    (place / INDEX).write_bytes(pickle.dumps(Runs(sentinel(place))))
    return place


def _tokenizer(folder: Path) -> Path:
    state = {key: tensor for key, tensor in text().items() if key != "spiece_model"}
    path = write(folder / "text.safetensors", state)
    (folder / "spiece.model").write_bytes(pickle.dumps(Runs(sentinel(path))))
    return path


def _tokenizer_inside(folder: Path) -> Path:
    code = pickle.dumps(Runs(sentinel(folder / "x")))
    inside = torch.frombuffer(bytearray(code), dtype=torch.uint8)
    return write(folder / "text.safetensors", {**text(), "spiece_model": inside})


@pytest.mark.parametrize(
    ("make", "part"),
    [(_shard, "high"), (_index, "high"), (_tokenizer, "text"), (_tokenizer_inside, "text")],
)
def test_no_pickle_runs_beside_weights(make, part, family, tmp_path, deeds) -> None:
    path = make(tmp_path)
    deeds.clear()
    with pytest.raises(ValueError, match="; "):
        Pipeline.load(**{**family, part: path}, device="cpu")
    assert not sentinel(path).exists()
    assert not deeds


@pytest.fixture
def offline(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


def test_a_whole_run_downloads_nothing(family, tmp_path, deeds, offline, capsys) -> None:
    """From the prompt to the mp4, and each command on good files."""
    out = tmp_path / "out.mp4"
    named = [str(word) for part, path in family.items() for word in (f"--{part}", path)]
    assert main(["generate", "--prompt", "a cat", "--out", str(out), *named]) == 0
    assert main(["inspect", *map(str, family.values())]) == 0
    for part in ("high", "vae", "text"):
        target = tmp_path / f"{part}.safetensors"
        assert main(["convert", str(family[part]), str(target), "--to", "single"]) == 0
    assert out.stat().st_size
    assert not {"socket.connect", "socket.getaddrinfo", "urllib.Request"} & set(deeds)
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_missing_tokenizer_is_not_fetched(family, tmp_path, offline) -> None:
    path = KINDS["text encoder without tokenizer"].make(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Pipeline.load(**{**family, "text": path}, device="cpu")


def test_canaries_notice() -> None:
    here = Path(__file__)
    with Canaries([here]) as birds:
        here.stat()
        assert not birds.opened()
        here.read_bytes()
        assert birds.opened() == [here]


@pytest.mark.parametrize("name", [
    "../secret.safetensors", "{folder}/secret.safetensors", "..", ".", "",
    "../high_noise_model/../secret.safetensors", "\\..\\secret.safetensors", "C:secret.safetensors",
])  # fmt: skip
def test_an_index_opens_nothing_outside_its_folder(name, family, tmp_path) -> None:
    secret = write(
        tmp_path / "secret.safetensors", {"head.modulation": expert()["head.modulation"]}
    )
    place = shards(tmp_path, weight_map={"head.modulation": name.format(folder=tmp_path)})
    with Canaries([secret]) as birds:
        for door in (open_checkpoint, read_lora):
            with pytest.raises((ValueError, OSError), match="; "):
                door(place)
        with pytest.raises((ValueError, OSError), match="; "):
            Pipeline.load(**{**family, "high": place}, device="cpu")
        assert not birds.opened()


def test_only_what_was_chosen_is_opened(family, tmp_path) -> None:
    """Files beside the chosen ones stay shut, but for those that layouts put there."""
    for path in family.values():
        shutil.copy(path, tmp_path)
    parts = {part: tmp_path / path.name for part, path in family.items()}
    others = ["model_index.json", "config.json", "adapter_config.json", "spiece.model", "x.pth"]
    neighbours = [tmp_path / name for name in (*others, "other.safetensors")]
    for path in neighbours:
        path.write_bytes(b"{}")
    with Canaries(neighbours) as birds:
        Pipeline.load(**parts, device="cpu")
        assert not birds.opened()
        with pytest.raises(ValueError, match="is not a LoRA"):
            read_lora(parts["high"])
        assert not birds.opened()


def test_names_decide_nothing(family, tmp_path) -> None:
    """What a file is comes from its bytes: a folder of renamed files is the same family."""
    for number, path in enumerate(family.values()):
        shutil.copy(path, tmp_path / f"{number}.pth")
    assert len(find_parts(tmp_path)) == len(family)
    assert Pipeline.load(**find_parts(tmp_path), device="cpu")
    assert not os.listdir(tmp_path)[4:]
