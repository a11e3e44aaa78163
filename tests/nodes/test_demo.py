"""The demo's ways: which ComfyUI it takes, and what it does without one. Needs no ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest
from wanexperts import demo


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any ComfyUI."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(demo, "ROOT", tmp_path / "custom_nodes" / "pack")
    monkeypatch.setattr(demo, "CLONE", tmp_path / "clone")
    return tmp_path


def checkout(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("import sys; sys.exit('no torch here')")
    return folder


def test_no_checkout(nowhere):
    assert demo.find_checkouts() == []
    (nowhere / "main.py").touch()  # a main.py of something else
    assert demo.find_checkouts() == []


def test_order_of_checkouts(nowhere, monkeypatch):
    named, installed, usual, cloned = (
        checkout(nowhere / place) for place in ("named", ".", "home/comfy/ComfyUI", "clone")
    )
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert demo.find_checkouts() == [p.resolve() for p in (named, installed, usual, cloned)]


def test_a_broken_checkout_is_told_and_the_library_takes_over(nowhere, monkeypatch, capsys):
    broken = checkout(nowhere / "named")
    made = nowhere / "clip.mp4", "library"
    monkeypatch.setattr(demo, "through_library", lambda *_: made)
    assert demo.generate([broken], nowhere / "output", None) == made
    told = capsys.readouterr().out
    assert "no torch here" in told
    assert f"the ComfyUI in {broken} does not start" in told
    assert "running the library alone" in told


def test_library_alone(tmp_path, capsys):
    demo.main(["--library", "--output", str(tmp_path), "--prompt", "一个蓝色的正方形"])
    told = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line)
    assert "python -m wan" in told["made by"]
    assert Path(told["video"].strip()).stat().st_size > 1000
    assert Path(told["sheet"].strip()).read_bytes().startswith(b"\x89PNG")
