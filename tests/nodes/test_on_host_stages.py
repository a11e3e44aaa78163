"""Any number of stages on one trajectory: equal to one model, loaded once, each with its own patches."""

from __future__ import annotations

import re

import pytest
import torch
from wanexperts import comfy_server
from wanexperts.tests.helpers import relative
from wanexperts.wan.checkpoint import load_transformer
from wanexperts.wan.config import MotionConfig
from wanexperts.wan.experts import Stage, boundary_at_step, route
from wanexperts.wan.guidance import cfg, parse_guidance
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import Schedule, make_schedule
from wanexperts.wan.solvers import SOLVERS, get_solver

from . import lora_files as loras
from . import random_weights as files
from .graphs import EMPTY, ENCODE, LOADER, SAMPLER, STEPS, TEXT, base_graph, node, saved_latents
from .test_on_host_interop import CORE_SAMPLERS, advanced, contexts, noise, raw
from .test_on_host_lora import lora_node

pytestmark = pytest.mark.comfy
LOADED = "Requested to load HostModel"


def stages_graph(*stages, sampler_name="euler", shift=12.0):
    """``advanced`` with a chain of stages as its guider; each is the inputs of one Wan Stage."""
    graph, before = advanced(sampler_name), {}
    for index, given in enumerate(stages):
        common = {"name": f"s{index}", "cfg": 2.0, "until": "auto", "until_value": 0.0}
        graph[f"stage {index}"] = node("WanExpertsStage", **{**common, **given, **before})
        before = {"stages": (f"stage {index}", 0)}
    graph["30"] = node(
        "WanExpertsStagesGuider",
        positive=(ENCODE, 0),
        negative=(ENCODE, 1),
        sigma_shift=shift,
        resume="off",
        **before,
    )
    return graph


def step(model, until=0, **inputs):
    return {"model": model, "until": "step", "until_value": float(until), **inputs}


def twins(graph):
    """Both outputs of the loader are the same weights."""
    graph[LOADER]["inputs"] |= {"model_low_noise": files.TWIN, "allow_mismatch": True}
    return graph


def run_and_log(host, graph):
    before = len(host.log.read_text())
    latents = saved_latents(host, host.run(graph))
    return latents, host.log.read_text()[before:]


ALL_SAMPLERS = [("WanExpertsSolver", name) for name in SOLVERS] + [
    ("KSamplerSelect", name) for name in CORE_SAMPLERS
]


@pytest.mark.parametrize(("kind", "name"), ALL_SAMPLERS, ids=lambda value: value)
def test_the_same_weights_in_all_stages_are_one_model_bit_for_bit(host, kind, name):
    """ComfyUI's own CFGGuider on one MODEL is the control."""
    two = advanced("euler", cfg_high_noise=2.0, switch="step", switch_step=2)
    three = stages_graph(step((LOADER, 0), 1), step((LOADER, 1), 3), step((LOADER, 0)))
    control = advanced("euler")
    control["30"] = node(
        "CFGGuider", model=(LOADER, 0), positive=(ENCODE, 0), negative=(ENCODE, 1), cfg=2.0
    )
    results = []
    for graph in (control, two, three):
        graph["32"] = node(kind, sampler_name=name)
        latents, log = run_and_log(host, twins(graph))
        results.append(latents)
    assert log.count("switching to the") == 2, "three stages did run"
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


def test_hooks_of_conditionings_act_in_every_stage_and_leave_no_trace(host):
    """A LoRA hung onto the prompts, over two clones of one MODEL and its twin; ComfyUI's guider is the control."""
    three = stages_graph(step((LOADER, 0), 1), step(("clone", 0), 3), step((LOADER, 1)))
    three["clone"] = node("ModelSamplingSD3", model=(LOADER, 0), shift=12.0)
    control = advanced("euler")
    control["30"] = node(
        "CFGGuider", model=(LOADER, 0), positive=(ENCODE, 0), negative=(ENCODE, 1), cfg=2.0
    )
    plain = saved_latents(host, host.run(twins(control)))
    results = []
    for graph in (control, three):
        graph["hook"] = node("CreateHookLoraModelOnly", lora_name=files.LORA, strength_model=0.7)
        graph["hooked"] = node(
            "PairConditioningSetProperties", positive_NEW=(ENCODE, 0), negative_NEW=(ENCODE, 1),
            strength=1.0, set_cond_area="default", hooks=("hook", 0),
        )  # fmt: skip
        graph["30"]["inputs"] |= {"positive": ["hooked", 0], "negative": ["hooked", 1]}
        results.append(saved_latents(host, host.run(twins(graph))))
    assert torch.equal(results[1], results[0])
    assert relative(results[0], plain) > 1e-3
    control["30"]["inputs"] |= {"positive": [ENCODE, 0], "negative": [ENCODE, 1]}
    control["31"]["inputs"]["noise_seed"] += 1
    host.run(control)
    control["31"]["inputs"]["noise_seed"] -= 1
    assert torch.equal(saved_latents(host, host.run(control)), plain)


LOOKING_AHEAD = ["heun", "heunpp2", "dpm_2", "dpmpp_sde", "seeds_2"]


def loads_of(host, graph):
    host.post("/free", {"unload_models": True})
    _, log = run_and_log(host, graph)
    keep = (LOADED, "switching to the")
    return [key for line in log.splitlines() for key in keep if key in line]


@pytest.mark.parametrize("name", [*LOOKING_AHEAD, "ours", "back"])
def test_no_sampler_loads_a_stage_twice(host, name):
    """Samplers that evaluate at two levels per step, ours, and one that goes back to higher levels."""
    load, switch = LOADED, "switching to the"
    two = advanced("euler", switch="step", switch_step=3)
    three = stages_graph(step((LOADER, 0), 3), step((LOADER, 1), 4), step(("other", 0)))
    three["other"] = node(
        "WanExpertsLoader", model_high_noise=files.FP32_HIGH, model_low_noise=files.LOW
    )
    for graph in (two, three):
        graph["31"]["inputs"]["noise_seed"] = 500
        if name == "ours":
            graph["32"] = node("WanExpertsSolver", sampler_name="heun")
        elif name == "back":
            graph["32"] = node("WanProbeSampler")
        else:
            graph["32"] = node("KSamplerSelect", sampler_name=name)
    assert loads_of(host, two) == [load, switch, load]
    # The sampler that goes back jumps over the middle stage.
    middle = [] if name == "back" else [switch, load]
    assert loads_of(host, three) == [load, *middle, switch, load]


def test_stages_on_one_model_load_it_once(host):
    one = stages_graph(step((LOADER, 0), 2, cfg=3.0), step((LOADER, 0), cfg=1.5))
    one["31"]["inputs"]["noise_seed"] = 501
    assert loads_of(host, one) == [LOADED, "switching to the"]


def test_a_stage_without_a_step_is_not_loaded(host):
    graph = stages_graph(step((LOADER, 0), 2), step((LOADER, 1), 2), step((LOADER, 0)))
    graph["31"]["inputs"]["noise_seed"] = 502
    host.post("/free", {"unload_models": True})
    _, log = run_and_log(host, graph)
    assert "switching to the s1 stage" not in log
    assert "the s1 stage runs none of the 5 steps" in log


LEVELS = [1.0, 0.97, 0.93, 0.86, 0.7, 0.0]


def levels():
    sigmas = torch.tensor(LEVELS)
    return Schedule(name="custom", sigmas=sigmas, timesteps=sigmas[:-1].double() * 1000)


def library(models, stages):
    """Stages ``(name, change of the weights, guidance, until)`` on the levels above, by the library."""
    schedule, texts = levels(), contexts(models, files.CORE_TEXT_FILE)
    made = []
    for name, changed, guidance, until in stages:
        expert = load_transformer(models / files.DIFFUSION_MODELS / name, dtype=torch.float32)
        for key, delta in changed.items():
            expert.get_parameter(key).data += delta

        @torch.no_grad()
        def velocity(x, sigma, expert=expert, guidance=guidance):
            timestep = torch.tensor([schedule.timestep(sigma)])
            return cfg(*(expert(x, timestep, text) for text in texts), guidance.at(sigma))

        boundary = 0.0 if until is None else boundary_at_step(schedule, until)
        made.append(Stage(name=name, boundary=boundary, velocity=velocity))
    return raw(models, sample(route(made, schedule), noise(), schedule, get_solver("euler")))


def change(seed, strength):
    return {k: strength * v for k, v in loras.change(files.CORE_EXPERT, seed).items()}


def core_files(graph, core):
    graph[TEXT]["inputs"]["text_encoder"] = files.CORE_TEXT_FILE
    graph["33"] = node("WanProbeSigmas", sigmas=", ".join(map(str, LEVELS)))
    names = files.CORE_HIGH, files.CORE_LOW
    if core:
        graph |= {
            str(i): node("UNETLoader", unet_name=name, weight_dtype="default")
            for i, name in enumerate(names)
        }
        return graph, ("0", 0), ("1", 0)
    graph["pair"] = node("WanExpertsLoader", model_high_noise=names[0], model_low_noise=names[1])
    return graph, ("pair", 0), ("pair", 1)


@pytest.mark.parametrize("core", [False, True], ids=["ours", "core"])
def test_a_lora_acts_in_its_stage_only(host, random_models, core):
    """One base in three strengths (none, 0.7, -0.4 on the other expert), as three stages."""
    folder = host.base / "models" / files.LORAS / "stages"
    if not folder.exists():
        loras.write_all(folder, files.CORE_EXPERT)
    high, low = (("0", 0), ("1", 0)) if core else (("pair", 0), ("pair", 1))
    graph = stages_graph(
        step(high, 1, cfg=3.5), step(("lora", 0), 3, cfg=1.0), step(("lora", 1), cfg=2.0)
    )
    graph, high, low = core_files(graph, core)
    graph["lora"] = lora_node(
        f"stages/{loras.HIGH}", f"stages/{loras.LOW}", strength_high_noise=0.7, strength_low_noise=-0.4,
        model_high_noise=high, model_low_noise=low,
    )  # fmt: skip
    got = saved_latents(host, host.run(graph))
    stages = [
        (files.CORE_HIGH, {}, parse_guidance("3.5"), 1),
        (files.CORE_HIGH, change(1, 0.7), parse_guidance("1"), 3),
        (files.CORE_LOW, change(2, -0.4), parse_guidance("2"), None),
    ]
    assert relative(got, library(random_models, stages)) < (1e-4 if core else 1e-5)
    everywhere = [
        (name, change(1, 0.7) if name == files.CORE_HIGH else c, g, u) for name, c, g, u in stages
    ]
    assert relative(got, library(random_models, everywhere)) > 1e-3


def test_guidance_is_a_curve_over_sigma(host, random_models):
    curves = ("1:5, 0.93:2", "0.9:3, 0.7:1.5")
    graph = stages_graph(
        step(("pair", 0), 3, cfg_curve=curves[0]), step(("pair", 1), cfg_curve=curves[1])
    )
    graph, high, low = core_files(graph, core=False)
    got = saved_latents(host, host.run(graph))
    stages = [
        (files.CORE_HIGH, {}, parse_guidance(curves[0]), 3),
        (files.CORE_LOW, {}, parse_guidance(curves[1]), None),
    ]
    assert relative(got, library(random_models, stages)) < 1e-5
    flat = [(name, c, parse_guidance("3"), u) for name, c, _, u in stages]
    assert relative(got, library(random_models, flat)) > 1e-3
    given = {"cfg_curve_high": curves[0], "cfg_curve_low": curves[1]}
    pair = advanced("euler", switch="step", switch_step=3, **given)
    pair["30"]["inputs"] |= {"model_high_noise": list(high), "model_low_noise": list(low)}
    pair, *_ = core_files(pair, core=False)
    assert torch.equal(saved_latents(host, host.run(pair)), got), "the plain guider has them too"


def test_three_phases_in_the_sampler(host):
    """High without LoRA at cfg 3.5 down to timestep 965, high with it, low with it."""
    shared = {"steps": 4, "sampler_name": "euler", "scheduler": "shifted", "sigma_shift": 5.0}
    graph = base_graph(**shared, cfg_high_noise=1.0, cfg_low_noise=1.0)
    lora = node("LoraLoaderModelOnly", model=(LOADER, 0), lora_name=files.LORA, strength_model=0.7)
    graph["lora"] = lora
    graph[SAMPLER]["inputs"] |= {"model_high_noise": ["lora", 0], "model_motion": [LOADER, 0]}
    graph["20"] = node("PreviewAny", source=(SAMPLER, 1))
    outputs = host.run(graph)
    got, plan = saved_latents(host, outputs), outputs["20"]["text"][0]
    assert re.findall(r"^ +\d+ .*?(\w+)$", plan, re.M) == [
        "motion",
        "noise",
        "noise",
        "noise",
    ]
    assert f"motion until boundary {MotionConfig().until / 1000:.4f}" in plan
    chain = stages_graph(
        {"model": (LOADER, 0), "cfg": MotionConfig().guidance, "until": "timestep", "until_value": 965.0},
        {"model": ("lora", 0), "cfg": 1.0},
        {"model": (LOADER, 1), "cfg": 1.0},
        shift=5.0,
    )  # fmt: skip
    schedule = make_schedule("shifted", steps=4, shift=5.0)
    told = ", ".join(f"{level:.9g}" for level in schedule.sigmas.tolist())
    chain |= {"lora": lora, "33": node("WanProbeSigmas", sigmas=told)}
    wanted = saved_latents(host, host.run(chain))
    assert relative(got, wanted) < 1e-5
    without = base_graph(**shared, cfg_high_noise=1.0, cfg_low_noise=1.0)
    without["lora"] = lora
    without[SAMPLER]["inputs"]["model_high_noise"] = ["lora", 0]
    assert relative(saved_latents(host, host.run(without)), got) > 1e-3


@pytest.mark.parametrize(
    ("kind", "value"),
    [("snr", ((1 - 0.93) / 0.93) ** 2), ("timestep", 930.0), ("fraction", 0.5), ("step", 3)],
)
def test_every_way_to_say_a_switch_is_one_place(host, kind, value):
    """The official grid of 6 steps at shift 5 goes 999, 961, 908, 832, ...: 930 is after two, half after three."""
    key = "switch_step" if kind == "step" else "switch_value"
    graph = base_graph(switch=kind, **{key: value})
    graph["20"] = node("PreviewAny", source=(SAMPLER, 1))
    outputs = host.run(graph)
    schedule = make_schedule("unipc", steps=STEPS, shift=5.0)
    steps = 3 if kind in ("fraction", "step") else int((schedule.timesteps >= 930).sum())
    plan = outputs["20"]["text"][0]
    assert f"step {steps} of {STEPS}" in plan
    wanted = saved_latents(host, host.run(base_graph(switch="step", switch_step=steps)))
    assert torch.equal(saved_latents(host, outputs), wanted)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([{"until": "fraction", "until_value": 65.0}], "until fraction=65 is not within 0 to 1"),
        ([{"until": "sometimes"}], "until='sometimes' is not one of auto, boundary"),
        ([{"cfg_curve": "1:4; 0.5:2"}], "is neither a number nor a curve"),
        ([{"until": "boundary", "until_value": 0.5}, {"until": "boundary", "until_value": 0.9}, {}],
         "stages with boundaries [0.5, 0.9, 0.0] are not in order"),
        ([{"until": "step", "until_value": 9.0}, {}], "until step=9 is not within the 5 steps"),
        ([{}, {"model": ("48", 0)}], "MODEL 2 of this run works on latents of 48 channels, the first on 16"),
    ],
    ids=["percent", "kind", "curve", "order", "step", "latents"],
)  # fmt: skip
def test_bad_stages_are_refused_in_a_sentence(host, stages, sentence):
    graph = stages_graph(*({"model": (LOADER, 0), **given} for given in stages))
    graph["48"] = node("WanProbePatch", model=(LOADER, 0), kind="latents")
    with pytest.raises((comfy_server.Refused, comfy_server.HostError)) as caught:
        host.run(graph)
    assert sentence in str(caught.value)


def test_the_last_stage_runs_to_the_end_and_what_it_was_told_is_told(host):
    graph = stages_graph(step((LOADER, 0), 2), step((LOADER, 1), 3))
    _, log = run_and_log(host, graph)
    assert "until of the s1 stage is not used: the last one runs to the end" in log
    assert "2 steps s0, 3 steps s1" in log


@pytest.mark.parametrize(
    ("sampler", "core"), [("guider", False), ("guider", True), ("KSampler", False)],
    ids=["our guider, our MODEL", "our guider, core MODEL", "KSampler, our MODEL"],
)  # fmt: skip
def test_an_interrupt_ends_the_step_at_the_next_attention(host, sampler, core):
    """The MODEL asks for the end in its first attention; without a look inside the step, all would run."""
    graph, high, _ = core_files(stages_graph(step(("probe", 0))), core)
    graph["probe"] = node("WanProbePatch", model=high, kind="interrupt")
    if sampler == "KSampler":
        graph[SAMPLER] = node(
            "KSampler", model=("probe", 0), seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="simple",
            positive=(ENCODE, 0), negative=(ENCODE, 1), latent_image=(EMPTY, 0), denoise=1.0,
        )  # fmt: skip
    before = len(host.log.read_text())
    *_, last = host.events(graph)
    assert last["type"] == "execution_interrupted"
    assert host.log.read_text()[before:].count("probe: attention") == 1
