"""A clip made by a graph of ComfyUI's core nodes: processor seconds and peak memory of its server."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peak import MB, kept  # noqa: E402
from comfy_server import Host  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
FORGET_PEAK = "5"
FOLDERS = {
    "high": "diffusion_models",
    "low": "diffusion_models",
    "text": "text_encoders",
    "vae": "vae",
}


def graph(
    names: Mapping[str, str], frames: int, size: tuple[int, int], steps: int
) -> dict[str, Any]:
    """Loaders, prompt, two samplers over one schedule, decode, save; only text is read by this pack."""
    height, width = size

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    told: dict[str, Any] = {
        "text": node("WanExpertsTextEncoderLoader", text_encoder=names["text"]),
        "yes": node("CLIPTextEncode", clip=["text", 0], text="a red circle moves left"),
        "no": node("CLIPTextEncode", clip=["text", 0], text=""),
        "empty": node("EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1),
        "vae": node("VAELoader", vae_name=names["vae"]),
    }  # fmt: skip
    before = "empty"
    for part, (start, end) in {"high": (0, steps // 2), "low": (steps // 2, steps)}.items():
        told[part] = node("UNETLoader", unet_name=names[part], weight_dtype="default")
        told[f"{part} shift"] = node("ModelSamplingSD3", model=[part, 0], shift=5.0)
        first = part == "high"
        told[f"{part} steps"] = node(
            "KSamplerAdvanced", model=[f"{part} shift", 0], add_noise="enable" if first else "disable",
            noise_seed=frames, steps=steps, cfg=1.0, sampler_name="uni_pc", scheduler="simple",
            positive=["yes", 0], negative=["no", 0], latent_image=[before, 0], start_at_step=start,
            end_at_step=end, return_with_leftover_noise="enable" if first else "disable",
        )  # fmt: skip
        before = f"{part} steps"
    told["frames"] = node("VAEDecode", samples=[before, 0], vae=["vae", 0])
    told["clip"] = node("CreateVideo", images=["frames", 0], fps=16.0)
    told["save"] = node(
        "SaveVideo", video=["clip", 0], filename_prefix="growth", format="mp4", codec="h264"
    )
    return told


def clock_graph(
    checkout: Path,
    parts: Mapping[str, str],
    frames: Sequence[int],
    size: tuple[int, int],
    steps: int,
) -> dict[str, list[float]]:
    """By length: ``seconds`` of the server's processor time, and ``peak_mb`` above idle.

    One server makes all clips, a small one first, so that models are loaded and kernels chosen. On a
    CPU it would take an attention of its own; it gets PyTorch's, as everybody here.
    """
    told: dict[str, list[float]] = {"seconds": [], "peak_mb": []}
    os.environ["OMP_NUM_THREADS"] = "1"
    with Host(checkout, options=("--cpu", "--use-pytorch-cross-attention")) as host:
        for part, path in parts.items():
            folder = host.base / "models" / FOLDERS[part]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{part}.safetensors").symlink_to(path)
        names = {part: f"{part}.safetensors" for part in parts}
        assert host._process is not None
        process = host._process.pid
        host.run(graph(names, 5, size, steps))
        idle = kept("status", "VmRSS", process)
        for count in frames:
            Path(f"/proc/{process}/clear_refs").write_text(FORGET_PEAK)
            start = ticks(process)
            host.run(graph(names, count, size, steps))
            told["seconds"].append(round((ticks(process) - start) / TICKS, 2))
            top = kept("status", "VmHWM", process)
            told["peak_mb"].append(round((top - idle) * 1024 / MB, 1))
    return told


def ticks(process: int) -> int:
    """Clock ticks of processor time that a process has used, with all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
