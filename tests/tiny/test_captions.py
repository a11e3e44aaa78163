import random

import pytest
from wanexperts.tiny import captions

EXAMPLE = captions.Scene(background="white", colour="red", shape="circle", direction="left")


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_every_sentence_reads_back_as_its_scene(language):
    rng = random.Random(0)
    for scene in captions.SCENES:
        sentences = [captions.describe(scene, language)]
        sentences += [captions.caption(scene, language, rng) for _ in range(6)]
        assert {captions.parse(sentence) for sentence in sentences} == {scene}


def test_the_example_prompt_in_both_languages():
    english, chinese = (captions.describe(EXAMPLE, language) for language in captions.LANGUAGES)
    assert english == "a red circle moves left on a white background"
    assert chinese == "一个红色圆形在白色背景上向左移动"


def test_pink_in_chinese_contains_red_but_is_not_red():
    scene = captions.parse("一个绿色方块在粉红色背景上从左往右滑动")
    assert (scene.background, scene.colour, scene.direction) == ("pink", "green", "right")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a circle moves left on a white background", "names nothing as its colour"),
        ("a red green circle moves left on a white background", "names green and red"),
        ("", "names nothing as its background"),
    ],
)
def test_unclear_prompts_are_refused(text, rule):
    with pytest.raises(ValueError, match=rule):
        captions.parse(text)


def test_held_out_scenes_are_balanced_and_never_trained_on():
    held = set(captions.HELD_OUT_SCENES)
    assert len(held) == 48
    assert held.isdisjoint(captions.TRAINING_SCENES)
    for name, values in captions.ATTRIBUTES.items():
        counts = {value: sum(getattr(scene, name) == value for scene in held) for value in values}
        assert set(counts.values()) == {48 // len(values)}
    rng = random.Random(0)
    drawn = {captions.training_caption(rng)[0] for _ in range(5000)}
    assert drawn == set(captions.TRAINING_SCENES)


def test_training_still_shows_every_pair_of_values():
    names = list(captions.ATTRIBUTES)
    for first in names:
        for second in names[names.index(first) + 1 :]:
            seen = {(getattr(s, first), getattr(s, second)) for s in captions.TRAINING_SCENES}
            assert len(seen) == len(captions.ATTRIBUTES[first]) * len(captions.ATTRIBUTES[second])


def test_unseen_prompts_are_unseen_half_chinese_and_repeatable():
    prompts = captions.unseen_prompts(96)
    assert prompts == captions.unseen_prompts(100)[:96]
    assert all(captions.held_out(scene) for scene, _, _ in prompts)
    assert all(captions.parse(text) == scene for scene, _, text in prompts)
    assert sum(language == "zh" for _, language, _ in prompts) == 48
    assert {(scene, language) for scene, language, _ in prompts} == {
        (scene, language) for scene in captions.HELD_OUT_SCENES for language in ("en", "zh")
    }
