"""The change from one expert to the other in the middle of a run whose blocks come from disk.

    python -m benchmarks.swap [--layers 6] [--rounds 5] [--out F]

Two random 1.3B-shaped bfloat16 experts. Each round runs forwards of the first, then one of the second,
whose file was dropped from the system's memory when the first began its last forward. ``stall`` is
the second's first forward, from the call that opens it, over the forward after it. ``told ahead``: the
source knows what comes, as in a run; ``not told``: it reads on with the first expert's blocks. Others
load the second from its cold file after they let go of the first, as two samplers in a row or two
transformers do. ``written`` are bytes this process wrote to disk in our ways. One JSON line.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import nn

from wan.checkpoint import open_checkpoint
from wan.pipeline.source import Streamed
from wan.shapes import token_grid

from .block import call, diffusers_model, inputs
from .expert_file import DTYPE, drop, sized, write_expert
from .lines import hardware, report, versions
from .peak import MB, Peak, kept

CPU = torch.device("cpu")
SHAPE, TEXT = (1, 52, 120), 40


def ours(paths: dict[str, Path], layers: int, *, told: bool) -> tuple[float, float, float]:
    """Seconds of the second expert's first forward, of the one after it, and what was waited for."""
    given = inputs(sized(layers), SHAPE, TEXT)
    experts = {name: open_checkpoint(path, "transformer") for name, path in paths.items()}
    source = Streamed(experts, CPU)
    try:
        model = source.load("high", DTYPE)
        drop(paths["low"])
        source.expect("low" if told else "high")
        call(model, *given)
        waited, start = source.ring.waited, time.perf_counter()
        model = source.load("low", DTYPE)
        source.expect("low")
        call(model, *given)
        first = time.perf_counter() - start
        waited = source.ring.waited - waited
        source.expect(None)
        return first, _timed(model, given), waited
    finally:
        source.close()


def others(
    paths: dict[str, Path], layers: int, load: Callable[[Path, int], nn.Module]
) -> tuple[float, float, float]:
    """The same of two networks that are loaded as they come."""
    given = inputs(sized(layers), SHAPE, TEXT)
    model: nn.Module | None = load(paths["high"], layers)
    drop(paths["low"])
    call(model, *given)  # type: ignore[arg-type]
    start = time.perf_counter()
    model = None
    gc.collect()
    model = load(paths["low"], layers)
    call(model, *given)
    return time.perf_counter() - start, _timed(model, given), 0.0


def _timed(model: nn.Module, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    start = time.perf_counter()
    call(model, *given)
    return time.perf_counter() - start


def measure(paths: dict[str, Path], layers: int, rounds: int) -> dict[str, object]:
    """All ways in turns."""
    ways = {
        "told ahead": lambda: ours(paths, layers, told=True),
        "not told": lambda: ours(paths, layers, told=False),
        "diffusers": lambda: others(
            paths, layers, lambda path, n: diffusers_model(sized(n), load_file(path))
        ),
    }
    stalls: dict[str, list[float]] = {name: [] for name in ways}
    waits: dict[str, list[float]] = {name: [] for name in ways}
    blocks, peaks = [], []
    with torch.inference_mode():
        written = 0
        for number in range(rounds + 1):
            for name, way in ways.items():
                before = kept("io", "write_bytes")
                with Peak() as peak:
                    first, after, waited = way()
                if name != "diffusers":
                    written += kept("io", "write_bytes") - before
                if number:
                    stalls[name].append(first - after)
                    waits[name].append(waited)
                    blocks.append(after / layers)
                    if name == "told ahead":
                        peaks.append(peak.bytes / MB)
    block = median(blocks)
    stall = {name: round(median(found), 3) for name, found in stalls.items()}
    return {
        "stall_s": stall,
        "spread": {name: [round(min(v), 3), round(max(v), 3)] for name, v in stalls.items()},
        "waited_s": {name: round(median(v), 3) for name, v in waits.items() if name != "diffusers"},
        "block_s": round(block, 3),
        "peak_anonymous_mb": round(max(peaks), 1),
        "written_bytes": written,
        "row": {
            "shape": f"two experts of {layers} layers of 1.3B, {token_grid(*SHAPE).tokens} tokens",
            "ours": f"{1000 * stall['told ahead']:.0f} ms",
            "theirs": f"diffusers {1000 * stall['diffusers']:.0f} ms",
            "floor": "0",
            "gates": [
                {"what": "s of stall (one block)", "value": stall["told ahead"], "limit": round(block, 3)},
                {"what": "bytes written", "value": written, "limit": 0},
            ],
        },
    }  # fmt: skip


def main() -> None:
    """Write both files, change over in every way, print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep both files here, and use what is there")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        paths = {
            part: Path(given.folder or place, f"{part}.safetensors") for part in ("high", "low")
        }
        for seed, path in enumerate(paths.values()):
            if not path.exists():
                write_expert(path, given.layers, seed)
        size = paths["low"].stat().st_size
        line = measure(paths, given.layers, given.rounds)
    about = {"file_mb": round(size / MB, 1), "layers": given.layers, "rounds": given.rounds}
    threads = {"threads": torch.get_num_threads()}
    report({"case": "swap", **line, **about, **threads, **versions(), **hardware()}, given.out)


if __name__ == "__main__":
    main()
