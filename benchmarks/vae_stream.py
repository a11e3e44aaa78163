"""The VAE frame by frame: seconds and memory beside diffusers, ComfyUI and bare convolutions.

    python benchmarks/vae_stream.py [--comfyui FOLDER ...] [--dtypes float32 bfloat16] [--latent 8 14]
        [--directions decode encode] [--frames 33 81] [--rounds 5] [--processes 9] [--at-once 2]
        [--ways ours diffusers] [--out results.jsonl]

One random VAE of the published sizes (dim 96) is written once per dtype and mapped by all ways, each
in a process of its own. Decoded frames become uint8 as they come. Memory is measured per length in
fresh processes, ``--processes`` of them: their median, and ``spread``, the smallest and the largest.
Then one process per way stays, and the ways take turns, so that other work on the machine meets all
alike. One JSON line per way:

- ``seconds``: per latent frame, time of the one thread that works (waiting for a processor does not
  count), of a clip of the first of ``--frames``; median of the rounds, and ``spread``, the smallest
  and the largest;
- ``over_ours``: seconds over ours, median of the ratios within one round;
- ``convolutions``: ours over its convolutions alone (same shapes and memory order, in turns too);
- ``peak_mb``: by length, peak resident memory above imports and weights, latents and finished frames
  included, with the system's allocator as it is;
- ``code_mb``: what of it are pages of the libraries' own files, touched by the first run;
- ``in_use_mb``: the same of one process with an allocator that gives everything freed straight back,
  so that what it keeps for later is left out; it varies by less than 1 %.

The way "ours, 2 strips" is the same decode in strips; "ours, float32 weights" decodes in bfloat16
with weights kept in float32, as the nodes do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.bare import Convolutions, processor  # noqa: E402
from benchmarks.load_pair import _enter  # noqa: E402
from benchmarks.peak import MB, PeakRSS, hardware, kept  # noqa: E402
from wan.checkpoint import load_vae, open_checkpoint  # noqa: E402
from wan.config import VAEConfig  # noqa: E402
from wan.files.write import Entry, write_safetensors  # noqa: E402
from wan.keys.vae import diffusers_key  # noqa: E402
from wan.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE, latent_frames  # noqa: E402
from wan.vae import DecodePlan, WanVAE  # noqa: E402

Run = Callable[[torch.Tensor], object]
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""For glibc, in bytes: larger blocks are mapped and unmapped one by one."""


@dataclass(frozen=True)
class Way:
    """One way of running the VAE: its name, a ComfyUI folder if it needs one, the dtype of the weights."""

    name: str
    weights: str
    checkout: Path | None = None

    @property
    def told(self) -> dict[str, object]:
        """How a line names it."""
        if self.checkout is None:
            return {"way": self.name}
        version = (self.checkout / "comfyui_version.py").read_text().split('"')[1]
        return {"way": self.name, "comfyui": version}


def write_vae(file: Path, dtype: torch.dtype) -> None:
    """A random VAE of the published sizes in which signals neither die nor explode."""
    generator = torch.Generator().manual_seed(0)

    def make(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        if key.endswith("gamma"):
            return torch.ones(shape)
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
        return torch.randn(shape, generator=generator) / fan_in**0.5

    entries = {
        key: Entry(
            shape=tuple(t.shape), dtype=dtype, make=lambda k=key, s=tuple(t.shape): make(k, s)
        )
        for key, t in WanVAE(VAEConfig(), device=torch.device("meta")).state_dict().items()
    }
    write_safetensors(file, entries, {})


def pixels(video: torch.Tensor) -> torch.Tensor:
    """What every decode ends with."""
    return ((video.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def ours(file: Path, plan: DecodePlan) -> tuple[dict[str, Run], Any]:
    """This library's streams; weights stay mapped, in the dtype of the file."""
    vae = load_vae(file)

    def decode(latents: torch.Tensor) -> None:
        for frames in vae.decode_stream(latents, plan):
            pixels(frames)

    return {"decode": decode, "encode": vae.encode}, vae


def diffusers(file: Path) -> tuple[dict[str, Run], Any]:
    """diffusers' ``AutoencoderKLWan``."""
    from diffusers import AutoencoderKLWan

    state = open_checkpoint(file, "vae").state_dict()
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    vae.load_state_dict({diffusers_key(k): v for k, v in state.items()}, assign=True)
    vae.eval()
    return {
        "decode": lambda latents: pixels(vae.decode(latents, return_dict=False)[0]),
        "encode": lambda video: vae.encode(video).latent_dist.mode(),
    }, vae


def comfyui(file: Path, checkout: Path) -> tuple[dict[str, Run], Any]:
    """ComfyUI's own Wan VAE."""
    _enter(checkout)
    from comfy.ldm.wan.vae import WanVAE as Theirs

    with torch.device("meta"):
        vae = Theirs(dim=96, z_dim=16, temperal_downsample=[False, True, True])
    vae.load_state_dict(open_checkpoint(file, "vae").state_dict(), assign=True)
    vae.eval()
    return {"decode": lambda latents: pixels(vae.decode(latents)), "encode": vae.encode}, vae


class Case:
    """One way, one direction, in this process."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Load the weights, make nothing else."""
        name, file, dtype, self._direction = given.one
        torch.set_num_threads(1)
        self._latent, self._dtype = given.latent, getattr(torch, dtype)
        if name == "diffusers":
            runs, vae = diffusers(Path(file))
        elif name == "ComfyUI":
            runs, vae = comfyui(Path(file), given.comfyui[0])
        else:
            runs, vae = ours(Path(file), DecodePlan(strips=2 if "strips" in name else 1))
        self.run = runs[self._direction]
        for parameter in vae.parameters():  # pages of the file are no part of the peak
            parameter.count_nonzero()

    def input(self, frames: int) -> torch.Tensor:
        """The same random numbers for every way."""
        generator, (height, width) = torch.Generator().manual_seed(1), self._latent
        if self._direction == "decode":
            shape = (1, 16, latent_frames(frames), height, width)
            return torch.randn(shape, generator=generator, dtype=self._dtype)
        shape = (1, 3, frames, SPATIAL_STRIDE * height, SPATIAL_STRIDE * width)
        return torch.rand(shape, generator=generator, dtype=self._dtype) * 2 - 1

    def peak(self, frames: int) -> float:
        """Peak MB of one run."""
        files = kept("status", "RssFile")
        with PeakRSS() as peak:
            self.run(self.input(frames))
        self._code = round((kept("status", "RssFile") - files) * 1024 / MB, 1)
        return peak.mb

    def code(self, _: int) -> float:
        """MB of it that are pages of the libraries' own files."""
        return self._code

    def seconds(self, frames: int) -> float:
        """Per latent frame."""
        given = self.input(frames)
        return processor(lambda: self.run(given)) / latent_frames(frames)

    def convolutions(self, frames: int) -> float:
        """The same of the convolutions alone."""
        with Convolutions() as convolutions:
            self.run(self.input(frames))
        return convolutions.seconds(self._dtype) / latent_frames(frames)


@torch.no_grad()
def serve(given: argparse.Namespace) -> None:
    """Answer lines of ``what frames`` with numbers; what libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case = Case(given)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        what, frames = line.split()
        answers.write(f"{getattr(case, what)(int(frames))}\n")
        answers.flush()


class Worker:
    """A process that serves one way."""

    def __init__(
        self, given: argparse.Namespace, way: Way, one: list[str], malloc: dict[str, str]
    ) -> None:
        """Start it and wait until its weights are there."""
        command = [sys.executable, __file__, "--latent", *map(str, given.latent)]
        command += ["--comfyui", str(way.checkout)] if way.checkout else []
        # What lets ComfyUI start on a machine without a GPU, see tests/host_env; harmless elsewhere.
        helpers = (ROOT / "tests" / "host_env", ROOT / ".test" / "host-site")
        path = os.pathsep.join(map(str, helpers if way.checkout else ()))
        alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, "--one", *one], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env={**os.environ, **alone, **malloc},
        )  # fmt: skip
        self._name = way.name
        self._answer()

    def ask(self, what: str, frames: int) -> float:
        """One number."""
        assert self._process.stdin
        self._process.stdin.write(f"{what} {frames}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            self._errors.seek(0)
            raise RuntimeError(f"{self._name} failed:\n{self._errors.read()[-2000:]}")
        return line

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


def compare(
    given: argparse.Namespace, ways: list[Way], place: Path, dtype: str, direction: str
) -> list[dict[str, object]]:
    """Lines of all ways, one direction and dtype."""

    def one(way: Way) -> list[str]:
        return [way.name, str(place / f"{way.weights}.safetensors"), dtype, direction]

    lines: list[dict[str, object]] = [dict(way.told) for way in ways]
    for line, way in zip(lines, ways, strict=True):
        found: dict[int, list[float]] = {}
        in_use: dict[int, float] = {}
        for frames in given.frames:
            allocators = [{}] * given.processes + [GIVE_BACK]
            *peaks, kept_least = _peaks(given, way, one(way), allocators, frames)
            found[frames], in_use[frames] = [peak for peak, _ in peaks], kept_least[0]
            line["code_mb"] = median(code for _, code in peaks)
        line["processes"] = given.processes
        line["peak_mb"] = {frames: median(peaks) for frames, peaks in found.items()}
        line["peak_spread"] = {frames: [min(peaks), max(peaks)] for frames, peaks in found.items()}
        line["in_use_mb"] = in_use
    if given.rounds:
        _take_turns(given, [Worker(given, way, one(way), {}) for way in ways], lines)
    return [{"direction": direction, "dtype": dtype, **line} for line in lines]


def _peaks(
    given: argparse.Namespace,
    way: Way,
    one: list[str],
    allocators: list[dict[str, str]],
    frames: int,
) -> list[tuple[float, float]]:
    """Of a fresh process for each of ``allocators``: its peak, and the part of it that is code."""

    def measured(malloc: dict[str, str]) -> tuple[float, float]:
        worker = Worker(given, way, one, malloc)
        peak, code = worker.ask("peak", frames), worker.ask("code", frames)
        worker.end()
        return peak, code

    with ThreadPoolExecutor(given.at_once) as pool:
        return list(pool.map(measured, allocators))


def _take_turns(
    given: argparse.Namespace, workers: list[Worker], lines: list[dict[str, object]]
) -> None:
    frames = given.frames[0]
    seconds: list[list[float]] = [[] for _ in workers]
    bare: list[float] = []
    for worker in workers:
        worker.ask("seconds", 1 + TEMPORAL_STRIDE)  # kernels are chosen on first use
    for turn in range(given.rounds):
        order = [*range(turn, len(workers)), *range(min(turn, len(workers)))]
        for index in order:
            seconds[index].append(workers[index].ask("seconds", frames))
        if lines[0]["way"] == "ours":
            bare.append(workers[0].ask("convolutions", frames))
    for worker in workers:
        worker.end()
    for line, mine in zip(lines, seconds, strict=True):
        ratios = [other / first for other, first in zip(mine, seconds[0], strict=True)]
        line["seconds"] = round(median(mine), 3)
        line["spread"] = [round(min(mine), 3), round(max(mine), 3)]
        line[f"over_{lines[0]['way']}"] = round(median(ratios), 3)
    if bare:
        lines[0]["convolutions"] = round(
            median(all_ / alone for all_, alone in zip(seconds[0], bare, strict=True)), 3
        )


def main() -> None:
    """Write the VAEs, measure every direction and dtype, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[33])
    parser.add_argument("--latent", type=int, nargs=2, default=[8, 14])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--directions", nargs="+", default=["decode"])
    parser.add_argument("--rounds", type=int, default=5, help="0 for memory alone")
    parser.add_argument("--processes", type=int, default=9, help="that each peak is measured in")
    parser.add_argument("--at-once", type=int, default=1, help="of them that run side by side")
    parser.add_argument("--ways", nargs="+", help="some of them")
    parser.add_argument("--comfyui", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, help="lines are added to it")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        serve(given)
        return
    about = {
        "latent": given.latent,
        "rounds": given.rounds,
        "torch": torch.__version__,
        **hardware(),
    }
    with tempfile.TemporaryDirectory() as place:
        for dtype in given.dtypes:
            write_vae(Path(place, f"{dtype}.safetensors"), getattr(torch, dtype))
        for dtype in given.dtypes:
            for direction in given.directions:
                ways = _ways(given, dtype, direction)
                for line in compare(given, ways, Path(place), dtype, direction):
                    text = json.dumps({"benchmark": "vae_stream", **line, **about})
                    print(text, flush=True)
                    if given.out:
                        with given.out.open("a") as out:
                            out.write(text + "\n")


def _ways(given: argparse.Namespace, dtype: str, direction: str) -> list[Way]:
    """Ours first."""
    ways = [Way("ours", dtype)]
    if direction == "decode":
        ways.append(Way("ours, 2 strips", dtype))
    if dtype == "bfloat16" and "float32" in given.dtypes:
        ways.append(Way("ours, float32 weights", "float32"))
    ways.append(Way("diffusers", dtype))
    ways += [Way("ComfyUI", dtype, checkout) for checkout in given.comfyui]
    return [way for way in ways if not given.ways or way.name in given.ways]


if __name__ == "__main__":
    main()
