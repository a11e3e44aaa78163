"""Names, values, seeds and tables: what is asked for, and what is refused before anything is queued."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from wanexperts.wan.queue import (
    Catalog,
    Job,
    Wishes,
    make_jobs,
    parse_address,
    parse_seeds,
    parse_settings,
    read_batch,
    read_table,
)
from wanexperts.wan.workflow import parse_workflow

from .fake_comfy import INFO, graph

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "tests" / "nodes" / "schema.json").read_text(encoding="utf-8"))


def jobs(given: dict[str, Any] | None = None, **wishes: Any) -> list[Job]:
    workflow = parse_workflow(given or graph() | {"9": {"class_type": "Clip", "inputs": {}}})
    return make_jobs(workflow, Wishes(**wishes), Catalog(INFO | {"Clip": {}, "PrimitiveInt": {}}))


def inputs(job: Job, node: str) -> dict[str, Any]:
    return job.graph[node]["inputs"]


def test_names_find_their_inputs() -> None:
    told = {
        "prompt": "圆, a = b", "negative": "", "seed": "18446744073709551615", "cfg": "2", "Keep.prefix": "x",
        "3.steps": " 7 ", "Sampler.sampler_name": "heun", "loop": "yes",
    }  # fmt: skip
    told["3.loop"] = told.pop("loop")
    (job,) = jobs(settings=told)
    assert inputs(job, "1")["text"] == "圆, a = b"
    assert inputs(job, "2")["text"] == ""
    assert inputs(job, "3") == {
        "positive": ["1", 0], "negative": ["2", 0], "seed": 2**64 - 1, "steps": 7, "cfg": 2.0,
        "sampler_name": "heun", "loop": True,
    }  # fmt: skip
    assert inputs(job, "4") == {"samples": ["3", 0], "prefix": "x"}


def test_a_value_over_a_link_is_set_where_it_is_held() -> None:
    given = graph() | {"7": {"class_type": "PrimitiveInt", "inputs": {"value": 3}}}
    given["1"]["inputs"]["clip"] = given["2"]["inputs"]["clip"] = None
    given["3"]["inputs"]["seed"] = ["7", 0]
    for name in ("seed", "3.seed"):
        (job,) = jobs(given, settings={name: "8"})
        assert inputs(job, "3")["seed"] == ["7", 0]
        assert inputs(job, "7")["value"] == 8
    given["3"]["inputs"]["steps"] = ["1", 0]
    with pytest.raises(ValueError, match=r"steps of node 3 \(Run it\) is made by node 1 \(Good\)"):
        jobs(given, settings={"3.steps": "8"})


def test_every_seed_of_a_workflow_is_set() -> None:
    given = graph()
    given["5"] = deepcopy(given["3"])
    del given["1"]["inputs"]["clip"], given["2"]["inputs"]["clip"]
    made = jobs(given, seeds=[4])[0]
    assert (inputs(made, "3")["seed"], inputs(made, "5")["seed"]) == (4, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stps": "3"}, r"nothing in the workflow is called 'stps'; use one of prompt, negative, seed, .*steps"),
        ({"text": "a"}, r"'text' is several inputs; say which: 1.text, 2.text"),
        ({"3.nothing": "a"}, r"nothing in the workflow is called '3.nothing'"),
        ({"steps": "a few"}, r"steps of node 3 \(Run it\) is a whole number, not 'a few'"),
        ({"steps": "0"}, r"steps of node 3 \(Run it\) is 0, its limits are 1 to 100"),
        ({"cfg": "nan"}, r"cfg of node 3 .* is a number, not 'nan'"),
        ({"seed": "-1"}, r"seed of node 3 .* its limits are 0 to"),
        ({"3.loop": "maybe"}, r"loop of node 3 .* is true or false, not 'maybe'"),
        ({"sampler_name": "unipc"}, r"sampler_name of node 3 .* is one of euler, heun, not 'unipc'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as told:
        jobs(settings=settings)
    assert "\n" not in str(told.value)


def test_a_node_the_server_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="the server has no node Clop; install"):
        jobs(graph() | {"9": {"class_type": "Clop", "inputs": {}}})


def test_rows_and_seeds_multiply_in_order() -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "steps": "9"}]
    made = jobs(rows=rows, seeds=[1, 2], settings={"steps": "4"})
    told = [
        (inputs(job, "1")["text"], inputs(job, "3")["seed"], inputs(job, "3")["steps"])
        for job in made
    ]
    assert told == [("a", 1, 4), ("a", 2, 4), ("b", 1, 9), ("b", 2, 9)]
    assert [job.name.rpartition("-")[0] for job in made] == [
        "row1-seed1", "row1-seed2", "row2-seed1", "row2-seed2",
    ]  # fmt: skip
    assert len({job.prompt(0) for job in made}) == 4


def test_a_name_and_an_id_follow_from_the_graph_alone() -> None:
    first, again = jobs(seeds=[3])[0], jobs(settings={"seed": "3"})[0]
    assert (first.name, first.prompt(0)) == (again.name, again.prompt(0))
    assert first.prompt(1) != first.prompt(0)
    other = jobs(seeds=[3], settings={"steps": "9"})[0]
    assert other.name != first.name
    renamed = graph() | {"9": {"class_type": "Clip", "inputs": {}}}
    renamed["3"]["_meta"]["title"] = "Another title"
    assert jobs(renamed, seeds=[3])[0].digest == first.digest


def test_two_equal_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="row1 and row2 ask for the same clip"):
        jobs(rows=[{"prompt": "a"}, {"prompt": "a"}])
    with pytest.raises(ValueError, match="give them in one way"):
        jobs(rows=[{"seed": "1"}], seeds=[2])


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("1-4", [1, 2, 3, 4]), ("3, 1-2,2", [3, 1, 2])]
)
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "3-1", "1-", "1.5", str(2**64), "0-99999999"])
def test_bad_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds"):
        parse_seeds(text)


def test_settings_are_read() -> None:
    assert parse_settings(["a=b=c", "a=", " x =1"]) == {"a": "", "x": "1"}
    with pytest.raises(ValueError, match="is not NAME=VALUE"):
        parse_settings(["prompt"])


def test_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,seed\r\n"a, ""b""\nc",1\r\n\r\n圆,\r\n', encoding="utf-8")
    assert read_table(path) == [{"prompt": 'a, "b"\nc', "seed": "1"}, {"prompt": "圆"}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a table"), (b"prompt\n", "is not a table"), (b"a,a\n1,2\n", "is not a table"),
        (b"a,\n1,2\n", "is not a table"), (b"a\n1,2\n", "row 1 of .* has 2 cells under 1 names"),
        (b"a\n\xff\n", "UTF-8"), (b'a\n"x', "is not a CSV"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "told", "secure", "login"),
    [
        ("127.0.0.1:8188", "127.0.0.1:8188", False, None),
        ("http://h", "h:80", False, None),
        ("https://u:p%40@h/comfy/", "h:443/comfy", True, "Basic dTpwQA=="),
        ("[::1]:8188", "[::1]:8188", False, None),
    ],
)
def test_addresses_are_read(text: str, told: str, secure: bool, login: str | None) -> None:
    address = parse_address(text)
    assert (str(address), address.secure, address.authorization) == (told, secure, login)
    assert "dTpw" not in repr(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://h",
        "http://",
        "h:port",
        "http://h?x=1",
        "http://h/#a",
        "http://u:secret@h:x",
        "h/a b",
    ],
)
def test_bad_addresses_are_refused_without_their_login(text: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a server") as told:
        parse_address(text)
    assert "secret" not in str(told.value)


def test_a_header_cannot_be_smuggled() -> None:
    with pytest.raises(ValueError, match="no header may have"):
        parse_address("h", "Bearer a\r\nX: y")


def canvas(**sampler: Any) -> dict[str, Any]:
    """The graph as a UI file: values without names, a seed with what happens after it."""

    def node(key: int, kind: str, links: dict[str, int], values: list[Any]) -> dict[str, Any]:
        entries = [{"name": name, "type": "*", "link": link} for name, link in links.items()]
        return {
            "id": key,
            "type": kind,
            "mode": 0,
            "inputs": entries,
            "outputs": [],
            "widgets_values": values,
        }

    return {
        "version": 0.4,
        "nodes": [
            node(1, "Text", {}, ["a red circle"]),
            node(2, "Text", {}, ["blur"]),
            node(3, "Sampler", {"positive": 1, "negative": 2}, [5, "randomize", 3, 4.0, "euler"]),
            node(4, "Save", {"samples": 3}, ["clip"]),
        ],
        "links": [[1, 1, 0, 3, 0, "*"], [2, 2, 0, 3, 1, "*"], [3, 3, 0, 4, 0, "*"]],
    }


def test_a_canvas_is_read_by_the_servers_own_names_and_travels_with_the_prompt(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ui.json"
    path.write_text(json.dumps(canvas()), encoding="utf-8")
    wishes = Wishes(settings={"prompt": "new"}, seeds=[9])
    batch = read_batch(path, wishes, Catalog(INFO))
    (job,) = batch.jobs
    assert inputs(job, "3") == graph()["3"]["inputs"] | {"seed": 9}
    shown = batch.canvas(job)
    assert shown is not None
    assert [node["widgets_values"] for node in shown["nodes"]] == [
        ["new"], ["blur"], [9, "randomize", 3, 4.0, "euler"], ["clip"],
    ]  # fmt: skip


def test_a_required_widget_that_came_later_starts_at_its_default(tmp_path: Path) -> None:
    given = canvas()
    given["nodes"][3]["widgets_values"] = []
    path = tmp_path / "ui.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    batch = read_batch(path, Wishes(), Catalog(INFO))
    assert inputs(batch.jobs[0], "4") == {"prefix": "clip", "samples": ["3", 0]}
    changed = read_batch(path, Wishes(settings={"prefix": "x"}), Catalog(INFO))
    assert inputs(changed.jobs[0], "4")["prefix"] == "x"
    assert changed.canvas(changed.jobs[0]) is None, (
        "it could only show another value than the one that ran"
    )


def test_an_api_file_has_no_canvas(tmp_path: Path) -> None:
    path = tmp_path / "api.json"
    given = graph()
    del given["1"]["inputs"]["clip"], given["2"]["inputs"]["clip"]
    path.write_text(json.dumps(given), encoding="utf-8")
    batch = read_batch(path, Wishes(), Catalog(INFO))
    assert batch.canvas(batch.jobs[0]) is None
