"""A help page for every node in both languages, where the frontend looks for it, with pictures that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "web" / "docs"
SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
BYTES = 1_500_000


def page(node, language):
    path = DOCS / node / f"{language}.md"
    assert path.is_file(), f"{node} has no help page; write web/docs/{node}/{language}.md"
    return path.read_text(encoding="utf-8")


def names(language):
    path = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("node", SCHEMA)
def test_every_node_has_its_page(node, language):
    text = page(node, language)
    assert text.startswith(f"# {names(language)[node]['display_name']}\n")
    assert bool(CHINESE.search(text)) == (language == "zh")
    pictures = PICTURE.findall(text)
    assert pictures, f"{node}, {language}: no picture; put one into web/docs/pictures and show it"
    for told, picture in pictures:
        # The frontend puts the address of web/docs before it, whatever folder the page is in.
        assert (DOCS / picture).is_file(), f"{node}, {language}: {picture} is not below web/docs"
        assert told


@pytest.mark.parametrize(("language", "file"), [("en", "README.md"), ("zh", "README.zh.md")])
def test_every_node_is_in_the_table_of_the_readme(language, file):
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    told = {name for row in rows for name in re.split(", |、", row)}
    assert {names(language)[node]["display_name"] for node in SCHEMA} - told == set()


@pytest.mark.parametrize("node", SCHEMA)
def test_both_languages_show_the_same_pictures_and_values(node):
    english, chinese = page(node, "en"), page(node, "zh")
    assert [name for _, name in PICTURE.findall(english)] == [
        name for _, name in PICTURE.findall(chinese)
    ]
    choices = {
        str(choice) for entry in SCHEMA[node]["inputs"] for choice in entry.get("choices", ())
    }
    for choice in choices:
        quoted = f"`{choice}`"
        assert (quoted in english) == (quoted in chinese), f"{node}: {quoted} in one language only"


def test_no_page_or_picture_is_left_over():
    pages = {path.name for path in DOCS.iterdir() if path.is_dir() and path.name != "pictures"}
    assert pages == set(SCHEMA)
    shown = {
        name for node in SCHEMA for _, name in PICTURE.findall(page(node, "en") + page(node, "zh"))
    }
    there = {str(path.relative_to(DOCS).as_posix()) for path in (DOCS / "pictures").iterdir()}
    assert there == shown
    assert sum((DOCS / name).stat().st_size for name in there) < BYTES
