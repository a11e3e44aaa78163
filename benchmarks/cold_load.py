"""An expert read from a file that the system does not hold: seconds to the first block and to all.

    python -m benchmarks.cold_load [--layers 12] [--rounds 7] [--comfyui FOLDER] [--out F]

Ways take turns in one process, each after the file was dropped from the system's memory: bare reads
of 32 MB, our ring with nothing computed, our reading ahead of mapped weights, ``load_file`` of
safetensors and ComfyUI's ``load_torch_file``; of the last two, which map, every page is then touched.
A disk that others use is never the same twice: numbers are medians of each round's own ratio to the
bare reads of that round. One JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor

from wan.checkpoint import open_checkpoint
from wan.checkpoint.ahead import ReadAhead
from wan.checkpoint.ring import Ring
from wan.checkpoint.stream import block_loads, in_order

from .checkout import enter
from .expert_file import bare_read, drop, write_expert
from .lines import hardware, report, versions
from .peak import MB

PAGE = 4096
BARE = "bare"
Times = tuple[float, float]
"""Seconds to the first block (0 where nothing tells it) and to all."""


def ring(path: Path) -> Times:
    """Every block through the ring; nothing but blocks is read."""
    start = time.perf_counter()
    loads = block_loads(open_checkpoint(path, "transformer"), torch.device("cpu"))
    with Ring(max(load.nbytes for load in loads), torch.device("cpu")) as buffers:
        for index, load in enumerate(loads):
            buffers.take(load, loads[index + 1 :])
            if not index:
                first = time.perf_counter() - start
        return first, time.perf_counter() - start


def ahead(path: Path) -> Times:
    """The thread that brings mapped weights into memory."""
    start = time.perf_counter()
    reading = ReadAhead(in_order(open_checkpoint(path, "transformer")))
    reading.wait()
    return 0.0, time.perf_counter() - start


def touched(load: Callable[[str], dict[str, Tensor]]) -> Callable[[Path], Times]:
    """A loader of mapped weights, and a look at every page of them."""

    def way(path: Path) -> Times:
        start = time.perf_counter()
        for value in load(str(path)).values():
            value.reshape(-1).view(torch.uint8)[::PAGE].sum()
        return 0.0, time.perf_counter() - start

    return way


def measure(path: Path, rounds: int, checkout: Path | None) -> dict[str, object]:
    """All ways in turns."""
    ways = {"ring": ring, "read ahead": ahead, "safetensors": touched(load_file)}
    if checkout is not None:
        enter(checkout)
        import comfy.utils

        ways["comfyui"] = touched(comfy.utils.load_torch_file)
    loads = block_loads(open_checkpoint(path, "transformer"), torch.device("cpu"))
    inside = sum(piece.info.nbytes for load in loads for piece in load.pieces)
    size, block = path.stat().st_size, loads[0].nbytes
    speed: dict[str, list[float]] = {}
    firsts = []
    names = [*ways, BARE]
    for number in range(rounds + 1):
        spent: dict[str, float] = {}
        # Each round begins with another way: a disk may be quicker after it was busy.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            drop(path)
            first, spent[name] = ways[name](path) if name in ways else bare_read(path, block)
            if name == "ring":
                ours = first
            elif name == BARE:
                early = first
        if number:
            firsts.append((ours / early, ours, early))
            for name in ways:  # the ring reads the blocks alone
                share = inside / size if name == "ring" else 1.0
                speed.setdefault(name, []).append(share * spent[BARE] / spent[name])
            speed.setdefault(BARE, []).append(size / spent[BARE] / 1e9)
    ratios = {name: round(median(found), 3) for name, found in speed.items() if name != BARE}
    in_blocks = round(median(ratio for ratio, _, _ in firsts), 2)
    return {
        "file_mb": round(size / MB, 1),
        "block_mb": round(block / MB, 1),
        "bare_gb_s": [round(pick(speed[BARE]), 2) for pick in (min, median, max)],
        "over_bare": ratios,
        "spread": {n: [round(min(v), 2), round(max(v), 2)] for n, v in speed.items() if n != BARE},
        "first_block_s": round(median(first for _, first, _ in firsts), 3),
        "bare_block_s": round(median(early for _, _, early in firsts), 3),
        "first_in_block_reads": in_blocks,
        "row": {
            "shape": f"{size / 1e9:.2f} GB, 1.3B blocks",
            "ours": f"{ratios['ring']:.2f} of bare reads",
            "theirs": ", ".join(
                f"{told} {ratios[key]:.2f}"
                for key, told in (("comfyui", "ComfyUI"), ("safetensors", "safetensors"))
                if key in ratios
            ),
            "floor": f"{median(speed['bare']):.2f} GB/s",
            "gates": [
                {"what": "of bare reads", "value": ratios["ring"], "limit": 0.9, "over": True},
                {"what": "block reads to the first block", "value": in_blocks, "limit": 2.0},
            ],
        },
    }  # fmt: skip


def main() -> None:
    """Write the file, read it in every way, print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--file", type=Path, help="use this file, and leave it there")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        path = given.file or Path(place, "expert.safetensors")
        if not path.exists():
            write_expert(path, given.layers)
        line = measure(path, given.rounds, given.comfyui)
    about = {"rounds": given.rounds, **versions(given.comfyui), **hardware()}
    report({"case": "cold_load", **line, **about}, given.out)


if __name__ == "__main__":
    main()
