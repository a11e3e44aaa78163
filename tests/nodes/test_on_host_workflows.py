"""The shipped workflows fit the live nodes, and both formats describe one graph."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from wanexperts import comfy_server
from wanexperts.tiny.judge import judge, read_video
from wanexperts.wan.workflow import parse_workflow
from wanexperts.workflows.build import files
from wanexperts.workflows.miniature import PROMPTS, shrunk

pytestmark = pytest.mark.comfy
FOLDER = comfy_server.ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = {"fixed", "randomize", "increment", "decrement"}
ABSENT = object()
BYPASSED = 4


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
    """The UI graph as an API graph, by the rules of the frontend; bypassed nodes are left out."""
    links = {link[0]: link for link in ui["links"]}
    nodes = {node["id"]: node for node in ui["nodes"]}

    def source(link):
        _, origin, slot, *_, kind = links[link]
        node = nodes[origin]
        if node["mode"] != BYPASSED:
            return [str(origin), slot]
        through = [entry for entry in node["inputs"] if entry["type"] == kind]
        return source(through[slot]["link"])

    api = {}
    for node in ui["nodes"]:
        if node["type"] in NOTES or node["mode"] == BYPASSED:
            continue
        linked = {slot["name"]: slot["link"] for slot in node["inputs"]}
        values = iter(node["widgets_values"])
        inputs = {}
        for name, kind, options in specs(live[node["type"]]):
            if kind in WIDGETS:
                value = next(values, ABSENT)
                if value is not ABSENT:
                    inputs[name] = value
                    if options.get("control_after_generate"):
                        assert next(values) in AFTER_GENERATE
                else:  # a widget that keeps its default, or was appended later
                    assert name in live[node["type"]]["input_order"]["optional"]
            if linked.get(name) is not None:
                assert links[linked[name]][3] == node["id"]
                inputs[name] = source(linked[name])
        assert next(values, None) is None, f"{node['type']} has too many widget values"
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return api


def bare(api):
    """Classes and inputs alone."""
    return {i: {key: node[key] for key in ("class_type", "inputs")} for i, node in api.items()}


def test_the_files_are_what_their_description_says():
    for path, told in files().items():
        assert path.read_text(encoding="utf-8") == told, "run: python -m workflows.build"
    assert {path.stem for path in files() if path.parent == FOLDER} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_are_one_graph(host, name):
    ui, api = read(FOLDER / f"{name}.json"), read(FOLDER / "api" / f"{name}.json")
    assert as_api(ui, host.get("/object_info")) == bare(api)
    assert bare(parse_workflow(ui).api()) == bare(api)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_asks_for_all_that_is_required(host, name):
    live = host.get("/object_info")
    for node in read(FOLDER / "api" / f"{name}.json").values():
        order = live[node["class_type"]]["input_order"]
        assert set(order["required"]) <= set(node["inputs"])
        assert set(node["inputs"]) <= {*order["required"], *order.get("optional", [])}


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
        told = [out["type"] for out in node["outputs"]]
        info = live[node["type"]]
        assert told == info["output"]
        if node["type"].startswith("WanExperts"):
            assert [out["name"] for out in node["outputs"]] == info["output_name"]
        for slot in node["inputs"]:
            kinds = {key: kind for key, kind, _ in specs(info)}
            assert slot["type"] == kinds[slot["name"]]
            assert ("widget" in slot) == (slot["type"] in WIDGETS)
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


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wan_tiny_t2v"])
def test_real_model_lists_where_to_get_its_files(name):
    ui = read(FOLDER / f"{name}.json")
    known = {"diffusion_models", "text_encoders", "vae", "loras"}
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
    notes = [node["widgets_values"][0] for node in ui["nodes"] if node["type"] in NOTES]
    assert len(notes) == 2  # English, Chinese
    for note in notes:
        assert all(f"`{name}`" in note for name in told)


@pytest.mark.parametrize("name", NAMES)
def test_every_template_has_a_thumbnail(host, name):
    path = f"http://{host.url}/api/workflow_templates/{comfy_server.PACK}/{name}.jpg"
    with urllib.request.urlopen(path, timeout=30) as answer:
        data = answer.read()
    assert len(data) < 40_000
    width, height = Image.open(io.BytesIO(data)).size
    assert width == height >= 256


def test_the_blueprint_is_offered(host):
    if host.version.startswith("0.3.6"):  # 0.3.67 has them
        return
    offered = host.get("/global_subgraphs")
    (key,) = [key for key, told in offered.items() if told["name"] == "Wan text to video"]
    told = host.get(f"/global_subgraphs/{key}")
    assert told["info"]["node_pack"] == f"custom_nodes.{comfy_server.PACK}"
    data = json.loads(told["data"])
    assert data == read(comfy_server.ROOT / "subgraphs" / "Wan text to video.json")


def test_the_template_browser_lists_them(host):
    listed = host.get("/workflow_templates")
    assert sorted(listed[comfy_server.PACK]) == NAMES


def test_the_tiny_family_is_listed_out_of_the_box(host):
    live = host.get("/object_info")
    for node in read(FOLDER / "api" / "wan_tiny_t2v.json").values():
        for key, kind, _ in specs(live[node["class_type"]]):
            if kind == "COMBO" and str(node["inputs"].get(key)).endswith(".safetensors"):
                assert node["inputs"][key] in choices_of(live[node["class_type"]], key)


@pytest.mark.parametrize("name", NAMES)
def test_every_template_shows_what_its_prompt_says(host, name):
    """With the bundled family in place of the files that must be downloaded; English."""
    graph = shrunk(read(FOLDER / "api" / f"{name}.json"), PROMPTS[name])
    outputs = host.run(graph)
    (saved,) = [told["images"][0] for told in outputs.values() if told.get("images")]
    verdict = judge(read_video(host.path(saved)), PROMPTS[name])
    assert all(verdict.values()), verdict


def test_the_tiny_workflow_shows_what_a_chinese_prompt_says(host):
    prompt = "一个蓝色正方形在粉色背景上向上移动"
    graph = read(FOLDER / "api" / "wan_tiny_t2v.json")
    graph[comfy_server.node_of(graph, "WanExpertsTextEncode")]["inputs"]["positive"] = prompt
    outputs = host.run(graph)
    saved = outputs[comfy_server.node_of(graph, "WanExpertsDecodeToVideo")]["images"][0]
    verdict = judge(read_video(host.path(saved)), prompt)
    assert all(verdict.values()), verdict


def test_nodes_tell_what_they_found_and_did(host):
    graph = read(FOLDER / "api" / "wan_tiny_t2v.json")
    loader, sampler = (
        comfy_server.node_of(graph, kind) for kind in ("WanExpertsLoader", "WanExpertsSampler")
    )
    graph[loader]["inputs"]["allow_mismatch"] = True  # no other test's: a cached node tells nothing
    graph[sampler]["inputs"]["steps"] = 2
    outputs = host.run(graph)
    (report,), (plan,) = outputs[loader]["text"], outputs[sampler]["text"]
    assert "wan_tiny_t2v_high_noise.safetensors" in report
    assert plan.startswith("2 steps, unipc grid, shift 5: ")
