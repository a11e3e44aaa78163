"""The pixel judge: does a clip show the background, colour, shape and direction its prompt names?

It knows nothing of the models. The background is the median of the frame's border; the shape is what
differs from it; colours are read by the nearest palette entry, the direction from the centroid's way,
and the shape by overlap with each candidate drawn at the same centre and area.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from .captions import ATTRIBUTES, BACKGROUNDS, COLOURS, SHAPES, Scene, parse
from .clips import PALETTE, SIZE, coverage

MIN_AREA, MAX_AREA = 0.04, 0.5
"""Share of the frame a shape may cover; outside there is no shape to judge."""
MIN_TRAVEL = 6.0
"""Pixels the centroid must travel between the first and the last three frames."""
MIN_OVERLAP = 0.7
"""Least intersection over union with an ideal shape."""
BORDER = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What the judge saw; None where nothing could be recognised."""

    background: str | None
    colour: str | None
    shape: str | None
    direction: str | None

    def verdict(self, scene: Scene) -> dict[str, bool]:
        """Which attributes of ``scene`` were seen."""
        return {name: getattr(self, name) == getattr(scene, name) for name in ATTRIBUTES}


def read_video(path: Path) -> Tensor:
    """Decode every frame of a video file to (F, H, W, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames))


def look(frames: Tensor) -> Seen:
    """Read the four attributes from ``frames`` (F, H, W, 3) uint8 or float in [0, 255]."""
    pixels = frames.float()
    back = torch.cat([edge.reshape(-1, 3) for edge in _edges(pixels)]).median(dim=0).values
    distance = (pixels - back).square().sum(-1).sqrt()
    background = _nearest(back, BACKGROUNDS)
    inside = distance > 0.5 * distance.amax().clamp(min=60.0)
    share = inside.float().mean(dim=(1, 2))
    if share.min() < MIN_AREA or share.max() > MAX_AREA:
        return Seen(background=background, colour=None, shape=None, direction=None)
    front = pixels[inside].median(dim=0).values
    axis = front - back
    mask = ((pixels - back) @ axis / axis.square().sum()).clamp(0, 1)
    mask = torch.where(mask < 0.15, torch.zeros(()), mask)
    centres = _centroids(mask)
    return Seen(
        background=background,
        colour=_nearest(front, COLOURS),
        shape=_shape(mask, centres),
        direction=_direction(centres),
    )


def judge(frames: Tensor, prompt: str) -> dict[str, bool]:
    """Verdict per attribute for ``frames`` (F, H, W, 3) against an English or Chinese prompt."""
    return look(frames).verdict(parse(prompt))


def _edges(pixels: Tensor) -> tuple[Tensor, ...]:
    rows = pixels[:, :BORDER], pixels[:, -BORDER:]
    return (*rows, pixels[:, :, :BORDER], pixels[:, :, -BORDER:])


def _nearest(rgb: Tensor, names: tuple[str, ...]) -> str:
    return min(names, key=lambda name: float((rgb - torch.tensor(PALETTE[name])).norm()))


def _centroids(mask: Tensor) -> Tensor:
    """Mass centres (F, 2) as (x, y) in pixels."""
    total = mask.sum(dim=(1, 2))
    x = (mask.sum(dim=1) * torch.arange(mask.shape[2])).sum(dim=1) / total
    y = (mask.sum(dim=2) * torch.arange(mask.shape[1])).sum(dim=1) / total
    return torch.stack([x, y], dim=1)


def _direction(centres: Tensor) -> str | None:
    x, y = (centres[-3:].mean(dim=0) - centres[:3].mean(dim=0)).tolist()
    if max(abs(x), abs(y)) < MIN_TRAVEL:
        return None
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _shape(mask: Tensor, centres: Tensor) -> str | None:
    """The candidate whose ideal drawing of equal centre and area overlaps the mask most."""
    area = mask.sum(dim=(1, 2))
    overlap: dict[str, float] = {}
    for shape in SHAPES:
        middle = torch.full((1, 2), (SIZE - 1) / 2)
        unit = coverage(shape, middle, 15.0).sum() / 15.0**2
        ideal = coverage(shape, centres, (area / unit).sqrt(), mask.shape[-1])
        common = torch.minimum(mask, ideal).sum(dim=(1, 2))
        overlap[shape] = float((common / torch.maximum(mask, ideal).sum(dim=(1, 2))).mean())
    best = max(overlap, key=overlap.__getitem__)
    return best if overlap[best] >= MIN_OVERLAP else None


def main() -> int:
    """Score one video; exit status 1 when an attribute is wrong, 2 when it cannot be judged."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("--prompt", required=True, help="what the clip should show")
    arguments = parser.parse_args()
    try:
        wanted, seen = parse(arguments.prompt), look(read_video(arguments.video))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    verdict = seen.verdict(wanted)
    for name, right in verdict.items():
        shown = getattr(seen, name) or "nothing recognisable"
        print(f"{name:10} {getattr(wanted, name):9} {'ok' if right else f'WRONG: {shown}'}")
    return 0 if all(verdict.values()) else 1
