"""The picture of the schedule on a node: the library's numbers, and a switch that can be dragged."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page
from wanexperts.comfy_server import PACK, ROOT, Host
from wanexperts.wan.config import T2V_A14B
from wanexperts.wan.experts import select
from wanexperts.wan.schedule import Schedule, custom_schedule, make_schedule, parse_timesteps
from wanexperts.wan.switch import Switch

from .canvas import Canvas

pytestmark = pytest.mark.comfy

OWN = T2V_A14B.sampling.boundary
SAMPLER = 6
COMPUTE = """async ([path, runs]) => {
  const {makeSchedule, boundaryOf, stagesOf} = await import(path);
  return runs.map(([given, place, motion]) => {
    try {
      const schedule = makeSchedule(given);
      const boundaries = [...motion, boundaryOf(schedule, place), 0];
      return {...schedule, boundaries, stages: stagesOf(schedule, boundaries)};
    } catch (error) { return error.message; }
  });
}"""
GRIDS = [
    ("unipc", 40, 12.0, ""),
    ("unipc", 20, 12.0, ""),
    ("unipc", 20, 5.0, ""),
    ("unipc", 1, 1.0, ""),
    ("unipc", 200, 7.3, ""),
    ("dpm++", 25, 8.0, ""),
    ("shifted", 8, 3.0, ""),
    ("lightning", 4, 5.0, ""),
    ("lcm", 3, 9.0, ""),
    ("list", 9, 1.0, "[1000, 934; 862 756\n603, 410, 250, 140, 74, 0]"),
    ("list", 9, 1.0, "1.0 0.9375 0.8333 0.625"),
]
PLACES = [
    ("auto", 0.0),
    ("boundary", 0.9),
    ("step", 0),
    ("step", 1),
    ("snr", 0.0204),
    ("timestep", 833.3),
    ("fraction", 0.35),
    ("fraction", 1.0),
]
REFUSED = [
    (("lightning", 5, 5.0, ""), ("auto", 0.0), []),
    (("list", 1, 1.0, "1000, 1000"), ("auto", 0.0), []),
    (("list", 1, 1.0, "1000, many"), ("auto", 0.0), []),
    (("shifted", 8, 3.0, ""), ("step", 9), []),
    (("shifted", 8, 3.0, ""), ("boundary", 0.98), [0.965]),
]


def schedule_of(scheduler: str, steps: int, shift: float, timesteps: str) -> Schedule:
    """What Wan Sigmas makes of its widgets."""
    if scheduler == "list":
        return custom_schedule(parse_timesteps(timesteps))
    return make_schedule(scheduler, steps=steps, shift=shift)


def given(run: tuple) -> list:
    """A run in the words of the page."""
    (scheduler, steps, shift, timesteps), (kind, value), motion = run
    grid = {"scheduler": scheduler, "steps": steps, "shift": shift, "timesteps": timesteps}
    place = {"kind": kind, "boundary": value, "step": value, "value": value}
    return [grid, place, motion]


def test_its_numbers_are_those_of_the_library(page: Page, site: Host) -> None:
    runs = [(grid, place, motion) for grid in GRIDS for place in PLACES for motion in ([], [0.965])]
    runs += REFUSED
    path = f"/extensions/{PACK}/js/schedule.js"
    page.goto(f"http://{site.url}{path}")
    answers = page.evaluate(COMPUTE, [path, [given(run) for run in runs]])
    compared = 0
    for run, told in zip(runs, answers, strict=True):
        grid, place, motion = run
        try:
            schedule = schedule_of(*grid)
            boundaries = [*motion, Switch(*place).boundary(schedule, OWN), 0.0]
            if boundaries != sorted(boundaries, reverse=True):
                raise ValueError("order")
        except ValueError:
            assert isinstance(told, str), run
            continue
        assert told["sigmas"] == schedule.sigmas.tolist(), run
        assert told["timesteps"] == schedule.timesteps.tolist(), run
        assert told["boundaries"] == boundaries, run
        assert told["stages"] == [select(boundaries, level) for level in schedule.levels()], run
        compared += 1
    assert compared > 100
    assert [told for told in answers[-len(REFUSED) :] if not isinstance(told, str)] == []


def test_it_follows_the_widgets_and_its_switch_can_be_dragged(canvas: Canvas) -> None:
    workflow = json.loads((ROOT / "workflows" / "wan_tiny_t2v.json").read_text("utf-8"))
    workflow["extra"]["ds"] = {"scale": 0.8, "offset": [-700, 60]}
    page = canvas.page
    picture, line = page.locator(".wan-timeline svg"), page.locator(".wan-timeline div")
    canvas.load(workflow)
    assert line.inner_text() == "9 high noise · 11 low noise · auto, if the MODEL divides at 0.875"
    for name, value, words in (
        ("switch", "boundary", "9 high noise · 11 low noise"),
        ("boundary", 0.5, "17 high noise · 3 low noise"),
        ("scheduler", "lightning", "steps do not fit this schedule"),
        ("preset", "lightning", "the preset decides: see the plan of the run"),
    ):
        canvas.set_widget(SAMPLER, name, value)
        assert line.inner_text() == words
    canvas.load(workflow)
    box = picture.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.31, middle)
    assert line.inner_text() == "step 7 of 20: σ 0.9208, t 920, high noise"
    page.mouse.move(box["x"] + box["width"] * 0.45, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    page.mouse.up()
    page.mouse.move(5, 300)
    assert line.inner_text() == "4 high noise · 16 low noise"
    canvas.screenshot(f"dragged-{canvas.host.version}")
    sent = canvas.prompt()[str(SAMPLER)]["inputs"]
    assert (sent["switch"], sent["switch_step"]) == ("step", 4)
    page.keyboard.press("Control+z")
    page.wait_for_function(
        f"() => app.graph.getNodeById({SAMPLER})?.widgets.some(w => w.value === 'auto')"
    )
