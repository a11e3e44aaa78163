"""Words in two languages: none missing, none left over, and the Chinese ones tell the same numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .faces import SEED_CONTROL

LOCALES = Path(__file__).parents[2] / "locales"
SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
SPECIAL = set("{}@|")
"""Signs with a meaning of their own in the frontend's messages."""
NUMBER = re.compile(r"(?<![A-Za-z0-9.])-?\d+(?:\.\d+)?(?![A-Za-z])")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def words(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def paths(tree, above=""):
    """``node.inputs.name.tooltip`` -> the text there."""
    found = {}
    for key, value in tree.items():
        place = f"{above}.{key}" if above else key
        found |= paths(value, place) if isinstance(value, dict) else {place: value}
    return found


def wanted():
    """Every place that needs words, from the frozen schema."""
    found = set()
    for node, face in SCHEMA.items():
        found |= {f"{node}.display_name", f"{node}.description"}
        for entry in face["inputs"]:
            found |= {f"{node}.inputs.{entry['name']}.{part}" for part in ("name", "tooltip")}
            if entry.get(SEED_CONTROL):
                found.add(f"{node}.inputs.{SEED_CONTROL}.name")
        for number, _ in enumerate(face["outputs"]):
            found |= {f"{node}.outputs.{number}.{part}" for part in ("name", "tooltip")}
    return found


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_words_are_missing_or_left_over(language):
    there = {place for place, text in paths(words(language)).items() if text.strip()}
    file = f"locales/{language}/nodeDefs.json"
    fix = "run tests/nodes/freeze.py" if language == "en" else "add them by hand"
    missing, left = sorted(wanted() - there), sorted(there - wanted())
    assert not missing, f"{file} lacks {', '.join(missing)}; {fix}"
    assert not left, f"{file} has {', '.join(left)} of which no node knows; remove them"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_sign_means_something_to_the_frontend(language):
    for place, text in paths(words(language)).items():
        assert not SPECIAL & set(text), f"{language}: {place} holds one of {' '.join(SPECIAL)}"


def test_chinese_words_tell_the_numbers_of_the_english_ones():
    """A limit, unit or default that changed in one language only."""
    chinese = paths(words("zh"))
    for place, text in paths(words("en")).items():
        lost = set(NUMBER.findall(text)) - set(NUMBER.findall(chinese[place]))
        assert not lost, f"locales/zh/nodeDefs.json: {place} does not tell {', '.join(lost)}"


def test_chinese_words_are_chinese():
    names = {"clip", "vae", "cfg", "crf", "sigmas", "latent", "latent_image"}
    for place, text in paths(words("zh")).items():
        if place.endswith(("tooltip", "description")):
            assert CHINESE.search(text), f"{place} is not Chinese: {text}"
        elif place.endswith("name") and not CHINESE.search(text):
            assert text.lower() in names or text == "Wan Sigmas" or "VAE" in text, (
                f"{place}: {text}"
            )


def test_categories_that_the_frontend_does_not_know_are_translated():
    told = json.loads((LOCALES / "zh" / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    core = {"loaders", "conditioning", "sampling"}
    used = {part for face in SCHEMA.values() for part in face["category"].split("/")}
    assert used - core == set(told)
