"""``python -m wan queue`` as a person sees it: what is printed, where, and the exit code."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from wanexperts.wan.cli import main
from wanexperts.wan.cli.bars import Bars

from .fake_comfy import FakeComfy, graph


def queue(folder: Path, *options: object) -> int:
    given = graph()
    del given["1"]["inputs"]["clip"], given["2"]["inputs"]["clip"]
    path = folder / "graph.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    arguments = ["queue", path, "--out", folder / "out", *options]
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_files_go_to_standard_output_and_the_rest_to_the_other(tmp_path: Path, capsys) -> None:
    with FakeComfy() as fake:
        fake.fails = {2}
        assert queue(tmp_path, "--server", fake.url, "--seeds", "1-3") == 1
    told = capsys.readouterr()
    names = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert [Path(line).name for line in told.out.splitlines()] == names
    one, other, failed, last = told.err.splitlines()
    assert re.fullmatch(r"seed1-\w{8}: done on 127.0.0.1:\d+", one)
    assert other.startswith("seed3-")
    assert re.fullmatch(r"seed2-\w{8}: node 3 \(Sampler\): out of memory", failed)
    assert last == "1 of 3 failed; the same command tries them again"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--server", "URL", "--set", "stps=3"], "graph.json: nothing in the workflow is called 'stps'"),
        (["--server", "URL", "URL"], "a server is given twice"),
        (["--server", "URL", "--auth-env", "NO_SUCH_LOGIN"], "NO_SUCH_LOGIN is empty; put 'Bearer ...' there"),
        (["--server", "URL", "--seeds", "b"], "argument --seeds: --seeds 'b' are no seeds; write 7, 1-8"),
        (["--server", "URL", "--csv", "no.csv"], "no.csv does not exist"),
        (["--server", "URL/nothing"], "/nothing has no /object_info"),
        ([], "required: --server"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path: Path, capsys, options: list[str], words: str) -> None:
    with FakeComfy() as fake:
        assert queue(tmp_path, *(word.replace("URL", fake.url) for word in options)) == 2
        assert fake.posted == []
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ")
    assert words in told
    assert not (tmp_path / "out").exists()


def test_a_login_comes_from_the_environment(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COMFY_LOGIN", "Bearer secret")
    with FakeComfy(login="Bearer secret", base="/comfy") as fake:
        assert queue(tmp_path, "--server", fake.url, "--auth-env", "COMFY_LOGIN") == 0
        assert queue(tmp_path / "out", "--server", fake.url) == 2
    told = capsys.readouterr()
    assert "wants a login" in told.err
    assert "secret" not in told.out + told.err


class Terminal(io.StringIO):
    """A terminal that keeps what it shows: lines, with cursor up and clear."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        lines = [""]
        for part in re.split(r"(\x1b\[\d*[FJ]|\n)", self.getvalue()):
            if part == "\n":
                lines.append("")
            elif part.endswith("F") and part.startswith("\x1b"):
                del lines[len(lines) - 1 - int(part[2:-1]) :]
                lines.append("")
            elif not part.startswith("\x1b"):
                lines[-1] += part
        return lines[:-1]


def test_a_line_for_each_server_stays_at_the_bottom() -> None:
    screen = Terminal()
    bars = Bars(screen, ["a:1", "b:2"])
    bars.show("a:1", 1, 4, "seed1")
    bars.show("b:2", 2, 4, "seed2")
    bars.say("seed0: done")
    bars.show("a:1", 4, 4, "seed1")
    first, *lines = screen.screen
    assert first == "seed0: done"
    assert [line.split()[0] for line in lines] == ["a:1", "b:2"]
    assert lines[0].endswith("4/4  seed1")
    assert "2/4" in lines[1]
    bars.close()
    assert screen.screen == ["seed0: done"]
