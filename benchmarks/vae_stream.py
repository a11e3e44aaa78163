"""Decoding a clip frame by frame: seconds and memory beside diffusers, ComfyUI and bare convolutions.

    python benchmarks/vae_stream.py [--frames 17 33] [--latent 8 14] [--dtypes float32 bfloat16]
        [--comfyui FOLDER ...] [--out results.jsonl]

One random VAE of the published sizes (dim 96) is written once per dtype; each way decodes the same
latents with it, mapped, in a process of its own. Frames become uint8 as they come. One JSON line each:

- ``seconds``: per latent frame, time of the one thread that works (other work on the machine hardly
  counts), the whole decode over its number of latent frames;
- ``peak_mb``: peak of memory that no file backs, above what was there before the decode;
- ``in_use_mb``: the same in a second process whose allocator gives everything freed straight back,
  so that what it keeps for later is left out;
- ``convolutions``: for our way, seconds over those of its convolutions alone (same shapes and
  memory order, timed in the same process, each the best of three).

The way "ours, N strips" is the same decode in strips, and "ours, float32 weights" decodes in
bfloat16 with weights kept in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from benchmarks.load_pair import MB, Peak, _enter  # noqa: E402
from wan.checkpoint import load_vae, open_checkpoint  # noqa: E402
from wan.config import VAEConfig  # noqa: E402
from wan.files.write import Entry, write_safetensors  # noqa: E402
from wan.keys.vae import diffusers_key  # noqa: E402
from wan.shapes import latent_frames  # noqa: E402
from wan.vae import DecodePlan, WanVAE  # noqa: E402

Decode = Callable[[torch.Tensor], object]


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
    """What every way ends with."""
    return ((video.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def ours(file: Path, plan: DecodePlan) -> Decode:
    """This library's stream; weights stay mapped, in the dtype of the file."""
    vae = load_vae(file)

    def decode(latents: torch.Tensor) -> None:
        for frames in vae.decode_stream(latents, plan):
            pixels(frames)

    return decode


def diffusers(file: Path) -> Decode:
    """diffusers' ``AutoencoderKLWan``."""
    from diffusers import AutoencoderKLWan

    state = open_checkpoint(file, "vae").state_dict()
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    vae.load_state_dict({diffusers_key(k): v for k, v in state.items()}, assign=True)
    vae.eval()
    return lambda latents: pixels(vae.decode(latents, return_dict=False)[0])


def comfyui(file: Path, checkout: Path) -> Decode:
    """ComfyUI's own Wan VAE."""
    _enter(checkout)
    from comfy.ldm.wan.vae import WanVAE as Theirs

    with torch.device("meta"):
        vae = Theirs(dim=96, z_dim=16, temperal_downsample=[False, True, True])
    vae.load_state_dict(open_checkpoint(file, "vae").state_dict(), assign=True)
    vae.eval()
    return lambda latents: pixels(vae.decode(latents))


class Convolutions(TorchDispatchMode):
    """Counts the convolutions of a block of code by shape and memory order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, bias, *rest = args
            orders = (x.stride(1) == 1, weight.stride(1) == 1)
            self.seen[(*orders, x.shape, weight.shape, bias is None, repr(rest))] += 1
            self.rest = {**getattr(self, "rest", {}), repr(rest): rest}
        return func(*args, **(kwargs or {}))

    def seconds(self, dtype: torch.dtype) -> float:
        """Time of the same convolutions alone."""
        total = 0.0
        for (x_last, w_last, x_shape, w_shape, no_bias, rest), count in self.seen.items():
            x, weight = torch.randn(x_shape, dtype=dtype), torch.randn(w_shape, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last) if x_last else x
            weight = weight.contiguous(memory_format=torch.channels_last) if w_last else weight
            bias = None if no_bias else torch.zeros(w_shape[0], dtype=dtype)
            best = min(
                _processor(lambda: torch.ops.aten.convolution(x, weight, bias, *self.rest[rest]))  # noqa: B023
                for _ in range(3)
            )
            total += best * count
        return total


def _processor(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def build(way: str, file: Path, checkout: Path | None) -> Decode:
    """The decoder of one way."""
    if way == "diffusers":
        return diffusers(file)
    if way == "ComfyUI":
        assert checkout is not None
        return comfyui(file, checkout)
    strips = int(way.split()[1]) if "strips" in way else 1
    return ours(file, DecodePlan(strips=strips))


@torch.no_grad()
def measure(given: argparse.Namespace) -> dict[str, object]:
    """One way, one length, in this process."""
    way, file, dtype, frames = given.one
    checkout = given.comfyui[0] if given.comfyui else None
    decode = build(way, Path(file), checkout)
    torch.set_num_threads(1)
    count = latent_frames(int(frames))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, count, *given.latent, generator=generator)
    latents = latents.to(getattr(torch, dtype))
    with Peak() as peak:
        decode(latents[:, :, :2])  # kernels are chosen on first use
        seconds = _processor(lambda: decode(latents)) / count
    told: dict[str, object] = {
        "way": way, "dtype": dtype, "frames": int(frames),
        "seconds": round(seconds, 3), "peak_mb": round(peak.bytes / MB, 1),
    }  # fmt: skip
    if way == "ours" and not given.memory_only:
        with Convolutions() as convolutions:
            decode(latents)
        bare = convolutions.seconds(latents.dtype) / count
        told["convolutions"] = round(seconds / bare, 3)
    return told


def main() -> None:
    """Write the VAEs, run each way in a process of its own, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="*", default=[17, 33])
    parser.add_argument("--latent", type=int, nargs=2, default=[8, 14])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="*", help="some of them")
    parser.add_argument("--comfyui", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given)))
        return
    about = {
        "latent": given.latent, "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        for dtype in given.dtypes:
            write_vae(Path(place, f"{dtype}.safetensors"), getattr(torch, dtype))
        for dtype in given.dtypes:
            for frames in given.frames:
                for way, checkout, weights in _ways(given, dtype):
                    file = Path(place, f"{weights}.safetensors")
                    told = _run(given, [way, str(file), dtype, str(frames)], checkout)
                    line = json.dumps({"benchmark": "vae_stream", **told, **about})
                    print(line, flush=True)
                    if given.out:
                        with given.out.open("a") as out:
                            out.write(line + "\n")


def _ways(given: argparse.Namespace, dtype: str) -> list[tuple[str, Path | None, str]]:
    """Name, ComfyUI folder and dtype of the weights of every way."""
    ways: list[tuple[str, Path | None, str]] = [
        ("ours", None, dtype),
        ("ours, 2 strips", None, dtype),
    ]
    if dtype == "bfloat16" and "float32" in given.dtypes:
        ways.append(("ours, float32 weights", None, "float32"))
    ways.append(("diffusers", None, dtype))
    ways += [("ComfyUI", checkout, dtype) for checkout in given.comfyui]
    return [way for way in ways if not given.ways or way[0] in given.ways]


def _run(given: argparse.Namespace, one: list[str], checkout: Path | None) -> dict[str, object]:
    told = _process(given, one, checkout, {})
    # Of glibc, in bytes: larger blocks are mapped and unmapped one by one.
    in_use = _process(given, one, checkout, {"MALLOC_MMAP_THRESHOLD_": "65536"})
    told["in_use_mb"] = in_use["peak_mb"]
    if checkout:
        told["comfyui"] = (checkout / "comfyui_version.py").read_text().split('"')[1]
    return told


def _process(
    given: argparse.Namespace, one: list[str], checkout: Path | None, malloc: dict[str, str]
) -> dict[str, object]:
    command = [sys.executable, __file__, "--latent", *map(str, given.latent), "--one", *one]
    command += ["--comfyui", str(checkout)] if checkout else []
    command += ["--memory-only"] if malloc else []
    # What lets ComfyUI start on a machine without a GPU, see tests/host_env; harmless elsewhere.
    helpers = (ROOT / "tests" / "host_env", ROOT / ".test" / "host-site") if checkout else ()
    environment = {**os.environ, **malloc, "PYTHONPATH": os.pathsep.join(map(str, helpers))}
    environment.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{one[0]} failed:\n{done.stderr[-2000:]}")
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main()
