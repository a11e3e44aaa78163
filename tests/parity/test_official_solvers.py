"""Schedules and solvers against numbers frozen from the official schedulers.

The file says which commit was run, on which velocity and start; the official code is not needed here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from wanexperts.wan.experts import count_high
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import make_schedule
from wanexperts.wan.solvers import SOLVERS

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = json.loads((GOLDENS / "official_solvers.json").read_text())
GRIDS = json.loads((GOLDENS / "official_grids.json").read_text())
"""More settings, without their sigmas."""


def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return 0.3 * x + torch.sin(3 * x) * (1 - sigma) + 0.2 * sigma


@pytest.mark.parametrize(
    "run", GOLDEN["runs"], ids=lambda run: f"{run['solver']}-{run['steps']}-{run['shift']:g}"
)
def test_equals_the_official_run(run, record_property):
    schedule = make_schedule(run["solver"], steps=run["steps"], shift=run["shift"])
    assert schedule.timesteps.tolist() == run["timesteps"]
    assert torch.equal(schedule.sigmas, torch.tensor(run["sigmas"]))
    start = torch.linspace(-2, 2, 12).view(1, 1, 1, 1, 12)
    result = sample(velocity, start, schedule, SOLVERS[run["solver"]])
    expected = torch.tensor(run["result"]).view_as(start)
    difference = ((result - expected).abs().max() / expected.abs().max()).item()
    record_property(f"{run['solver']}_vs_official_code", difference)
    assert difference < 1e-6


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0, 12.0])
def test_equals_the_official_runs_of_4_to_50_steps(solver, shift, record_property):
    runs = [run for run in GRIDS["runs"] if (run["solver"], run["shift"]) == (solver, shift)]
    assert [run["steps"] for run in runs] == [4, 5, 6, 8, 10, 16, 20, 30, 40, 50]
    start = torch.linspace(-2, 2, 12).view(1, 1, 1, 1, 12)
    for run in runs:
        schedule = make_schedule(solver, steps=run["steps"], shift=shift)
        assert schedule.timesteps.tolist() == run["timesteps"]
        for boundary in (0.875, 0.9):
            high = sum(t >= boundary * 1000 for t in run["timesteps"])  # the official comparison
            assert count_high(schedule, boundary) == high
        result = sample(velocity, start, schedule, SOLVERS[solver]).flatten()
        expected = torch.tensor(run["result"])
        difference = ((result - expected).norm() / expected.norm()).item()
        record_property(f"{solver}_grids_vs_official_code", difference)
        assert difference < 1e-6
