"""Schedules and solvers against numbers frozen from the official schedulers.

The file says which commit was run, on which velocity and start; the official code is not needed here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import make_schedule
from wanexperts.wan.solvers import SOLVERS

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "official_solvers.json").read_text())


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
