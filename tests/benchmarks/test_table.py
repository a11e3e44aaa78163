"""The overview of docs/benchmarks.md is what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wanexperts.benchmarks import table


def test_the_page_shows_the_results() -> None:
    page = table.PAGE.read_text()
    shown = page.partition(table.START)[2].partition(table.END)[0].strip()
    assert shown == table.table(table.read_lines()), "run python -m benchmarks.table --write"


def test_every_result_names_its_hardware_and_versions() -> None:
    for case, lines in table.read_lines().items():
        for line in lines:
            assert line["torch"], case
            assert line["machine"], case


def test_all_ten_cases_have_a_row() -> None:
    rows = table.table({}).splitlines()[2:12]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [str(n) for n in range(1, 11)]
    assert all(row.endswith("| not measured |") for row in rows)


BLOCK = {
    "case": "block", "tokens": 60, "text": 40, "torch": "1", "processor": "p", "cores": 2,
    "seconds": {"bare": 1.0, "ours": 1.2, "ours, text read once": 1.0, "diffusers": 1.2, "comfyui": 1.1},
    "over_bare": {"bare": 1.0, "ours": 1.2, "ours, text read once": 1.0, "diffusers": 1.2, "comfyui": 1.1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (1.0, "met"),
        (1.09, "**missed**: 0.908 × diffusers"),
        (1.11, "**missed**: 1.11 × kernels, 0.925 × diffusers, 1.009 × ComfyUI"),
    ],
)
def test_a_line_is_met_or_missed_by_name(ours: float, verdict: str) -> None:
    line = {**BLOCK, "over_bare": {**BLOCK["over_bare"], "ours, text read once": ours}}
    (row,) = table.block([line])
    assert row.verdict == verdict


def test_the_last_line_of_a_shape_counts(tmp_path: Path) -> None:
    older = {**BLOCK, "seconds": {**BLOCK["seconds"], "bare": 9.0}}
    other = {**BLOCK, "tokens": 90}
    text = "\n".join(json.dumps(line) for line in (older, other, BLOCK))
    (tmp_path / "block_cpu.jsonl").write_text(text)
    rows = table.block(table.read_lines(tmp_path)["block"])
    assert [(row.shape, row.floor) for row in rows] == [
        ("60 tokens, text read once", "1.0 s"),
        ("90 tokens, text read once", "1.0 s"),
    ]


def test_a_forward_has_a_line_for_its_error_too() -> None:
    found = {"ours": {"cosine": 0.9998}, "diffusers": {"cosine": 0.9}}
    line = {"seconds_per_layer": BLOCK["seconds"], "layers": 10, "error": found}
    (row,) = table.block([{k: v for k, v in {**BLOCK, **line}.items() if k != "seconds"}])
    assert row.shape == "10 layers, 60 tokens, text read once"
    assert row.floor == "1.0 s a layer"
    assert row.verdict == "**missed**: 0.9998 cosine"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ({"peak": 50.0, "longer": 50.0}, "met"),
        (
            {"peak": 50.0, "longer": 50.0, "theirs": 0.99},
            "**missed**: 0.99 × ours, the fastest other",
        ),
        ({"peak": 50.1, "longer": 50.0}, "**missed**: 0.501 × the least peak of others"),
        ({"peak": 50.0, "longer": 52.0}, "**missed**: 1.01 × the share in use at 33 frames, at 81"),
    ],
)
def test_the_vae_is_held_to_speed_peak_and_a_falling_share(ours: dict, verdict: str) -> None:
    shared = {"direction": "decode", "dtype": "float32", "latent": [8, 14], "seconds": 1.0}
    mine = {
        "way": "ours", "over_ours": 1.0, "convolutions": 1.1,
        "peak_mb": {"33": ours["peak"]}, "in_use_mb": {"33": 50.0, "81": ours["longer"]},
    }  # fmt: skip
    theirs = {
        "way": "diffusers", "over_ours": ours.get("theirs", 1.2),
        "peak_mb": {"33": 100.0}, "in_use_mb": {"33": 90.0, "81": 92.7},
    }  # fmt: skip
    (row,) = table.vae([{**shared, **mine}, {**shared, **theirs}])
    assert row.verdict == verdict


def test_a_gate_at_its_limit_is_met() -> None:
    assert table.Gate(what="u", value=3.3, limit=3.3).met
    assert not table.Gate(what="u", value=3.31, limit=3.3).met
    assert table.Gate(what="of raw", value=0.9, limit=0.9, over=True).met
    assert not table.Gate(what="of raw", value=0.89, limit=0.9, over=True).met
