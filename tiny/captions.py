"""Scenes and the sentences that describe them, in English and Chinese.

A scene is four attributes. One scene in six is held out: no training caption or clip ever shows it,
while every pair of attribute values still occurs in training.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import astuple, dataclass

BACKGROUNDS = ("white", "black", "gray", "pink")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("left", "right", "up", "down")
ATTRIBUTES = {
    "background": BACKGROUNDS,
    "colour": COLOURS,
    "shape": SHAPES,
    "direction": DIRECTIONS,
}
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a clip shows: one shape of one colour crossing a plain background."""

    background: str
    colour: str
    shape: str
    direction: str

    def indices(self) -> tuple[int, int, int, int]:
        """Position of each value in :data:`ATTRIBUTES`, in that order."""
        pairs = zip(ATTRIBUTES.values(), astuple(self), strict=True)
        background, colour, shape, direction = (names.index(value) for names, value in pairs)
        return background, colour, shape, direction


def held_out(scene: Scene) -> bool:
    """True for the scenes that training never sees (48 of 288, every value equally often)."""
    background, colour, shape, direction = scene.indices()
    return (background + colour + 2 * shape + direction) % len(COLOURS) == 3


SCENES = tuple(
    Scene(background=background, colour=colour, shape=shape, direction=direction)
    for background, colour, shape, direction in itertools.product(*ATTRIBUTES.values())
)
TRAINING_SCENES = tuple(scene for scene in SCENES if not held_out(scene))
HELD_OUT_SCENES = tuple(scene for scene in SCENES if held_out(scene))

_EN: dict[str, tuple[str, ...]] = {
    "white": ("white",),
    "black": ("black",),
    "gray": ("gray", "grey"),
    "pink": ("pink",),
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle",),
    "left": ("left", "to the left", "leftward", "from right to left"),
    "right": ("right", "to the right", "rightward", "from left to right"),
    "up": ("up", "upward", "upwards", "from bottom to top"),
    "down": ("down", "downward", "downwards", "from top to bottom"),
}
_ZH: dict[str, tuple[str, ...]] = {
    "white": ("白色",),
    "black": ("黑色",),
    "gray": ("灰色",),
    "pink": ("粉色", "粉红色"),
    "red": ("红色",),
    "green": ("绿色",),
    "blue": ("蓝色",),
    "yellow": ("黄色",),
    "purple": ("紫色",),
    "orange": ("橙色", "橘色"),
    "circle": ("圆形", "圆形", "圆", "圆球"),
    "square": ("正方形", "正方形", "方形", "方块"),
    "triangle": ("三角形",),
    "left": ("向左", "往左", "从右向左", "从右往左"),
    "right": ("向右", "往右", "从左向右", "从左往右"),
    "up": ("向上", "往上", "从下向上", "从下往上"),
    "down": ("向下", "往下", "从上向下", "从上往下"),
}
_WORDS = {"en": _EN, "zh": _ZH}

_EN_VERBS = ("moves", "moves", "moving", "slides", "drifts", "glides", "travels", "is moving")
_ZH_VERBS = ("移动", "移动", "运动", "滑动", "平移")
_TEMPLATES = {
    "en": (
        "{a} {colour} {shape} {verb} {direction} on a {background} background",
        "{a} {colour} {shape} {verb} {direction} on a {background} background",
        "{a} {colour} {shape} {verb} {direction} against a {background} background",
        "{a} {colour} {shape} {verb} {direction} over a {background} background",
        "{a} {colour} {shape} {verb} {direction}, {background} background",
        "on a {background} background, {a} {colour} {shape} {verb} {direction}",
        "on a {background} background {a} {colour} {shape} {verb} {direction}",
        "{background} background, {a} {colour} {shape} {verb} {direction}",
    ),
    "zh": (
        "一个{colour}{shape}在{background}背景上{direction}{verb}",
        "一个{colour}{shape}在{background}背景上{direction}{verb}",
        "一个{colour}的{shape}在{background}背景上{direction}{verb}",
        "{colour}{shape}在{background}背景上{direction}{verb}",
        "{background}背景上，一个{colour}{shape}{direction}{verb}",
        "{background}背景上一个{colour}的{shape}{direction}{verb}",
        "在{background}的背景上，一个{colour}的{shape}{direction}{verb}",
        "一个{colour}的{shape}{direction}{verb}，{background}背景",
    ),
}


def describe(scene: Scene, language: str) -> str:
    """The plainest sentence for ``scene``; ``language`` is ``"en"`` or ``"zh"``."""
    words = {name: _WORDS[language][value][0] for name, value in _named(scene).items()}
    article = _article(words["colour"])
    verb = {"en": _EN_VERBS, "zh": _ZH_VERBS}[language][0]
    return _TEMPLATES[language][0].format(a=article, verb=verb, **words)


def caption(scene: Scene, language: str, rng: random.Random) -> str:
    """A random sentence for ``scene``: synonyms, word order, letter case and full stops vary."""
    words = {name: rng.choice(_WORDS[language][value]) for name, value in _named(scene).items()}
    verb = rng.choice({"en": _EN_VERBS, "zh": _ZH_VERBS}[language])
    template = rng.choice(_TEMPLATES[language])
    text = template.format(a=_article(words["colour"], rng), verb=verb, **words)
    if language == "en" and rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += {"en": ".", "zh": "。"}[language]
    return text


def parse(text: str) -> Scene:
    """Read the scene back from a sentence in either language.

    Raises:
        ValueError: when an attribute is missing or named twice.
    """
    words = _ZH if any("\u4e00" <= letter <= "\u9fff" for letter in text) else _EN
    named = _mentions(text.lower(), words)
    found: dict[str, str] = {}
    for name, values in ATTRIBUTES.items():
        given = sorted(named & set(values))
        if len(given) != 1:
            raise ValueError(
                f"{text!r} names {' and '.join(given) or 'nothing'} as its {name}; "
                f"name exactly one of {', '.join(values)}"
            )
        found[name] = given[0]
    return Scene(**found)


def training_caption(rng: random.Random) -> tuple[Scene, str]:
    """A random training scene with a random sentence in a random language."""
    scene = rng.choice(TRAINING_SCENES)
    return scene, caption(scene, rng.choice(LANGUAGES), rng)


def unseen_prompts(count: int, *, seed: int = 0) -> list[tuple[Scene, str, str]]:
    """``count`` prompts of held-out scenes as (scene, language, text), languages in turn.

    The first 96 cover every held-out scene once in each language.
    """
    rng = random.Random(seed)
    prompts: list[tuple[Scene, str, str]] = []
    while len(prompts) < count:
        order = rng.sample(HELD_OUT_SCENES, len(HELD_OUT_SCENES))
        for turn in range(2):
            for index, scene in enumerate(order):
                language = LANGUAGES[(index + turn) % 2]
                prompts.append((scene, language, caption(scene, language, rng)))
    return prompts[:count]


def _named(scene: Scene) -> dict[str, str]:
    return dict(zip(ATTRIBUTES, astuple(scene), strict=True))


def _article(following: str, rng: random.Random | None = None) -> str:
    if rng is not None and rng.random() < 0.1:
        return "one"
    return "an" if following[0] in "aeiou" else "a"


def _mentions(text: str, words: dict[str, tuple[str, ...]]) -> set[str]:
    """Values named in ``text``; a word inside a longer one (red in pink's 粉红色) does not count."""
    spans: dict[tuple[int, int], str] = {}
    for value, synonyms in words.items():
        for word in synonyms:
            start = text.find(word)
            while start >= 0:
                spans[start, start + len(word)] = value
                start = text.find(word, start + 1)
    return {
        value
        for span, value in spans.items()
        if not any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in spans)
    }
