"""Frame, latent and token arithmetic, and the sentences that refuse sizes."""

from __future__ import annotations

import pytest
from wanexperts.wan.shapes import (
    LatentShape,
    check_size,
    latent_frames,
    latent_frames_within,
    latent_shape,
    pixel_frames,
    pixel_size,
    token_grid,
)


@pytest.mark.parametrize(("pixels", "latents"), [(1, 1), (5, 2), (17, 5), (81, 21), (121, 31)])
def test_frames_there_and_back(pixels, latents):
    assert latent_frames(pixels) == latents
    assert pixel_frames(latents) == pixels


@pytest.mark.parametrize(
    ("pixels", "latents"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (80, 20), (81, 21)]
)
def test_longest_clip_within(pixels, latents):
    assert latent_frames_within(pixels) == latents
    assert pixel_frames(latents) <= pixels < pixel_frames(latents + 1)


def test_pixel_size_is_the_inverse_of_latent_shape():
    assert pixel_size(*latent_shape(1, 720, 1280, channels=16)[2:]) == (720, 1280)


@pytest.mark.parametrize(
    ("frames", "way"),
    [(80, "use 77 or 81"), (82, "use 81 or 85"), (2, "use 1 or 5"), (0, "1 or 5")],
)
def test_frames_not_4k_plus_1(frames, way):
    with pytest.raises(ValueError, match=rf"num_frames={frames} is not 4k\+1; .*{way}"):
        latent_frames(frames)


@pytest.mark.parametrize(
    ("height", "width", "sentence"),
    [
        (720, 1281, "width=1281 is not a positive multiple of 16; use 1280 or 1296"),
        (8, 64, "height=8 is not a positive multiple of 16; use 16 or more"),
        (-16, 64, "height=-16 is not a positive multiple of 16; use 16 or more"),
    ],
)
def test_sizes_not_multiples_of_16(height, width, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_size(height, width)


def test_published_token_counts():
    for height, width, frames, tokens in [
        (480, 832, 81, 32760),
        (720, 1280, 81, 75600),
        (720, 1280, 1, 3600),
        (64, 64, 17, 80),
    ]:
        shape = latent_shape(frames, height, width, channels=16)
        assert token_grid(*shape[1:]).tokens == tokens


def test_latent_shape_and_odd_latents():
    assert latent_shape(17, 64, 96, channels=16) == LatentShape(16, 5, 8, 12)
    with pytest.raises(ValueError, match="latent size 7x8 is not a multiple of the 2x2 patch"):
        token_grid(5, 7, 8)
