"""Draws the thumbnails: ``python -m workflows.thumbnails CHECKOUT`` (a ComfyUI) runs every template.

Each picture is made by the graph of its template with the bundled miniature family: four moments of its
clip. ComfyUI's template browser looks for ``<template>.jpg`` beside ``<template>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
from PIL import Image

from comfy_server import Host

from .miniature import PROMPTS, shrunk
from .sheet import ROOT

TILE, GAP, ACROSS = 160, 4, 2


def tiles(clip: Path) -> Image.Image:
    """Four moments of a clip in a square."""
    with av.open(str(clip)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    last = ACROSS * ACROSS - 1
    side = ACROSS * (TILE + GAP) - GAP
    sheet = Image.new("RGB", (side, side), "#17191d")
    for number in range(last + 1):
        frame = frames[round(number * (len(frames) - 1) / last)]
        row, column = divmod(number, ACROSS)
        small = frame.resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(small, (column * (TILE + GAP), row * (TILE + GAP)))
    return sheet


def main() -> None:
    """Run every template and write its picture."""
    folder = ROOT / "workflows"
    with Host(Path(sys.argv[1])) as host:
        for name, prompt in PROMPTS.items():
            graph = json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8"))
            outputs = host.run(shrunk(graph, prompt))
            (clip,) = [told["images"][0] for told in outputs.values() if told.get("images")]
            tiles(host.path(clip)).save(folder / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
