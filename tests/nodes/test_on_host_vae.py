"""Our VAE inside ComfyUI: plans by free memory, retries that lose no frame, two dtypes of one copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wanexperts import comfy_server
from wanexperts.wan.vae import PLANS

from .conftest import CHECKOUTS

CASES = Path(__file__).parent / "vae_cases.py"
TOLERANCE = 1e-5  # measured: 2.4e-6


@pytest.fixture(scope="module", params=CHECKOUTS, ids=lambda path: path.name)
def found(request):
    helpers = os.pathsep.join(map(str, comfy_server.HELPERS))
    done = subprocess.run(
        [sys.executable, str(CASES), str(request.param)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": helpers},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_runs_out_of_memory_goes_on_where_it_stopped(found):
    assert found["frames"] == [1, 4, 4, 4]
    assert found["retried"] == [[p.strips, p.offloaded] for p in PLANS[:4]]
    assert 0 <= found["retried_difference"] < TOLERANCE


def test_after_the_last_plan_one_sentence_says_what_helps(found):
    tried, given, told = found["given_up"]
    assert tried == len(PLANS)
    assert given == 2  # the first latent frame, and the failure
    assert told == (
        "decoding 32x48 in float32 needs more memory than is free, in the smallest strips too (none "
        "left, at latent frame 2 of 4); use fewer pixels or a tiny decoder such as taew2_1 or bfloat16"
    )


def test_the_plan_follows_the_free_memory(found):
    cheapest = [
        min(i for i, other in enumerate(found["needs"]) if other <= need) for need in found["needs"]
    ]
    assert found["fitting"] == [[PLANS[i].strips, PLANS[i].offloaded] for i in cheapest]
    assert len({tuple(plan) for plan in found["fitting"]}) > 3


def test_the_host_is_asked_for_what_the_plan_needs(found):
    assert found["asked"] == pytest.approx(found["needs"][0])
    assert found["asked_little"] == pytest.approx(min(found["needs"]))


def test_one_copy_of_the_weights_encodes_in_float32_and_decodes_in_bfloat16(found):
    assert found["stored"] == ["torch.float32"]
    assert found["shares_file"]
    assert found["encode_difference"] == 0
    assert 1e-4 < found["bf16_difference"] < 0.2
