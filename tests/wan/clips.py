"""Clips to write, and files read back: by PyAV, box by box, and as ComfyUI's frontend reads them."""

from __future__ import annotations

import os
import resource
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from wanexperts.wan.video import Clip, FrameWriter, to_frames

WIDTH, HEIGHT, FPS = 64, 48, 16
CLIP = Clip(width=WIDTH, height=HEIGHT, fps=FPS)


def smooth_video(count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """A slowly moving colour gradient as a VAE gives it, (3, n, H, W) in [-1, 1]."""
    n, y, x = torch.meshgrid(
        torch.linspace(0, 1, count),
        torch.linspace(0, 1, height),
        torch.linspace(0, 1, width),
        indexing="ij",
    )
    return torch.stack([x, y, (x + n) / 2]) * 2 - 1


def smooth(count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """The same as frames (n, H, W, 3) uint8."""
    unit = (smooth_video(count, height, width) + 1) / 2
    return (unit * 255).byte().permute(1, 2, 3, 0).contiguous()


def write_then_raise(writer: FrameWriter, error: BaseException, count: int = 40) -> None:
    """A run that ends by ``error`` after ``count`` frames."""
    with writer:
        writer.write(to_frames(smooth_video(count), writer.bits))
        raise error


def read(path: Path, layout: str = "rgb24") -> Tensor:
    """Frames of a file, converted by PyAV."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format=layout) for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames))


def read_planes(path: Path) -> list[Tensor]:
    """Y, Cb and Cr of a file's frames as they are stored, each (n, rows, columns)."""
    frames: list[list[Tensor]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            deep = frame.format.components[0].bits > 8
            planes = [
                np.frombuffer(bytes(plane), np.uint16 if deep else np.uint8)
                .reshape(plane.height, -1)[:, : plane.width]
                .astype(np.int32)
                for plane in frame.planes
            ]
            frames.append([torch.from_numpy(plane) for plane in planes])
    return [torch.stack(planes) for planes in zip(*frames, strict=True)]


def exact_planes(video: Tensor, depth: int) -> list[Tensor]:
    """What 4:2:0 planes of ``depth`` bits should hold, by BT.709's definition in float64."""
    red, green, blue = ((video.double() + 1) / 2).unbind(0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    chroma = [(blue - luma) / 1.8556, (red - luma) / 1.5748]
    small = [torch.nn.functional.avg_pool2d(plane, 2) for plane in chroma]
    unit = 2 ** (depth - 8)
    return [(16 + 219 * luma) * unit, *((128 + 224 * plane) * unit for plane in small)]


def psnr(got: Tensor, wanted: Tensor, peak: int = 255) -> float:
    """Peak signal to noise ratio in dB."""
    error = (got.double() - wanted.double()).square().mean() / peak**2
    return float(-10 * error.log10())


def boxes(data: bytes) -> dict[str, bytes]:
    """The boxes of one level of an mp4, in order, with their contents."""
    found, at = {}, 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            size, start = struct.unpack_from(">Q", data, start)[0], start + 8
        found[name.decode("latin-1")] = data[start : at + size]
        at += size
    return found


def mp4_tags(path: Path, first_bytes: int = 64 * 2**20) -> dict[str, str]:
    """Tags where the frontend looks: ``moov/udta/meta``, by ``keys`` and ``ilst``, in the first 64 MiB."""
    meta = boxes(boxes(boxes(path.read_bytes()[:first_bytes])["moov"])["udta"])["meta"]
    inner = boxes(meta[4:])
    keys, at = [], 8
    for _ in range(struct.unpack_from(">I", inner["keys"], 4)[0]):
        size = struct.unpack_from(">I", inner["keys"], at)[0]
        keys.append(inner["keys"][at + 8 : at + size].decode())
        at += size
    tags, at = {}, 0
    while at < len(inner["ilst"]):
        size, index = struct.unpack_from(">II", inner["ilst"], at)
        data = boxes(inner["ilst"][at + 8 : at + size])["data"]
        tags[keys[index - 1]] = data[8:].decode()
        at += size
    return tags


def png_tags(path: Path) -> dict[str, str]:
    """Text of a PNG as the frontend reads it: all that follows the key and one zero byte."""
    data, tags, at = path.read_bytes(), {}, 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"tEXt", b"iTXt"):
            key, _, text = data[at + 8 : at + 8 + size].partition(b"\0")
            tags[key.decode("latin-1")] = text.decode()
        at += 12 + size
    return tags


@contextmanager
def unprivileged_folder() -> Iterator[Path]:
    """A folder this process may not write in, also when the tests run as root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        if root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(name, 0o755)


@contextmanager
def files_end_at(size: int, process: int = 0) -> Iterator[None]:
    """No file of a process (0: this one) can grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (soft, hard))
