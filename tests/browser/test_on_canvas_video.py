"""Decode Wan Latents to Video on the canvas: the node shows its clip, and the file brings the graph back."""

from __future__ import annotations

import json

import pytest
from wanexperts.comfy_server import ROOT

from .canvas import Canvas
from .playback import play

pytestmark = pytest.mark.comfy

WORKFLOW = ROOT / "workflows" / "wan_tiny_t2v.json"
PROMPT = 'a blue square moves up, 一个“蓝色”正方形 & "quotes" \\ {} %\n'
ENCODE, EMPTY, SAMPLER, VIDEO = 4, 5, 6, 7
SIZE, FRAMES, FPS = 64, 17, 8


def drawn(canvas: Canvas) -> dict:
    """All of a workflow that a person sees, by node id."""
    graph = canvas.workflow()
    nodes = {
        node["id"]: {key: node.get(key) for key in ("type", "pos", "size", "mode", "title")}
        for node in graph["nodes"]
    }
    for node in graph["nodes"]:
        nodes[node["id"]]["values"] = node.get("widgets_values")
    return {"nodes": nodes, "links": sorted(graph["links"]), "groups": graph["groups"]}


def tiny(canvas: Canvas, format: str) -> None:
    """The bundled workflow, with values of its own in every kind of widget."""
    canvas.load(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    canvas.set_widget(ENCODE, "positive", PROMPT)
    canvas.set_widget(SAMPLER, "steps", 3)
    canvas.set_widget(SAMPLER, "noise_seed", 2**53 - 1)
    canvas.set_widget(SAMPLER, "cfg_high_noise", 2.25)
    canvas.set_widget(VIDEO, "format", format)
    canvas.set_widget(VIDEO, "filename_prefix", f"video/tiny {format}")


@pytest.mark.parametrize("format", ["h264-mp4", "h265-10bit-mp4", "png16-sequence"])
def test_a_run_is_shown_and_its_file_brings_it_back(canvas: Canvas, format: str) -> None:
    tiny(canvas, format)
    made, run = drawn(canvas), canvas.prompt()
    assert made["nodes"][VIDEO]["values"] == [float(FPS), f"video/tiny {format}", format, 16]
    (shown,) = canvas.queue()[str(VIDEO)]["images"]
    if format == "png16-sequence":
        canvas.page.wait_for_function(f"() => app.graph.getNodeById({VIDEO}).imgs?.[0]?.complete")
        files = sorted((canvas.host.output / "video" / f"tiny {format}_00001").iterdir())
        assert len(files) == FRAMES
        file = files[-1]
    else:
        file = canvas.host.path(shown)
    if format == "h264-mp4":
        told = play(canvas.page.locator("video"))
        assert (told["width"], told["height"]) == (SIZE, SIZE)
        assert told["duration"] == pytest.approx(FRAMES / FPS, abs=0.02)
        assert told["advanced"] > 0.25
    canvas.screenshot(f"shown-{canvas.host.version}-{format}")
    canvas.restore(file)
    assert drawn(canvas) == made
    assert canvas.prompt() == run
