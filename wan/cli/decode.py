"""``decode``: saved latents to an mp4 or PNG files."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from .. import __version__
from ..checkpoint import (
    BUNDLED,
    build_decoder,
    check_keys,
    find_parts,
    open_checkpoint,
)
from ..config import T2V_A14B, EncodingConfig
from ..pipeline import decode_frames
from ..shapes import pixel_frames, pixel_size
from ..video import (
    FORMATS,
    MP4_FORMATS,
    SEQUENCE_FORMATS,
    STILL_FORMATS,
    Clip,
    check_latents,
    open_writer,
    read_audio,
)
from .bar import Bar
from .device import torch_device
from .latents import SavedLatents, read_latents
from .outputs import STILL_ENDING, check_outputs, check_still, write_clip

_MP4 = ".mp4"
_BY_ENDING: Mapping[str, Collection[str]] = {_MP4: MP4_FORMATS, STILL_ENDING: STILL_FORMATS}
"""Formats by the ending of a name; any other name is that of a folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Latents, their VAE and what to make of them."""
    parser.add_argument(
        "latents", type=Path,
        help="file of `generate --save-latents` or of ComfyUI's Save Latent",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=Path,
        help="the mp4, the folder of a PNG sequence, or the .png of one frame",
    )  # fmt: skip
    parser.add_argument(
        "--vae",
        type=Path,
        help="VAE of the model that made them, or taew2_1 for a draft; default: the bundled one for its own",
    )
    parser.add_argument(
        "--format",
        choices=[*FORMATS, *STILL_FORMATS],
        help="default: h264-mp4, for a name without ending png-sequence, for .png png",
    )
    parser.add_argument("--fps", type=float, help="frames per second; default: the run's, else 16")
    parser.add_argument(
        "--crf", type=int, default=EncodingConfig().crf,
        help="quality of an mp4: 0 best, 51 worst, default %(default)s",
    )  # fmt: skip
    parser.add_argument("--audio", type=Path, metavar="FILE", help="sound for the mp4")
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="frames as one image")
    parser.add_argument("--clip", type=int, help="which one of a batch, counted from 1")
    parser.add_argument(
        "--keep-partial", action="store_true",
        help="if the run is interrupted keep the finished part, named _partial",
    )  # fmt: skip
    parser.add_argument("--device", help="torch device; default: cuda if there is one")


def run(given: argparse.Namespace, bar: Bar) -> None:
    """One file; raises before a weight is read or a file is made if the input cannot work."""
    saved = read_latents(given.latents)
    latents = choose_clip(saved.latents, given.clip)
    device = torch_device(given.device)
    path = given.vae or bundled_vae(saved)
    check_vae(path, latents)
    format = check_format(given.out, given.format)
    total = pixel_frames(latents.shape[2])
    check_still(given.out, total)
    height, width = pixel_size(*latents.shape[-2:])
    fps = run_fps(saved) if given.fps is None else given.fps
    told = {"version": __version__, "vae": path.name, "format": format, "crf": given.crf}
    clip = Clip(
        width=width,
        height=height,
        fps=fps,
        metadata={**saved.metadata, "wan": {**saved.manifest, "decode": {**told, "fps": fps}}},
        audio=read_audio(given.audio) if given.audio else None,
    )
    writer = open_writer(
        given.out, clip, format=format, crf=given.crf, keep_partial=given.keep_partial
    )
    in_folder = format in SEQUENCE_FORMATS
    outputs = check_outputs(
        [None if in_folder else given.out, given.contact_sheet],
        folder=given.out if in_folder else None,
    )
    write_clip(
        decode_frames(path, latents, device, bits=writer.bits, kept=given.latents), writer,
        total=total, bar=bar, sheet=given.contact_sheet,
    )  # fmt: skip
    for output in outputs:
        print(output)


def choose_clip(latents: Tensor, number: int | None) -> Tensor:
    """The clip (1, C, T, h, w) counted from 1; raises ValueError unless it says which one it is."""
    count = len(latents)
    if number is None and count != 1:
        raise ValueError(f"the file holds {count} clips; choose one by --clip 1 to {count}")
    if number is not None and not 1 <= number <= count:
        raise ValueError(f"clip={number} is not within 1 to {count}; use one that is")
    chosen = (number or 1) - 1
    return latents[chosen : chosen + 1]


def bundled_vae(saved: SavedLatents) -> Path:
    """The VAE of the miniature family if that made the latents; ValueError for any others."""
    weights = saved.manifest.get("weights")
    name = weights.get("vae") if isinstance(weights, dict) else None
    found = find_parts(BUNDLED)["vae"] if name else None
    if found is None or found.name != name:
        made = f" (they were made with {name})" if name else ""
        raise ValueError(f"the latents do not say where their VAE is{made}; name it by --vae")
    return found


def check_vae(path: Path, latents: Tensor) -> None:
    """Raise ValueError or FloatingPointError unless this VAE can decode these latents."""
    checkpoint = open_checkpoint(path, "vae")
    decoder = build_decoder(checkpoint)
    check_keys(decoder.state_dict(), checkpoint)
    if latents.shape[1] != decoder.config.z_dim:
        raise ValueError(
            f"the latents have {latents.shape[1]} channels, {path.name} has {decoder.config.z_dim}; "
            "use the VAE of the model that made them"
        )
    check_latents(latents)


def check_format(out: Path, named: str | None) -> str:
    """The format that was named, or that a file name asks for; raises ValueError where they disagree."""
    ending = out.suffix.lower()
    fitting = _BY_ENDING.get(ending, SEQUENCE_FORMATS)
    if not named and ending not in ("", *_BY_ENDING):
        raise ValueError(
            f"{out.name} is neither an mp4 nor a folder name; end it in {_MP4}, or name a --format"
        )
    format = named or next(iter(fitting))
    if format not in fitting:
        endings = [ending for ending, formats in _BY_ENDING.items() if format in formats]
        way_out = f"end it in {endings[0]}" if endings else "use a folder name"
        raise ValueError(f"{out.name} is no name for format {format}; {way_out}")
    return format


def run_fps(saved: SavedLatents) -> float:
    """Frames per second of the run that made the latents, as far as they tell."""
    sampling = saved.manifest.get("sampling")
    told = sampling.get("fps") if isinstance(sampling, dict) else None
    if isinstance(told, (int, float)) and math.isfinite(told) and told > 0:
        return told
    return T2V_A14B.sampling.fps
