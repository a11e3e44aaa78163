"""Decode into a file: decoding alone, encoding alone, and both at once, by length of the clip.

    python benchmarks/decode_to_file.py [--frames 17 65 257] [--format h264-mp4] [--wait 20]
        [--out results.jsonl]

A random VAE of Wan2.1's shape decodes random latents, so the frames are noise, the hardest there is
to encode. With ``--wait`` a decoder that only waits so many milliseconds per frame stands for one on
a GPU, which leaves the processor to the encoder. Each length runs in a process of its own. One JSON
line per length:

- ``decode_s``: frames made and thrown away;
- ``encode_s``: the same frames, made before, into the file;
- ``both_s``: decoded straight into the file, from the first latent frame to the file under its name;
- ``ratio``: ``both_s`` over the longer of the two, 1 where one hides behind the other completely;
- ``cpu_share``: processor seconds of decoding and encoding alone, over what all cores have in
  ``decode_s`` or ``encode_s``, whichever is longer. Above 1 no program could reach a ratio of 1 here;
- ``peak_mb``: peak of resident memory while ``both`` runs, above imports, weights and latents.

Seconds are the best of ``--repeats``, taken in turns: other work on the machine only adds. The peak
is measured first, in the fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import interpolate  # noqa: E402

from benchmarks.peak import PeakRSS, hardware  # noqa: E402
from wan.config import T2V_A14B  # noqa: E402
from wan.shapes import TEMPORAL_STRIDE, latent_frames  # noqa: E402
from wan.vae import WanVAE  # noqa: E402
from wan.video import FORMATS, Clip, FrameWriter, open_writer, to_frames  # noqa: E402

FPS = 16
MOVES = 32


class Case:
    """One length, ready to run."""

    def __init__(self, given: argparse.Namespace, frames: int, folder: Path) -> None:
        """Random weights and latents of the same numbers every time."""
        self._given, self._folder, self._files = given, folder, 0
        self.frames = frames
        self._bits = self.writer().bits
        self._stream = self._waiting_stream() if given.wait else self._vae_stream()

    def writer(self) -> FrameWriter:
        """A writer of a new file."""
        self._files += 1
        clip = Clip(width=self._given.width, height=self._given.height, fps=FPS)
        ending = ".mp4" if self._given.format.endswith("mp4") else ""
        path = self._folder / f"{self._files}{ending}"
        return open_writer(path, clip, format=self._given.format)

    def _vae_stream(self) -> Callable[[int], Iterator[Tensor]]:
        """Frames of latent frames by a random VAE."""
        given, config = self._given, replace(T2V_A14B.vae, dim=self._given.dim)
        torch.manual_seed(0)
        dtype = getattr(torch, given.dtype)
        vae = WanVAE(config).to(given.device, dtype).eval().requires_grad_(False)
        shape = (1, config.z_dim, latent_frames(self.frames), given.height // 8, given.width // 8)
        latents = torch.randn(shape).to(given.device, dtype)

        @torch.no_grad()
        def stream(frames: int) -> Iterator[Tensor]:
            for video in vae.decode_stream(latents[:, :, : latent_frames(frames)]):
                yield to_frames(video[0], self._bits).cpu()

        return stream

    def _waiting_stream(self) -> Callable[[int], Iterator[Tensor]]:
        """The same from no decoder: a picture that moves under fine noise, made before."""
        height, width = self._given.height, self._given.width
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator) * 1.6 - 0.8
        still = interpolate(coarse, size=(height, width), mode="bicubic")[0]
        noise = torch.randn(3, height, width, generator=generator) * 0.02
        moved = [still.roll(at, 2) + noise.roll(-7 * at, 1) for at in range(MOVES)]
        ready = to_frames(torch.stack(moved, dim=1), self._bits)

        def stream(frames: int) -> Iterator[Tensor]:
            for index in range(latent_frames(frames)):
                count = TEMPORAL_STRIDE if index else 1
                time.sleep(self._given.wait / 1e3 * count)
                first = index * TEMPORAL_STRIDE % MOVES
                yield ready[first : first + count]

        return stream

    def decoded(self, frames: int | None = None) -> Iterator[Tensor]:
        """Frames as they come, of the whole clip or its beginning."""
        return self._stream(frames or self.frames)

    def decode(self, frames: int | None = None) -> None:
        """Decoding alone."""
        for _ in self.decoded(frames):
            pass

    def encode(self, chunks: list[Tensor]) -> None:
        """Encoding alone."""
        with self.writer() as writer:
            for frames in chunks:
                writer.write(frames)

    def both(self) -> None:
        """Straight into the file."""
        with self.writer() as writer:
            for frames in self.decoded():
                writer.write(frames)


def measure(given: argparse.Namespace, frames: int, folder: Path) -> dict[str, object]:
    """One length, in this process."""
    case = Case(given, frames, folder)
    with PeakRSS() as peak:
        case.both()
    told: dict[str, object] = {"frames": frames, "peak_mb": peak.mb}
    if not given.repeats:
        return told
    chunks = list(case.decoded())
    ways: dict[str, Callable[[], None]] = {
        "decode": case.decode, "encode": lambda: case.encode(chunks), "both": case.both,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    used: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - wall)
            used[name].append(time.process_time() - cpu)
    best = {name: min(values) for name, values in seconds.items()}
    longer = max(best["decode"], best["encode"])
    work = sum(min(used[name]) for name in ("decode", "encode"))
    cores = len(os.sched_getaffinity(0))
    return told | {
        **{f"{name}_s": round(value, 3) for name, value in best.items()},
        "ratio": round(best["both"] / longer, 3),
        "cpu_share": round(work / (longer * cores), 3),
    }


def main() -> None:
    """Each length in a process of its own; print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 33, 65, 129, 257])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--dim", type=int, default=T2V_A14B.vae.dim, help="96 is the real VAE's")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wait", type=float, default=0.0, metavar="MS", help="no VAE, but this")
    parser.add_argument("--format", default=FORMATS[0], choices=FORMATS)
    parser.add_argument("--repeats", type=int, default=3, help="0 for memory alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(given, given.one, Path(folder))))
        return
    about = {
        "width": given.width, "height": given.height, "dim": given.dim, "dtype": given.dtype,
        "device": given.device, "wait_ms": given.wait, "format": given.format, "torch": torch.__version__,
        "threads": torch.get_num_threads(), **hardware(),
    }  # fmt: skip
    lines = []
    for frames in given.frames:
        command = [sys.executable, __file__, "--one", str(frames), *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{frames} frames failed:\n{done.stderr[-2000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
        lines.append(json.dumps({"benchmark": "decode_to_file", **told, **about}))
        print(lines[-1], flush=True)
    if given.out:
        with given.out.open("a") as out:
            out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
