"""From a prompt to an mp4 on the bundled family: through a real ComfyUI where there is one.

``python demo.py`` looks for a ComfyUI checkout in ``COMFYUI_PATH``, then the ComfyUI this folder is
installed in, then ``~/comfy/ComfyUI``, then clones one into ``.comfyui/``. It starts the server on a
free port, sends ``workflows/api/wan_tiny_t2v.json`` to it and follows the run on the websocket.
Without any ComfyUI it runs the same generation through ``python -m wan``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# As a script this folder is on the path; inside ComfyUI or the tests it is a package.
if __package__:
    from .comfy_server import Graph, Host, NotStarted, node_of
else:
    from comfy_server import Graph, Host, NotStarted, node_of

ROOT = Path(__file__).resolve().parent
WORKFLOW = ROOT / "workflows" / "api" / "wan_tiny_t2v.json"
CLONE = ROOT / ".comfyui"
CLONE_TAG = "v0.12.1"


def find_checkouts() -> list[Path]:
    """ComfyUI folders on this machine, best first."""
    places = [ROOT.parents[1], Path.home() / "comfy" / "ComfyUI", CLONE]
    if named := os.environ.get("COMFYUI_PATH"):
        places.insert(0, Path(named))
    found = [place.resolve() for place in places if (place / "comfy").is_dir()]
    return [place for place in dict.fromkeys(found) if (place / "main.py").is_file()]


def clone_checkout() -> list[Path]:
    """Try to fetch a ComfyUI; an empty list where that is not possible."""
    url = "https://github.com/comfyanonymous/ComfyUI"
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", CLONE_TAG, url, str(CLONE)]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(CLONE, ignore_errors=True)
        return []
    return [CLONE]


class Bar:
    """One line of progress per node."""

    def __init__(self, graph: Graph) -> None:
        """Node titles come from ``graph``."""
        self._titles = {
            i: n.get("_meta", {}).get("title", n["class_type"]) for i, n in graph.items()
        }
        self._node = ""

    def __call__(self, node: str, value: int, total: int) -> None:
        """Draw the bar of ``node``."""
        if node != self._node and self._node:
            sys.stdout.write("\n")
        self._node = node
        filled = 30 * value // max(1, total)
        title = self._titles.get(node, node)
        sys.stdout.write(f"\r{title:32.32} [{'#' * filled:30}] {value}/{total}")
        sys.stdout.flush()


def through_host(checkout: Path, output: Path, prompt: str | None) -> tuple[Path, str]:
    """Generate in a real server; returns the mp4 and how it was made."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    if prompt:
        graph[node_of(graph, "WanExpertsTextEncode")]["inputs"]["positive"] = prompt
    say(f"starting ComfyUI in {checkout} ...")
    with Host(checkout, output=output) as host:
        outputs = host.run(graph, Bar(graph))
        say("")
        saved = outputs[node_of(graph, "WanExpertsDecodeToVideo")]["images"][0]
        return host.path(saved), f"ComfyUI {host.version}"


def through_library(output: Path, prompt: str | None) -> tuple[Path, str]:
    """Generate with the library alone; returns the mp4 and how it was made."""
    path = output / "video" / "wan_tiny.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    text = prompt or graph[node_of(graph, "WanExpertsTextEncode")]["inputs"]["positive"]
    command = [sys.executable, "-m", "wan", "generate", "--prompt", text, "--out", str(path)]
    subprocess.run(command, cwd=ROOT, check=True)
    return path, "python -m wan, without ComfyUI"


def write_sheet(video: Path) -> Path:
    """All frames of ``video`` as one PNG beside it."""
    import av
    import torch

    library = importlib.import_module(".wan.video" if __package__ else "wan.video", __package__)
    with av.open(str(video)) as container:
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    sheet = video.with_suffix(".png")
    library.save_png(sheet, library.contact_sheet(torch.stack(frames), columns=6))
    return sheet


def say(text: str) -> None:
    """Talk to the person at the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def generate(checkouts: Sequence[Path], output: Path, prompt: str | None) -> tuple[Path, str]:
    """Generate in the first ComfyUI that starts, else with the library; says what did not start."""
    if not checkouts:
        say("no ComfyUI to use (set COMFYUI_PATH to a checkout); running the library alone")
        return through_library(output, prompt)
    try:
        return through_host(checkouts[0], output, prompt)
    except NotStarted as error:
        say(f"{error}\n\nthe ComfyUI in {checkouts[0]} does not start, see above")
    return generate(checkouts[1:], output, prompt)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="from a prompt to an mp4, on any CPU")
    parser.add_argument("--prompt", help="English or Chinese; default: the one in the workflow")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="output folder")
    parser.add_argument("--library", action="store_true", help="do not look for a ComfyUI")
    given = parser.parse_args(arguments)
    checkouts = [] if given.library else find_checkouts() or clone_checkout()
    video, way = generate(checkouts, given.output.resolve(), given.prompt)
    say(f"made by: {way}\nvideo:   {video}\nsheet:   {write_sheet(video)}")


if __name__ == "__main__":
    main()
