"""A forward whose blocks come from disk: memory and seconds beside weights that are there.

    python -m benchmarks.stream [--layers 30] [--timed 12] [--rounds 5] [--comfyui FOLDER] [--out F]

A random 1.3B-shaped bfloat16 expert is written once. Memory: every way loads the file and runs one
forward in a process of its own; its peaks are above what is resident after the imports. ``anonymous``
is what no file backs, ``resident`` the high-water mark with pages of mapped files. Seconds: forwards
of the first ``--timed`` blocks in one process, whose ways take turns: resident weights, and
streamed ones with the file in the system's memory and with the file dropped from it before, the
text read before the first turn that counts, as in all but the first forwards of a run;
``slower`` by the clock, ``slower_cpu`` by the time of all threads, which other work on the machine
disturbs less. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wan.checkpoint import load_transformer, open_checkpoint
from wan.checkpoint.ring import Ring
from wan.checkpoint.stream import block_loads, load_streamed
from wan.shapes import token_grid
from wan.transformer import WanTransformer

from .block import call, comfy_model, diffusers_model, inputs, our_model
from .checkout import environment
from .expert_file import DTYPE, drop, sized, write_expert
from .lines import hardware, report, versions
from .peak import MB, Peak, kept

CPU = torch.device("cpu")
SHAPE = (1, 52, 120)
TEXT = 40
WAYS = ("streamed", "mapped", "resident", "diffusers", "comfyui")


def streamed(path: Path, layers: int) -> tuple[WanTransformer, Ring]:
    """The first ``layers`` blocks of an expert out of a ring."""
    loads = block_loads(open_checkpoint(path, "transformer"), CPU)[:layers]
    ring = Ring(max(load.nbytes for load in loads), CPU)
    model, _ = load_streamed(path, loads, ring, CPU, DTYPE)
    return shortened(model, layers), ring


def shortened(model: WanTransformer, layers: int) -> WanTransformer:
    """Its first blocks alone."""
    model.blocks = model.blocks[:layers]
    return model


def own(path: Path, layers: int) -> dict[str, Tensor]:
    """Weights in memory of their own, as on a device."""
    state = {name: value.clone() for name, value in load_file(path).items()}
    return {
        n: v
        for n, v in state.items()
        if not n.startswith("blocks.") or int(n.split(".")[1]) < layers
    }


def open_way(way: str, path: Path | None, layers: int, checkout: Path | None) -> nn.Module:
    """One way's network; without a file it has no weights."""
    config = sized(layers)
    if path is not None and way == "streamed":
        return streamed(path, layers)[0]
    if path is not None and way == "mapped":
        return load_transformer(path, dtype=DTYPE)
    if path is not None and way == "resident":
        return our_model(config, own(path, layers))
    empty = WanTransformer(config, device=torch.device("meta"), dtype=DTYPE).state_dict()
    if way == "diffusers":
        return diffusers_model(config, load_file(path) if path else empty)
    assert checkout is not None
    model = comfy_model(checkout, config, empty)
    if path is not None:
        import comfy.utils

        model.load_state_dict(comfy.utils.load_torch_file(str(path)), assign=True)
    return model


def memory(way: str, path: Path, layers: int, checkout: Path | None) -> dict[str, float]:
    """Peaks of loading and one forward of a way, in this process."""
    if way in ("diffusers", "comfyui"):  # their imports are not counted
        open_way(way, None, 1, checkout)
    base = kept("status", "VmRSS")
    given = inputs(sized(layers), SHAPE, TEXT)
    with Peak() as peak, torch.inference_mode():
        call(open_way(way, path, layers, checkout), *given)
    top = kept("status", "VmHWM")
    return {
        "anonymous_mb": round(peak.bytes / MB, 1),
        "resident_mb": round((top - base) * 1024 / MB, 1),
    }


def seconds(path: Path, layers: int, rounds: int) -> dict[str, object]:
    """Wall seconds of the ways in turns, and how much slower than resident they are."""
    networks = {
        "resident": our_model(sized(layers), own(path, layers)),
    }
    networks["streamed"], ring = streamed(path, layers)
    x, at, context = inputs(sized(layers), SHAPE, TEXT)
    found: dict[str, list[float]] = {}
    busy: dict[str, list[float]] = {}
    outs = {}
    with ring, torch.inference_mode():
        texts = {name: model.read(context, DTYPE) for name, model in networks.items()}
        for number in range(rounds + 1):
            for name, key in ORDER[number % len(ORDER) :] + ORDER[: number % len(ORDER)]:
                if name.endswith("cold"):
                    drop(path)
                start, before = time.perf_counter(), time.process_time()
                outs[name] = networks[key](x, at, texts[key])
                if number:
                    found.setdefault(name, []).append(time.perf_counter() - start)
                    busy.setdefault(name, []).append(time.process_time() - before)
    equal = all(torch.equal(out, outs["resident"]) for out in outs.values())
    return {
        "seconds": {name: round(median(spent), 2) for name, spent in found.items()},
        "spread": {name: [round(min(spent), 2), round(max(spent), 2)] for name, spent in found.items()},
        "slower": _slower(found),
        "slower_cpu": _slower(busy),
        "equal": equal,
    }  # fmt: skip


def _slower(found: dict[str, list[float]]) -> dict[str, float]:
    """The median over rounds of how much longer each took than resident weights."""
    base = found["resident"]
    return {
        name: round(median(a / b for a, b in zip(spent, base, strict=True)) - 1, 4)
        for name, spent in found.items()
        if name != "resident"
    }


ORDER = (
    ("resident", "resident"),
    ("streamed, file kept", "streamed"),
    ("streamed, file cold", "streamed"),
)
"""Words of a turn, and the network that takes it."""


def main() -> None:
    """Write the file, run every way, print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--timed", type=int, default=12, help="blocks of the timed forwards")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--file", type=Path, help="use this file, and leave it there")
    parser.add_argument("--only", choices=("memory", "seconds"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(memory(given.one, given.file, given.layers, given.comfyui)))
        return
    with tempfile.TemporaryDirectory() as place:
        path = given.file or Path(place, "expert.safetensors")
        if not path.exists():
            write_expert(path, given.layers)
        line = measure(path, given)
    report(line, given.out)


def measure(path: Path, given: argparse.Namespace) -> dict[str, object]:
    """All of one file."""
    tokens = token_grid(*SHAPE).tokens
    config = sized(given.layers)
    unit = tokens * config.dim * DTYPE.itemsize / MB
    block = block_loads(open_checkpoint(path, "transformer"), CPU)[0].nbytes / MB
    line: dict[str, object] = {
        "case": "stream", "tokens": tokens, "layers": given.layers, "dtype": "bfloat16",
        "file_mb": round(path.stat().st_size / MB, 1), "block_mb": round(block, 1), "u_mb": round(unit, 1),
    }  # fmt: skip
    limit = 2 * block + 3.3 * unit + 250
    if given.only != "seconds":
        peaks = {way: _apart(way, path, given) for way in WAYS if way != "comfyui" or given.comfyui}
        line |= {"peaks": peaks, "limit_mb": round(limit, 1)}
    if given.only != "memory":
        line |= {"timed_layers": given.timed, "rounds": given.rounds}
        line |= seconds(path, given.timed, given.rounds)
    if given.only is None:
        line["row"] = _row(line)
    return line | {"threads": torch.get_num_threads(), **versions(given.comfyui), **hardware()}


def _row(line: dict[str, object]) -> dict[str, object]:
    """The row of the table."""
    peaks, slower = line["peaks"], line["slower"]
    assert isinstance(peaks, dict)
    assert isinstance(slower, dict)
    ours = peaks["streamed"]["anonymous_mb"]
    names = {"comfyui": "ComfyUI", "diffusers": "diffusers"}
    theirs = [
        f"{told} {peaks[key]['anonymous_mb']:.0f}" for key, told in names.items() if key in peaks
    ]
    return {
        "shape": f"{line['layers']} layers of 1.3B, {line['tokens']} tokens",
        "ours": f"{ours:.0f} MB anonymous",
        "theirs": ", ".join([*theirs, f"resident {peaks['resident']['anonymous_mb']:.0f}"]) + " MB",
        "floor": f"{2 * line['block_mb']:.0f} MB, two blocks",  # type: ignore[operator]
        "gates": [
            {"what": "MB", "value": ours, "limit": line["limit_mb"]},
            {"what": "slower, file cold", "value": slower["streamed, file cold"], "limit": 0.05},
        ],
    }


def _apart(way: str, path: Path, given: argparse.Namespace) -> dict[str, float]:
    """:func:`memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.stream", "--one", way, "--file", str(path)]
    command += ["--layers", str(given.layers)]
    command += ["--comfyui", str(given.comfyui)] if given.comfyui else []
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(given.comfyui)
    )
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-2000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main()
