"""What bfloat16 changes in the VAE: decoding and encoding against float32, and diffusers' beside ours.

    python benchmarks/vae_bf16.py [--out results.jsonl]

The bundled tiny VAE runs on 12 drawn clips, a random one of the published sizes on random numbers.
One JSON line per VAE and library:

- ``decode_mean``, ``decode_max``: difference of the frames, in steps of 1/255; ``decode_bytes`` is the
  share of values that become another byte, ``decode_psnr`` in dB;
- ``encode``: root mean square of the difference of the latents over that of the latents;
- ``encode_seen``: mean difference of the frames, in steps, that are decoded in float32 from latents
  that were encoded in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from diffusers import AutoencoderKLWan  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.peak import hardware  # noqa: E402
from benchmarks.vae_stream import write_vae  # noqa: E402
from tiny.captions import SCENES  # noqa: E402
from tiny.clips import draw_motion, render  # noqa: E402
from wan.checkpoint import BUNDLED, find_parts, load_vae  # noqa: E402
from wan.keys.vae import diffusers_key  # noqa: E402
from wan.vae import WanVAE  # noqa: E402
from wan.video import to_uint8  # noqa: E402

STEPS = 255 / 2
CLIPS = 12


class Diffusers:
    """diffusers' VAE with our two methods."""

    def __init__(self, ours: WanVAE, dtype: torch.dtype) -> None:
        """The same weights."""
        with torch.device("meta"):
            self._vae = AutoencoderKLWan(base_dim=ours.config.dim).eval()
        state = {diffusers_key(k): v.to(dtype) for k, v in ours.state_dict().items()}
        self._vae.load_state_dict(state, assign=True)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames in [-1, 1]."""
        return self._vae.decode(latents, return_dict=False)[0]

    def encode(self, video: Tensor) -> Tensor:
        """Mean latents."""
        return self._vae.encode(video).latent_dist.mode()


@torch.no_grad()
def compare(full: Any, half: Any, videos: list[Tensor]) -> dict[str, float]:
    """Both directions, over all clips."""
    truth, rough, latents, short, seen = [], [], [], [], []
    for video in videos:
        z = full.encode(video)
        z_short = half.encode(video.bfloat16()).float()
        frames = full.decode(z)
        truth.append(frames.flatten())
        rough.append(half.decode(z.bfloat16()).float().flatten())
        latents.append(z.flatten())
        short.append(z_short.flatten())
        seen.append(full.decode(z_short).flatten())
    frames, difference = torch.cat(truth), torch.cat(rough) - torch.cat(truth)
    bytes_of = [to_uint8(t.expand(3, 1, 1, -1)) for t in (frames, torch.cat(rough))]
    wanted = torch.cat(latents)
    return {
        "decode_mean": round(difference.abs().mean().item() * STEPS, 3),
        "decode_max": round(difference.abs().max().item() * STEPS, 1),
        "decode_bytes": round((bytes_of[0] != bytes_of[1]).float().mean().item(), 3),
        "decode_psnr": round(-10 * (difference / 2).square().mean().log10().item(), 1),
        "encode": round(((torch.cat(short) - wanted).norm() / wanted.norm()).item(), 5),
        "encode_seen": round((torch.cat(seen) - frames).abs().mean().item() * STEPS, 3),
    }


def drawn() -> list[Tensor]:
    """Clips of the tiny family's world."""
    generator = torch.Generator().manual_seed(0)
    scenes = SCENES[:: len(SCENES) // CLIPS][:CLIPS]
    return [render(scene, draw_motion(generator))[None] for scene in scenes]


def main() -> None:
    """Print a line per VAE and library."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="lines are added to it")
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 17, 32, 48, generator=generator) * 2 - 1
    about = {"torch": torch.__version__, **hardware()}
    lines = []
    for name, videos in (("tiny", drawn()), ("random", [noise])):
        vae = load_vae(find_parts(BUNDLED)["vae"]) if name == "tiny" else _random()
        vae = vae.float()
        pairs = {
            "ours": (vae, deepcopy(vae).bfloat16()),
            "diffusers": (Diffusers(vae, torch.float32), Diffusers(vae, torch.bfloat16)),
        }
        for way, (full, half) in pairs.items():
            told = {"vae": name, "way": way, **compare(full, half, videos)}
            lines.append(json.dumps({"benchmark": "vae_bf16", **told, **about}))
            print(lines[-1], flush=True)
    if given.out:
        with given.out.open("a") as out:
            out.write("\n".join(lines) + "\n")


def _random() -> WanVAE:
    with tempfile.TemporaryDirectory() as place:
        write_vae(Path(place, "vae.safetensors"), torch.float32)
        vae: WanVAE = deepcopy(load_vae(Path(place, "vae.safetensors")))
    return vae


if __name__ == "__main__":
    main()
