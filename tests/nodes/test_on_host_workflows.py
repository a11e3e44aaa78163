"""The shipped workflows fit the live nodes, and both formats describe one graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wanexperts import comfy_server
from wanexperts.tiny.judge import judge, read_video

pytestmark = pytest.mark.comfy
FOLDER = comfy_server.ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = {"fixed", "randomize", "increment", "decrement"}
ABSENT = object()


def read(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii(), f"{path.name} must be ASCII for hosts that open it in another encoding"
    return json.loads(text)


def specs(info):
    """(name, type, options) of a live node in order, required first."""
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = (*info["input"][group][name], {})[:2]
            yield name, "COMBO" if isinstance(kind, list) else kind, options


def choices_of(info, key):
    """What a list offers, in either spelling of the versions."""
    groups = info["input"]
    kind, options = (*groups["required"].get(key, groups.get("optional", {}).get(key)), {})[:2]
    return kind if isinstance(kind, list) else options["options"]


def as_api(ui, live):
    """The UI graph as an API graph, by the rules of the frontend."""
    links = {link[0]: link for link in ui["links"]}
    api = {}
    for node in ui["nodes"]:
        if node["type"] in NOTES:
            continue
        linked = {slot["name"]: slot["link"] for slot in node["inputs"]}
        values = iter(node["widgets_values"])
        inputs = {}
        for name, kind, options in specs(live[node["type"]]):
            if kind in WIDGETS:
                value = next(values, ABSENT)
                if value is ABSENT:  # a widget that was appended later starts at its default
                    assert name in live[node["type"]]["input_order"]["optional"]
                    continue
                inputs[name] = value
                if options.get("control_after_generate"):
                    assert next(values) in AFTER_GENERATE
            if linked.get(name) is not None:
                _, source, slot, target, _, _ = links[linked[name]]
                assert target == node["id"]
                inputs[name] = [str(source), slot]
        assert next(values, None) is None, f"{node['type']} has too many widget values"
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return api


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_are_one_graph(host, name):
    ui, api = read(FOLDER / f"{name}.json"), read(FOLDER / "api" / f"{name}.json")
    bare = {i: {k: n[k] for k in ("class_type", "inputs")} for i, n in api.items()}
    assert as_api(ui, host.get("/object_info")) == bare


@pytest.mark.parametrize("name", NAMES)
def test_ui_format_is_whole(host, name):
    ui = read(FOLDER / f"{name}.json")
    live = host.get("/object_info")
    assert ui["version"] == 0.4
    assert ui["last_node_id"] == max(node["id"] for node in ui["nodes"])
    assert ui["last_link_id"] == max(link[0] for link in ui["links"])
    nodes = {node["id"]: node for node in ui["nodes"]}
    for link, source, slot, target, port, kind in ui["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][port]["link"] == link
        assert live[nodes[source]["type"]]["output"][slot] == kind
    for node in ui["nodes"]:
        if node["type"] in NOTES:
            continue
        told = [(out["name"], out["type"]) for out in node["outputs"]]
        info = live[node["type"]]
        assert told == list(zip(info["output_name"], info["output"], strict=True))
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["cnr_id"] in ("wanexperts", "comfy-core")


@pytest.mark.parametrize("name", NAMES)
def test_values_are_within_the_live_limits(host, name):
    live = host.get("/object_info")
    for node in read(FOLDER / "api" / f"{name}.json").values():
        for key, kind, options in specs(live[node["class_type"]]):
            value = node["inputs"].get(key, [])
            if isinstance(value, list):  # a link, or a socket that may stay empty
                continue
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"]
            elif kind == "COMBO" and not str(value).endswith(".safetensors"):
                assert value in choices_of(live[node["class_type"]], key)


def test_real_model_lists_where_to_get_its_files(host):
    ui = read(FOLDER / "wan22_t2v_a14b.json")
    known = {"diffusion_models", "text_encoders", "vae"}
    told = []
    for node in ui["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["directory"] in known
            assert model["url"].startswith("https://huggingface.co/Comfy-Org/")
            assert model["url"].endswith(f"/{model['directory']}/{model['name']}")
            told.append(model["name"])
    wanted = [
        value
        for node in ui["nodes"]
        for value in node["widgets_values"]
        if str(value).endswith(".safetensors")
    ]
    assert sorted(told) == sorted(wanted)


def test_the_template_browser_lists_them(host):
    listed = host.get("/workflow_templates")
    assert sorted(listed[comfy_server.PACK]) == NAMES


def test_the_tiny_family_is_listed_out_of_the_box(host):
    live = host.get("/object_info")
    for node in read(FOLDER / "api" / "wan_tiny_t2v.json").values():
        for key, kind, _ in specs(live[node["class_type"]]):
            if kind == "COMBO" and str(node["inputs"][key]).endswith(".safetensors"):
                assert node["inputs"][key] in choices_of(live[node["class_type"]], key)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle moves left on a white background",
        "一个蓝色正方形在粉色背景上向上移动",
    ],
    ids=["en", "zh"],
)
def test_the_tiny_workflow_shows_what_the_prompt_says(host, prompt):
    graph = read(FOLDER / "api" / "wan_tiny_t2v.json")
    graph[comfy_server.node_of(graph, "WanExpertsTextEncode")]["inputs"]["positive"] = prompt
    outputs = host.run(graph)
    saved = outputs[comfy_server.node_of(graph, "WanExpertsDecodeToVideo")]["images"][0]
    verdict = judge(read_video(host.path(saved)), prompt)
    assert all(verdict.values()), verdict
