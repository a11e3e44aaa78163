"""Decoded video to frames, latents that cannot be decoded, contact sheets, PNG."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from wanexperts.tests.wan.clips import png_tags, smooth
from wanexperts.wan.video import (
    Sheet,
    check_latents,
    contact_sheet,
    read_png,
    save_png,
    to_frames,
    to_uint8,
    to_uint16,
)


def test_to_uint8_truncates_like_the_official_code() -> None:
    values = torch.tensor([-1.5, -1.0, -1 + 1.9 / 127.5, 0.0, 0.999, 1.0, 3.0])
    frames = to_uint8(values.expand(3, 1, 1, -1))
    assert frames.shape == (1, 1, 7, 3)
    assert frames[0, 0, :, 1].tolist() == [0, 0, 1, 127, 254, 255, 255]
    moved = to_uint8(torch.rand(3, 2, 4, 6, dtype=torch.bfloat16))
    assert moved.shape == (2, 4, 6, 3)


def test_to_uint16_is_the_same_rule_on_a_finer_scale() -> None:
    values = torch.tensor([-1.5, -1.0, -1 + 1.9 / 32767.5, 0.0, 1.0, 3.0])
    frames = to_uint16(values.expand(3, 1, 1, -1))
    assert frames.dtype == torch.uint16
    assert frames[0, 0, :, 2].tolist() == [0, 0, 1, 32767, 65535, 65535]
    video = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = ((video.double() + 1) / 2 * 65535).floor().permute(1, 2, 3, 0)
    # The scaling runs in float32, where a sum next to a whole number may round up to it.
    assert (to_uint16(video).double() - exact).abs().max() <= 1
    assert torch.equal(to_frames(video, 16).int(), to_uint16(video).int())
    assert torch.equal(to_frames(video, 8), to_uint8(video))


@pytest.mark.parametrize("bits", [8, 16])
def test_nan_never_becomes_a_black_frame(bits: int) -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        to_frames(torch.full((3, 1, 2, 2), float("nan")), bits)


def test_the_first_bad_latent_frame_is_named() -> None:
    latents = torch.zeros(1, 16, 5, 2, 3)
    check_latents(latents)
    latents[0, 7, 3, 1, 1] = float("inf")
    latents[0, 2, 4, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="latent frame 4 of 5 holds NaN or infinity"):
        check_latents(latents)


def test_no_latent_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="hold no frame; use at least one latent frame"):
        check_latents(torch.zeros(1, 16, 0, 2, 3))


def test_contact_sheet_reads_like_text(tmp_path: Path) -> None:
    frames = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 4, 3)
    sheet = contact_sheet(frames, 3)
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::4, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    path = tmp_path / "sheet.png"
    save_png(path, sheet)
    assert torch.equal(read_png(path), sheet)
    assert np.array_equal(np.asarray(Image.open(path)), sheet.numpy())
    assert png_tags(path) == {}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="0 frames in 3 columns"):
        contact_sheet(frames[:0], 3)
    with pytest.raises(ValueError, match="in 0 columns"):
        contact_sheet(frames, 0)
    with pytest.raises(ValueError, match="not a run of frames"):
        save_png(path, sheet.float())


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (5, (1, 5)), (9, (2, 6)), (77, (3, 6))])
def test_sheet_of_a_stream_is_spread_evenly(count: int, shape: tuple[int, int]) -> None:
    frames = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 4, 3)
    sheet = Sheet(count)
    for start in range(0, count, 4):
        sheet.add(frames[start : start + 4])
    image = sheet.image()
    assert image.shape == (shape[0] * 2, shape[1] * 4, 3)
    cells = image[::2, ::4, 0].flatten().tolist()[: min(count, 18)]
    assert (cells[0], cells[-1]) == (0, count - 1)
    steps = {after - before for before, after in pairwise(cells)}
    assert max(steps, default=1) - min(steps, default=1) <= 1
    assert len(set(cells)) == min(count, 18)


def test_sheet_of_16_bits_shows_the_same() -> None:
    frames = smooth(3)
    deep = (frames.int() * 256 + 77).to(torch.uint16)
    sheets = [Sheet(3), Sheet(3)]
    sheets[0].add(frames)
    sheets[1].add(deep)
    assert torch.equal(sheets[0].image(), sheets[1].image())
    with pytest.raises(ValueError, match="contact sheet of 0 frames"):
        Sheet(3).image()
