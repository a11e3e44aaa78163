from dataclasses import replace

import pytest
import torch
from wanexperts.tiny import captions, clips
from wanexperts.tiny.judge import judge, look, read_video
from wanexperts.wan.video import write_video


def frames_of(scene, seed=0):
    motion = clips.draw_motion(torch.Generator().manual_seed(seed))
    video = clips.render(scene, motion)
    return ((video + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


def test_ground_truth_is_right():
    for seed, scene in enumerate(captions.SCENES[::2]):
        assert all(look(frames_of(scene, seed)).verdict(scene).values()), scene


def test_exactly_the_wrong_attribute_is_found_wrong():
    for seed, scene in enumerate(captions.HELD_OUT_SCENES[::4]):
        frames = frames_of(scene, seed)
        for name, values in captions.ATTRIBUTES.items():
            other = next(value for value in values if value != getattr(scene, name))
            verdict = look(frames).verdict(replace(scene, **{name: other}))
            assert [n for n, right in verdict.items() if not right] == [name]


def test_a_written_file_is_judged_like_its_frames(tmp_path):
    for seed, scene in enumerate(captions.HELD_OUT_SCENES[::8]):
        path = tmp_path / f"{seed}.mp4"
        write_video(path, frames_of(scene, seed), 8)
        for language in captions.LANGUAGES:
            assert all(judge(read_video(path), captions.describe(scene, language)).values())


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_clip_shows_only_a_background(level):
    seen = look(torch.full((17, 64, 64, 3), level, dtype=torch.uint8))
    assert seen.background == {0: "black", 128: "gray", 255: "white"}[level]
    assert (seen.colour, seen.shape, seen.direction) == (None, None, None)


def test_a_still_clip_has_no_direction():
    frames = frames_of(captions.SCENES[0])
    assert look(frames[:1].expand(17, -1, -1, -1)).direction is None


def test_noise_has_no_shape():
    noise = torch.randint(0, 256, (17, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    assert look(noise).shape is None
