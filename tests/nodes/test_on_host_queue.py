"""``python -m wan queue`` against real servers, with the bundled family."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import pytest
from wanexperts import comfy_server
from wanexperts.tiny.judge import judge, read_video
from wanexperts.wan.cli import main
from wanexperts.wan.queue import MANIFEST

pytestmark = pytest.mark.comfy

TINY = comfy_server.ROOT / "workflows" / "wan_tiny_t2v.json"
BLUE, GREEN = "a blue square moves up on a white background", "一个绿色圆形在黑色背景上向右移动"


def queue(*arguments: object) -> int:
    try:
        return main(["queue", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text("utf-8").splitlines()]


def clips(folder: Path) -> list[Path]:
    """All results, each a whole clip."""
    found = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    for path in found:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 17
    return found


def queued(host: comfy_server.Host) -> int:
    told = host.get("/queue")
    return len(told["queue_running"]) + len(told["queue_pending"])


def test_eight_prompts_two_servers_one_killed_midway(host, tmp_path, capsys) -> None:
    with comfy_server.Host(host.checkout) as other:

        def kill() -> None:
            while not (
                queued(other) and (tmp_path / MANIFEST).exists() and len(lines(tmp_path)) >= 3
            ):
                time.sleep(0.02)
            other._process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        command = [TINY, "--server", host.url, other.url, "--out", tmp_path, "--seeds", "1-8"]
        assert queue(*command, "--set", "steps=8") == 0
        killer.join()
        told = capsys.readouterr()
    made = lines(tmp_path)
    assert sorted(line["seed"] for line in made) == list(range(1, 9))
    assert clips(tmp_path) == sorted(tmp_path / line["files"][0]["name"] for line in made)
    assert sorted(told.out.split()) == [str(path) for path in clips(tmp_path)]
    by_server = [line["server"] for line in made]
    assert by_server.count(other.url) >= 1
    assert by_server.count(host.url) >= 4
    assert "its prompts go to others until it is back" in told.err
    assert queue(*command[:2], host.url, *command[4:], "--set", "steps=8") == 0
    assert capsys.readouterr().err == f"8 of 8 are in {tmp_path} already\n"
    assert lines(tmp_path) == made


def test_a_table_makes_what_it_says_and_each_clip_brings_its_graph_back(host, tmp_path) -> None:
    table = tmp_path / "wishes.csv"
    table.write_text(
        f"prompt,seed,Sample Wan Experts.cfg_high_noise\n{BLUE},3,\n{GREEN},4,2.5\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    assert queue(TINY, "--server", f"http://{host.url}/", "--out", out, "--csv", table) == 0
    first, second = clips(out)
    assert [path.name.rpartition("-")[0] for path in (first, second)] == [
        "row1-seed3",
        "row2-seed4",
    ]
    for path, prompt in ((first, BLUE), (second, GREEN)):
        assert all(judge(read_video(path), prompt).values())
        with av.open(str(path)) as container:
            told = container.metadata
        sampler = next(
            n for n in json.loads(told["workflow"])["nodes"] if n["type"] == "WanExpertsSampler"
        )
        ran = next(
            n for n in json.loads(told["prompt"]).values() if n["class_type"] == "WanExpertsSampler"
        )
        assert (
            sampler["widgets_values"][0]
            == ran["inputs"]["noise_seed"]
            == (3 if path is first else 4)
        )
        assert ran["inputs"]["cfg_high_noise"] == (2.0 if path is first else 2.5)
    assert [
        line["settings"]["prompt"][:2] for line in sorted(lines(out), key=lambda line: line["seed"])
    ] == ["a ", "一个"]
    for line in lines(out):
        assert line["seconds"] > 0
        assert any("high noise" in text for text in line["texts"].values())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("frames=80", "use 77 or 81"),
        ("positive= ", "the positive prompt is empty"),
        ("boundary=7", "boundary of node 6 (Sample Wan Experts) is 7, its limits are 0 to 1"),
        ("vae=none.safetensors", "vae of node 3 (Load Wan VAE) is one of"),
        ("stps=3", "nothing in the workflow is called 'stps'; use one of prompt, negative, seed"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_queued(
    host, tmp_path, capsys, setting, words
) -> None:
    before = len(host.get("/history"))
    assert queue(TINY, "--server", host.url, "--out", tmp_path, "--set", setting) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.startswith("error: ")
    assert len(told.err.splitlines()) == 1
    assert (len(host.get("/history")), queued(host)) == (before, 0)


def test_ctrl_c_cancels_and_the_same_command_goes_on(host, tmp_path) -> None:
    command = [
        sys.executable, "-m", "wan", "queue", TINY, "--server", host.url, "--out", tmp_path,
        "--seeds", "21-23", "--set", "steps=10",
    ]  # fmt: skip
    with subprocess.Popen(
        [*map(str, command)],
        cwd=comfy_server.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().splitlines()
        assert process.wait(60) == 130
    assert Path(first).is_file()
    assert told[-2:] == [
        "1 of 3 are done; the same command goes on from there", "interrupted; no broken file was left",
    ]  # fmt: skip
    assert queued(host) == 0
    assert (
        queue(
            TINY, "--server", host.url, "--out", tmp_path, "--seeds", "21-23", "--set", "steps=10"
        )
        == 0
    )
    assert sorted(line["seed"] for line in lines(tmp_path)) == [21, 22, 23]
    assert len(clips(tmp_path)) == 3
