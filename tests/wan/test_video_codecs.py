"""H.264 and H.265, 8 and 10 bits: what the file says of itself, and its numbers against BT.709's definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from wanexperts.tests.wan.clips import (
    CLIP,
    FPS,
    HEIGHT,
    WIDTH,
    boxes,
    exact_planes,
    psnr,
    read,
    read_planes,
    smooth,
    smooth_video,
)
from wanexperts.wan.config import EncodingConfig
from wanexperts.wan.video import (
    FORMATS,
    MP4_FORMATS,
    STILL_FORMATS,
    VideoWriter,
    open_writer,
    to_frames,
)
from wanexperts.wan.video.colour import PIXEL_FORMATS, ToPlanes

CODECS = ("libx264", "libx265")
DEPTHS = {"yuv420p": 8, "yuv420p10le": 10}


def write(path: Path, video: Tensor, **encoding: object) -> Path:
    with VideoWriter(path, CLIP, encoding=EncodingConfig(**encoding)) as writer:
        for start in range(0, video.shape[1], 4):
            writer.write(to_frames(video[:, start : start + 4], writer.bits))
    return path


@pytest.mark.parametrize("pixel_format", DEPTHS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_file_says_what_it_is(tmp_path: Path, capfd, codec: str, pixel_format: str) -> None:
    path = write(tmp_path / "clip.mp4", smooth_video(9), codec=codec, pixel_format=pixel_format)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.codec_tag) == {
            "libx264": ("h264", "avc1"), "libx265": ("hevc", "hvc1"),
        }[codec]  # fmt: skip
        assert context.pix_fmt == pixel_format
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range == 1
        assert (stream.frames, stream.average_rate) == (9, FPS)
        assert (context.width, context.height) == (WIDTH, HEIGHT)
    order = list(boxes(path.read_bytes()))
    assert order.index("moov") < order.index("mdat")
    # Browsers read the colours from this box of the container.
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in path.read_bytes()
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


@pytest.mark.parametrize("fps", [8, 16, 23.976, 60])
@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_has_its_time(tmp_path: Path, codec: str, fps: float) -> None:
    """Frame i is shown from i/fps on, the first is a key frame, and nothing is cut by an edit list."""
    path, clip = tmp_path / "clip.mp4", replace(CLIP, fps=fps)
    with VideoWriter(path, clip, encoding=EncodingConfig(codec=codec)) as writer:
        writer.write(smooth(40))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == clip.rate
        frames = list(container.decode(stream))
        assert [frame.pts * frame.time_base for frame in frames] == [
            number / clip.rate for number in range(40)
        ]
        assert frames[0].key_frame
        assert stream.start_time == 0
        assert stream.duration * stream.time_base == 40 / clip.rate


# Measured for luma and chroma: at crf 0 h264 53.6 and 57.5 dB, h265 53.3 and 56.4, 10 bits 66.7 and
# 64.7, 64.2 and 63.5; at crf 16: 51.4 and 51.3, 52.5 and 51.0, 10 bits 55.3 and 57.5, 58.8 and 56.5.
# How far an encoder looks ahead moves those of 10 bits at crf 16 by one to two.
BOUNDS = {(0, 8): 52, (0, 10): 62, (16, 8): 50, (16, 10): 54}


@pytest.mark.parametrize(("crf", "depth"), BOUNDS)
@pytest.mark.parametrize("codec", CODECS)
def test_numbers_are_those_of_the_tensor(tmp_path: Path, codec: str, crf: int, depth: int) -> None:
    video = smooth_video(33)
    pixel_format = next(name for name, bits in DEPTHS.items() if bits == depth)
    path = write(tmp_path / "a.mp4", video, codec=codec, crf=crf, pixel_format=pixel_format)
    for got, wanted in zip(read_planes(path), exact_planes(video, depth), strict=True):
        assert psnr(got, wanted, 2**depth - 1) > BOUNDS[crf, depth]


def test_ten_bits_hold_more_shades(tmp_path: Path) -> None:
    ramp = torch.linspace(-0.1, 0.1, WIDTH).expand(3, 2, HEIGHT, WIDTH)
    shades = {
        depth: read_planes(
            write(tmp_path / f"{depth}.mp4", ramp, codec="libx265", crf=0, pixel_format=name)
        )[0][0, HEIGHT // 2].unique().numel()
        for name, depth in DEPTHS.items()
    }  # fmt: skip
    assert shades[10] > 2 * shades[8] > 30


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_planes_are_rounded_once(pixel_format: str) -> None:
    """More than 8 bits within half a step of the definition, where FFmpeg is off by up to 3.8 steps."""
    layout = av.VideoFormat(pixel_format)
    depth = layout.components[0].bits
    convert = ToPlanes(layout)
    video = smooth_video(1)
    picture = convert(to_frames(video, convert.bits)[0].numpy())
    assert picture.format.name == pixel_format
    luma, *chroma = exact_planes(video, depth)
    dtype = torch.uint8 if depth == 8 else torch.uint16
    rows = torch.frombuffer(bytearray(picture.planes[0]), dtype=dtype).view(HEIGHT, -1)
    error = (rows[:, :WIDTH].double() - luma[0]).abs().max()
    # Truncating the frames to 8 bits first costs up to 0.86 more, to 16 bits up to 0.02.
    assert error < (1.4 if depth == 8 else 0.6)
    # Colours of every grid have the mean of the smallest.
    for plane, wanted in zip(picture.planes[1:], chroma, strict=True):
        stored = torch.frombuffer(bytearray(plane), dtype=dtype).view(plane.height, -1)
        mean = stored[:, : plane.width].double().mean()
        assert abs(mean - wanted.mean()) < 0.6
        assert (plane.height, plane.width) == (
            HEIGHT // (2 if "420" in pixel_format else 1), WIDTH // (1 if "444" in pixel_format else 2)
        )  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv444p", "yuv422p10le", "yuv444p10le"])
def test_other_pixel_formats_are_written(tmp_path: Path, codec: str, pixel_format: str) -> None:
    path = write(tmp_path / "clip.mp4", smooth_video(5), codec=codec, pixel_format=pixel_format)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == pixel_format
    assert len(read(path)) == 5


@pytest.mark.parametrize("format", MP4_FORMATS)
def test_named_formats_are_those_encodings(tmp_path: Path, format: str) -> None:
    writer = open_writer(tmp_path / "clip.mp4", CLIP, format=format, crf=23)
    assert isinstance(writer, VideoWriter)
    assert writer.encoding.crf == 23
    assert ("h265" in format) == (writer.encoding.codec == "libx265")
    assert ("10bit" in format) == (writer.bits == 16)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    known = ", ".join([*FORMATS, *STILL_FORMATS])
    with pytest.raises(ValueError, match=f"'avi' is not one of {known}; use one"):
        open_writer(tmp_path / "clip.avi", CLIP, format="avi")


def test_a_codec_this_pyav_lacks_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    find = av.Codec

    def without_h265(name: str, mode: str) -> av.Codec:
        return find("no such encoder" if name == "libx265" else name, mode)

    monkeypatch.setattr("wanexperts.wan.video.mp4.av.Codec", without_h265)
    with pytest.raises(ValueError, match="no encoder is called 'libx265' here; use 'libx264', or"):
        open_writer(tmp_path / "clip.mp4", CLIP, format="h265-mp4")
    open_writer(tmp_path / "clip.mp4", CLIP, format="h264-mp4")
