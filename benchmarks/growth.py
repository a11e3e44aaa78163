"""How time, memory and operations grow with the length of a clip, from prompt to mp4, beside ComfyUI's own graph.

    python -m benchmarks.growth [--frames 17 33 65 129 257] [--size 96 96] [--steps 4]
        [--comfyui FOLDER] [--out results.jsonl]

A pair of random experts (dim 256, 4 layers), the bundled VAE and a random text encoder make one clip
per length, each in a process of its own, one thread for the networks. Lengths count in latent frames:
1 for the first frame, then 1 for every 4. One JSON line for all lengths; exponents are of a straight
line through logarithms:

- ``flops`` are counted while sampling. ``local`` are the exponents between neighbouring lengths,
  ``law`` is 1 + the share of self-attention at the geometric mean, which is what they must be;
- ``seconds``: processor time by stage; ``peak_mb``: resident memory above imports and mapped weights;
- ``wall``: by length, seconds of the whole over those of the longest stage; ``to_file``, seconds of
  decoding into the mp4 over those of decoding alone or encoding alone, whichever is longer;
- ``comfyui``: the same files, sizes and steps in a graph of core nodes: loaders, two samplers, decode,
  save video. Seconds are of its server's processor, peaks its resident memory above the idle server.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count  # noqa: E402

from benchmarks.block import weights  # noqa: E402
from benchmarks.graph import clock_graph  # noqa: E402
from benchmarks.lines import hardware, report, versions  # noqa: E402
from benchmarks.peak import PeakRSS  # noqa: E402
from wan.checkpoint import find_parts  # noqa: E402
from wan.config import TINY, TransformerConfig  # noqa: E402
from wan.pipeline import Pipeline, Request  # noqa: E402
from wan.shapes import latent_frames, latent_shape, token_grid  # noqa: E402
from wan.text import UMT5Encoder  # noqa: E402
from wan.video import Clip, VideoWriter  # noqa: E402

EXPERT = TransformerConfig(dim=256, ffn_dim=704, num_heads=2, num_layers=4)
TEXT = replace(TINY.text, dim=4096, attn_dim=64, num_heads=2, ffn_dim=64, num_layers=1)
"""Of the published width, which ComfyUI's own nodes expect."""
PROMPT = "a red circle moves left"
FPS = 16


def write_family(folder: Path) -> dict[str, str]:
    """The four files by the arguments of ``Pipeline.load``."""
    bundled = find_parts()
    paths = {part: folder / f"{part}_noise.safetensors" for part in ("high", "low")}
    for part, path in paths.items():
        state = weights(EXPERT, torch.float32)
        if part == "low":
            state = {name: value.flip(0) for name, value in state.items()}
        save_file({n: v.contiguous() for n, v in state.items()}, path)
    paths["text"], generator = folder / "text.safetensors", torch.Generator().manual_seed(3)
    state = {
        name: torch.randn(value.shape, generator=generator) / 16
        for name, value in UMT5Encoder(TEXT).state_dict().items()
    }
    state["spiece_model"] = load_file(bundled["text"])["spiece_model"]
    save_file(state, paths["text"])
    return {**{part: str(path) for part, path in paths.items()}, "vae": str(bundled["vae"])}


class Watch:
    """Wall and processor seconds by stage; of one that runs again, the smaller."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def __call__(self, name: str) -> Watch:
        """Name the stage that a ``with`` block is."""
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._start
        for kept, seconds in (
            (self.wall, time.perf_counter() - wall),
            (self.cpu, time.process_time() - cpu),
        ):
            kept[self._name] = min(seconds, kept.get(self._name, seconds))


def measure(parts: dict[str, str], frames: int, size: tuple[int, int], steps: int) -> object:
    """One length, in this process."""
    torch.set_num_threads(1)
    height, width = size
    pipeline = Pipeline.load(**parts, dtype=torch.float32, device="cpu")
    sampling = replace(
        pipeline.defaults, steps=steps, guidance_high=1.0, guidance_low=1.0,
        num_frames=frames, height=height, width=width,
    )  # fmt: skip
    request = Request(prompt=PROMPT, sampling=sampling)
    for _ in pipeline.generate(replace(request, sampling=replace(sampling, num_frames=5, steps=2))):
        pass  # kernels, tables and pages are ready from here on
    watch, peaks = Watch(), []
    with PeakRSS() as peak, watch("sample"):
        latents = pipeline.sample(request)
    peaks.append(peak)
    with tempfile.TemporaryDirectory() as folder:

        def writer(name: str) -> VideoWriter:
            return VideoWriter(Path(folder, name), Clip(width=width, height=height, fps=FPS))

        for turn in range(2):
            with PeakRSS() as peak, watch("to_file"), writer(f"{turn}.mp4") as out:
                for part in pipeline.decode(latents):
                    out.write(part)
            with watch("decode"):
                seen = list(pipeline.decode(latents))
            with watch("encode"), writer(f"{turn} again.mp4") as out:
                for part in seen:
                    out.write(part)
            del seen
            peaks.append(peak)
    with count() as counter:
        pipeline.sample(request)
    with count() as text:
        pipeline.encode(request)
    tokens = token_grid(*latent_shape(frames, height, width, channels=16)[1:]).tokens
    return {
        "latents": latent_frames(frames),
        "flops": counter.get_total_flops() - text.get_total_flops(),
        "self_attention": 4 * tokens**2 * EXPERT.dim * EXPERT.num_layers * steps,
        "wall": watch.wall,
        "cpu": watch.cpu,
        "peak_mb": max(peak.mb for peak in peaks),
    }


def count() -> FlopCounterMode:
    """PyTorch's counter, which does not know the attention it has for a CPU."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def formula(
        query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
    ) -> int:
        return sdpa_flop_count(query, key, value)

    return FlopCounterMode(display=False, custom_mapping={attention: formula})


def slope(lengths: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of ``values`` in ``lengths``: least squares on logarithms."""
    xs, ys = ([math.log(v) for v in given] for given in (lengths, values))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((a - x) ** 2 for a in xs)
    return round(sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / over, 3)


def law(found: Sequence[dict[str, float]]) -> tuple[list[float], list[float]]:
    """Exponents of counted operations between neighbours, and 1 + the share of self-attention there."""
    local, wanted = [], []
    for one, other in pairwise(found):
        lengths = one["latents"], other["latents"]
        local.append(slope(lengths, (one["flops"], other["flops"])))
        shares = [case["self_attention"] / case["flops"] for case in (one, other)]
        # Odds of the quadratic part grow as the length, so at the geometric mean they are the mean too.
        odds = math.sqrt(math.prod(share / (1 - share) for share in shares))
        wanted.append(round(1 + odds / (1 + odds), 3))
    return local, wanted


def summary(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, object]:
    """What the lengths tell together."""
    lengths = [case["latents"] for case in found]
    local, wanted = law(found)
    stages = ("sample", "to_file")
    cpu = [sum(case["cpu"][stage] for stage in stages) for case in found]
    wall = [sum(case["wall"][stage] for stage in stages) for case in found]
    longest = [max(c["wall"][s] for s in ("sample", "decode", "encode")) for c in found]
    file = [c["wall"]["to_file"] / max(c["wall"]["decode"], c["wall"]["encode"]) for c in found]
    return {
        "latents": lengths,
        "flops": [case["flops"] for case in found],
        "attention_share": [round(c["self_attention"] / c["flops"], 3) for c in found],
        "local": local,
        "law": wanted,
        "seconds": {s: [round(c["cpu"][s], 2) for c in found] for s in found[0]["cpu"]},
        "peak_mb": [case["peak_mb"] for case in found],
        "exponents": {
            "flops": slope(lengths, [case["flops"] for case in found]),
            "seconds": slope(lengths, cpu),
            **{s: slope(lengths, [c["cpu"][s] for c in found]) for s in ("sample", "decode")},
            "peak": slope(lengths, [case["peak_mb"] for case in found]),
        },
        "wall": [round(a / b, 3) for a, b in zip(wall, longest, strict=True)],
        "to_file": [round(ratio, 3) for ratio in file],
    }


def main() -> None:
    """Every length in a process of its own; print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 33, 65, 129, 257])
    parser.add_argument("--size", type=int, nargs=2, default=[96, 96], help="height, width")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        parts, frames = json.loads(given.one)
        print(json.dumps(measure(parts, frames, tuple(given.size), given.steps)))
        return
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        parts = write_family(Path(place))
        found = []
        for frames in given.frames:
            command = [sys.executable, __file__, "--one", json.dumps([parts, frames])]
            command += ["--size", *map(str, given.size), "--steps", str(given.steps)]
            done = subprocess.run(
                command, env=alone, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        line = {"case": "growth", "frames": given.frames, "size": given.size, "steps": given.steps}
        line |= {"dim": EXPERT.dim, "layers": EXPERT.num_layers, **summary(found)}
        if given.comfyui is not None:
            theirs = clock_graph(given.comfyui, parts, given.frames, tuple(given.size), given.steps)
            lengths = [latent_frames(frames) for frames in given.frames]
            exponents = {name: slope(lengths, values) for name, values in theirs.items()}
            line["comfyui_graph"] = {**theirs, "exponents": exponents}
    report({**line, "threads": 1, **versions(given.comfyui), **hardware()}, given.out)


if __name__ == "__main__":
    main()
