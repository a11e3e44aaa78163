"""Generate unseen prompts with the real pipeline, write mp4 files and let the judge read them back.

Rows: the experts as they belong, swapped, and each one alone on every noise level.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..wan.checkpoint import find_parts
from ..wan.pipeline import Pipeline, Request
from ..wan.video import contact_sheet, save_png, write_video
from .captions import ATTRIBUTES, unseen_prompts
from .export import WEIGHTS
from .judge import judge, read_video

ARRANGEMENTS = {
    "both experts": ("high", "low"),
    "swapped": ("low", "high"),
    "only high noise": ("high", "high"),
    "only low noise": ("low", "low"),
}
COLUMNS = (*ATTRIBUTES, "all")
SHEET_FRAMES = (0, 8, 16)


def arrange(pipeline: Pipeline, arrangement: str) -> Pipeline:
    """``pipeline`` with its experts in another place; no loader would accept such a pair."""
    experts = {"high": pipeline.high, "low": pipeline.low}
    first, second = ARRANGEMENTS[arrangement]
    return replace(pipeline, high=experts[first], low=experts[second])


def score(
    pipeline: Pipeline, count: int, folder: Path, skip: int = 0
) -> tuple[list[dict[str, object]], list[Tensor]]:
    """Make and judge ``count`` unseen prompts; returns a row per clip and frames for a picture.

    The seed of a clip is its prompt's number.
    """
    rows: list[dict[str, object]] = []
    shown: list[Tensor] = []
    sampling = pipeline.defaults
    for seed, (_, language, prompt) in enumerate(unseen_prompts(skip + count)):
        if seed < skip:
            continue
        request = Request(prompt=prompt, sampling=sampling, seed=seed)
        path = folder / f"{seed:03}.mp4"
        write_video(path, torch.cat(list(pipeline.generate(request))), sampling.fps)
        frames = read_video(path)
        verdict = judge(frames, prompt)
        verdict["all"] = all(verdict.values())
        rows.append({"language": language, "prompt": prompt, "right": verdict})
        shown.append(frames[list(SHEET_FRAMES)])
    return rows, shown


def summary(rows: Iterable[dict[str, object]]) -> str:
    """Percentages right per attribute, in the order of COLUMNS."""
    verdicts = [row["right"] for row in rows]
    shares = (100 * sum(v[name] for v in verdicts) / len(verdicts) for name in COLUMNS)
    return " | ".join(f"{share:5.1f}" for share in shares)


def main() -> int:
    """Score unseen prompts and print a table of percentages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=96, help="prompts with both experts")
    parser.add_argument(
        "--others", type=int, default=64, help="prompts with experts swapped or alone"
    )
    parser.add_argument(
        "--skip", type=int, default=0, help="leave out the first prompts (and seeds)"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, help="folder for clips, a JSON file and contact sheets")
    arguments = parser.parse_args()
    pipeline = Pipeline.load(**find_parts(arguments.weights), device="cpu")
    print(f"{'experts':22} | {'n':>3} | {' | '.join(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for arrangement in ARRANGEMENTS:
            both = arrangement == "both experts"
            count = arguments.count if both else arguments.others
            if not count:
                continue
            folder = (arguments.out or Path(temporary)) / arrangement.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            begun = time.monotonic()
            rows, shown = score(arrange(pipeline, arrangement), count, folder, arguments.skip)
            seconds = (time.monotonic() - begun) / count
            print(
                f"{arrangement:22} | {count:3} | {summary(rows)} | {seconds:.1f} s a clip",
                flush=True,
            )
            for language in ("en", "zh") if both else ():
                some = [row for row in rows if row["language"] == language]
                print(f"  {language:20} | {len(some):3} | {summary(some)}", flush=True)
            (folder / "scores.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))
            save_png(folder / "sheet.png", contact_sheet(torch.cat(shown), 4 * len(SHEET_FRAMES)))
    return 0
