"""Workflows as ComfyUI's canvas saves them, against what its queue would get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wanexperts.wan import workflow as W
from wanexperts.wan.guidance import parse_guidance
from wanexperts.wan.switch import Switch

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "workflows").glob("*.json"))
SCHEMA = json.loads((ROOT / "tests" / "nodes" / "schema.json").read_text(encoding="utf-8"))
TYPED = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_canvas_says_what_the_queue_gets(path: Path) -> None:
    canvas = W.read_workflow(path)
    queue = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    got = canvas.api()
    assert {key: node["class_type"] for key, node in got.items()} == {
        key: node["class_type"] for key, node in queue.items()
    }
    assert {key: node["inputs"] for key, node in got.items()} == {
        key: node["inputs"] for key, node in queue.items()
    }


@pytest.mark.parametrize("name", SCHEMA)
def test_widgets_are_named_in_the_order_of_the_canvas(name: str) -> None:
    wanted = []
    for entry in SCHEMA[name]["inputs"]:
        if entry["type"] in TYPED:
            wanted.append(entry["name"])
            wanted += [""] if entry.get("control_after_generate") else []
    assert list(W.WIDGETS.get(name, ())) == wanted, "say so in wan/workflow/widgets.py"


def canvas(*nodes: dict[str, Any], links: list[list[Any]]) -> dict[str, Any]:
    return {"version": 0.4, "nodes": list(nodes), "links": links}


def node(key: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"id": key, "type": kind, "mode": 0, "inputs": [], "outputs": [], **more}


def takes(name: str, link: int | None, kind: str = "MODEL") -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link}


LOADER = node(1, "UNETLoader", widgets_values=["high.safetensors", "default"])
FIRST = [1, 1, 0, 2, 0, "MODEL"]
SECOND = [2, 2, 0, 3, 0, "MODEL"]
USER = node(3, "ModelSamplingSD3", inputs=[takes("model", 2)], widgets_values=[8.0])
OUT = [{"name": "out", "type": "MODEL", "links": [2]}]


def user_of(middle: dict[str, Any]) -> dict[str, Any]:
    data = canvas(LOADER, middle, USER, links=[FIRST, SECOND])
    return W.parse_workflow(data).api()["3"]["inputs"]


def test_links_go_through_reroutes() -> None:
    reroute = node(2, "Reroute", inputs=[takes("", 1, "*")], outputs=OUT)
    assert user_of(reroute) == {"model": ["1", 0], "shift": 8.0}


def test_links_go_through_bypassed_nodes_by_type() -> None:
    inputs = [takes("clip", None, "CLIP"), takes("model", 1)]
    lora = node(2, "LoraLoader", mode=4, inputs=inputs, outputs=OUT)
    assert user_of(lora) == {"model": ["1", 0], "shift": 8.0}


def test_a_muted_node_gives_nothing_and_does_not_run() -> None:
    muted = node(2, "LoraLoaderModelOnly", mode=2, inputs=[takes("model", 1)], outputs=OUT)
    data = canvas(LOADER, muted, USER, links=[FIRST, SECOND])
    assert set(W.parse_workflow(data).nodes) == {"1", "3"}
    assert user_of(muted) == {"shift": 8.0}


def test_a_primitive_node_is_its_value() -> None:
    primitive = node(5, "PrimitiveNode", widgets_values=[3.5, "fixed"])
    turned = {**takes("shift", 7, "FLOAT"), "widget": {"name": "shift"}}
    user = {**USER, "inputs": [*USER["inputs"], turned]}
    links = [[2, 1, 0, 3, 0, "MODEL"], [7, 5, 0, 3, 1, "FLOAT"]]
    found = W.parse_workflow(canvas(LOADER, primitive, user, links=links))
    assert found.api()["3"]["inputs"] == {"model": ["1", 0], "shift": 3.5}


def test_a_value_over_a_link_is_found_or_refused() -> None:
    api = {
        "1": {"class_type": "PrimitiveFloat", "inputs": {"value": 5.0}},
        "2": {"class_type": "ModelSamplingSD3", "inputs": {"shift": ["1", 0]}},
        "3": {"class_type": "SomeMath", "inputs": {}, "_meta": {"title": "a sum"}},
        "4": {"class_type": "ModelSamplingSD3", "inputs": {"shift": ["3", 0]}},
    }
    found = W.parse_workflow(api)
    assert found.value(found.nodes["2"], "shift") == 5.0
    with pytest.raises(ValueError, match=r"shift of node 4 .* comes from node 3 \(a sum\)"):
        found.value(found.nodes["4"], "shift")


def test_links_of_format_1_are_read() -> None:
    link = {"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": 3, "target_slot": 0}
    data = {**canvas(LOADER, USER, links=[]), "links": [link], "version": 1}
    assert W.parse_workflow(data).api()["3"]["inputs"]["model"] == ["1", 0]


def test_api_lists_and_a_queue_entry_survive() -> None:
    api = {
        "9": {"class_type": "X", "inputs": {"a": {"__value__": ["1", 2]}}, "_meta": {"title": "X"}}
    }
    assert W.parse_workflow({"prompt": api, "client_id": "x"}).api() == api


def test_a_subgraph_is_refused_with_the_way_out() -> None:
    data = canvas(node(1, "0f-1a"), links=[])
    data["definitions"] = {"subgraphs": [{"id": "0f-1a", "name": "Wan"}]}
    with pytest.raises(
        ValueError, match=r"holds a subgraph \(Wan\); unpack it in ComfyUI, or export"
    ):
        W.parse_workflow(data)


@pytest.mark.parametrize(
    "data", [[], {}, 3, {"a": 1}, {"nodes": [{}]}, {"nodes": [3]}, {"1": {"class_type": "X"}},
             {"nodes": [], "links": [[1]]}, {"nodes": [node(1, "X", inputs=[3])], "links": []}]
)  # fmt: skip
def test_what_is_no_workflow_is_refused_in_one_sentence(data: Any) -> None:
    with pytest.raises(ValueError, match=r"(holds no workflow|is damaged)"):
        W.parse_workflow(data)


def test_a_loop_of_reroutes_ends() -> None:
    loop = [node(i, "Reroute", inputs=[takes("", i, "*")], outputs=OUT) for i in (1, 2)]
    user = node(3, "X", inputs=[takes("model", 2)])
    links = [[1, 2, 0, 1, 0, "*"], [2, 1, 0, 2, 0, "*"]]
    assert W.parse_workflow(canvas(*loop, user, links=links)).api()["3"]["inputs"] == {}


def guider_graph(**sampler: Any) -> dict[str, Any]:
    """Three chained stages with a guider, in API format."""

    def api(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    stage = {"cfg_curve": "", "until_value": 965.0}
    return {
        "1": api("WanExpertsLoader", model_high_noise="h.sft", model_low_noise="l.sft"),
        "2": api(
            "WanExpertsLora", model_high_noise=["1", 0], model_low_noise=["1", 1],
            lora_high_noise="x", lora_low_noise="none", strength_high_noise=0.5,
        ),
        "3": api("WanExpertsStage", model=["1", 0], name="motion", cfg=3.5, until="timestep", **stage),
        "4": api("WanExpertsStage", model=["2", 0], name="", cfg=1.0, until="auto",
                 stages=["3", 0], **stage),
        "5": api("WanExpertsStage", model=["2", 1], name="low", cfg=1.0, until="auto",
                 stages=["4", 0], **{**stage, "cfg_curve": "1:3, 0:1"}),
        "6": api("WanExpertsStagesGuider", stages=["5", 0], sigma_shift=3.0),
        "7": api("WanExpertsSchedule", scheduler="shifted", steps=8, sigma_shift=3.0, timesteps=""),
        "8": api("WanExpertsSolver", sampler_name="euler"),
        "9": api("SamplerCustomAdvanced", guider=["6", 0], sigmas=["7", 0], sampler=["8", 0], **sampler),
    }  # fmt: skip


def test_chained_stages_are_read_from_noise_to_clean() -> None:
    (run,) = W.find_runs(W.parse_workflow(guider_graph()))
    assert [stage.name for stage in run.stages] == ["motion", "stage 2", "low"]
    assert [stage.model.file for stage in run.stages] == ["h.sft", "h.sft", "l.sft"]
    assert [[(lora.file, lora.strength) for lora in stage.model.loras] for stage in run.stages] == [
        [], [("x", 0.5)], [],
    ]  # fmt: skip
    assert run.stages[0].switch == Switch("timestep", 965.0)
    assert run.stages[2].guidance == parse_guidance("1:3, 0:1")
    assert (run.solver, run.grid.name, run.grid.steps, run.shift) == ("euler", "shifted", 8, 3.0)
    assert run.clip is None


def test_sigmas_of_nodes_that_only_run_in_comfyui_are_refused() -> None:
    graph = guider_graph()
    graph["7"] = {"class_type": "BetaSamplingScheduler", "inputs": {}}
    with pytest.raises(ValueError, match=r"come from BetaSamplingScheduler, .*use Wan Sigmas"):
        W.find_runs(W.parse_workflow(graph))


def test_a_workflow_without_a_run_of_ours_says_what_to_add() -> None:
    with pytest.raises(ValueError, match="no run of this pack; add Sample Wan Experts"):
        W.find_runs(W.parse_workflow(canvas(LOADER, links=[])))


@pytest.mark.parametrize(
    ("sigmas", "wanted"),
    [
        ({"switch": "auto"}, Switch("boundary", 0.875)),
        ({"switch": "auto", "model": ["1", 0]}, Switch()),
        ({"switch": "step", "switch_step": 4}, Switch("step", 4)),
        ({"switch": "snr", "switch_value": 0.5}, Switch("snr", 0.5)),
    ],
)
def test_a_step_that_wan_sigmas_says_is_its_own_switch(
    sigmas: dict[str, Any], wanted: Switch
) -> None:
    graph = guider_graph()
    graph["6"] = {"class_type": "WanExpertsGuider", "inputs": {
        "model_high_noise": ["1", 0], "model_low_noise": ["1", 1], "cfg_high_noise": 4.0,
        "cfg_low_noise": 3.0, "sigma_shift": 3.0, "switch": "step", "switch_step": ["7", 1]}}  # fmt: skip
    graph["7"]["inputs"] |= sigmas
    (run,) = W.find_runs(W.parse_workflow(graph))
    assert run.stages[0].switch == wanted
    graph["10"] = {
        "class_type": "WanExpertsSchedule",
        "inputs": {**graph["7"]["inputs"], "steps": 40},
    }
    graph["6"]["inputs"]["switch_step"] = ["10", 1]
    with pytest.raises(
        ValueError, match=r"switch_step of node 6 .* only known when the workflow runs"
    ):
        W.find_runs(W.parse_workflow(graph))
