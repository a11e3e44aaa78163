"""Recipes of other programs against the noise levels their own code gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from wanexperts.wan.recipes import command, host_sigmas, read_recipe, report

FROZEN = Path(__file__).parents[1] / "parity" / "goldens" / "recipes.json"
GOLDEN = json.loads(FROZEN.read_text(encoding="utf-8"))

# Published command lines: github.com/Wan-Video/Wan2.2, README.
T2V = (
    "python generate.py  --task t2v-A14B --size 1280*720 --ckpt_dir ./Wan2.2-T2V-A14B "
    "--offload_model True --convert_model_dtype --prompt "
    '"Two anthropomorphic cats in comfy boxing gear and bright gloves fight intensely on a spotlighted '
    'stage."'
)
EIGHT_GPUS = (
    "DASH_API_KEY=your_key torchrun --nproc_per_node=8 generate.py --task i2v-A14B --size 1280*720 "
    "--ckpt_dir ./Wan2.2-I2V-A14B --prompt '' --image examples/i2v_input.JPG --dit_fsdp --t5_fsdp "
    "--ulysses_size 8 --use_prompt_extend --prompt_extend_method 'dashscope'"
)
ONE_NETWORK = (
    "python generate.py --task ti2v-5B --size 1280*704 --ckpt_dir ./Wan2.2-TI2V-5B --t5_cpu "
    '--prompt "Two anthropomorphic cats"'
)
DIFFUSERS = """
>>> model_id = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
>>> vae = AutoencoderKLWan.from_pretrained(model_id, subfolder="vae", torch_dtype=torch.float32)
>>> pipe = WanPipeline.from_pretrained(model_id, vae=vae, torch_dtype=torch.bfloat16)
>>> flow_shift = 5.0  # 5.0 for 720P, 3.0 for 480P
>>> pipe.scheduler = {scheduler}
>>> output = pipe(
...     prompt="a cat", negative_prompt="dark", height=720, width=1280, num_frames=81,
...     guidance_scale=4.0, guidance_scale_2=3.0, num_inference_steps={steps},
...     generator=torch.Generator("{device}").manual_seed(42),
... ).frames[0]
"""
UNIPC = "UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=flow_shift)"


def editor(first=(), second=(), *, shifts=(8.000000000000002, 8), **kinds):
    """The published ComfyUI template (video_wan2_2_14B_t2v) as the editor saves it, without its looks."""

    def node(number, kind, values, links=None, mode=0):
        types = {"model": "MODEL", "latent_image": "LATENT", "clip": "CLIP"}
        inputs = [
            {"name": name, "link": link, "type": types.get(name, "CONDITIONING")}
            for name, link in (links or {}).items()
        ]
        made = {"type": "MODEL" if kind == "ModelSamplingSD3" else "LATENT"}
        return {
            "id": number,
            "type": kind,
            "mode": mode,
            "inputs": inputs,
            "outputs": [made],
            "widgets_values": values,
        }

    enable = ["enable", 774388746670969, "randomize", 20, 3.5, "euler", "simple", 0, 10, "enable"]
    disable = ["disable", 0, "fixed", 20, 3.5, "euler", "simple", 10, 10000, "disable"]
    for values, changes in ((enable, first), (disable, second)):
        for index, value in changes:
            values[index] = value
    files = [f"wan2.2_t2v_{part}_noise_14B_fp8_scaled.safetensors" for part in ("high", "low")]
    high_latent = {"model": 125, "positive": 127, "negative": 129, "latent_image": 126}
    low_latent = {"model": 123, "positive": 128, "negative": 130, "latent_image": 113}
    return {
        "nodes": [
            node(37, "UNETLoader", [files[0], "default"]),
            node(56, "UNETLoader", [files[1], "default"]),
            node(54, "ModelSamplingSD3", [shifts[0]], {"model": 110}, kinds.get("shift_mode", 0)),
            node(55, "ModelSamplingSD3", [shifts[1]], {"model": 112}),
            node(6, "CLIPTextEncode", ["a young woman"], {"clip": None}),
            node(7, "CLIPTextEncode", ["overexposed"], {"clip": None}),
            node(59, "EmptyHunyuanLatentVideo", [1280, 704, 121, 1]),
            node(58, "KSamplerAdvanced", disable, low_latent, kinds.get("mode", 0)),
            node(57, "KSamplerAdvanced", enable, high_latent, kinds.get("mode", 0)),
        ],
        "links": [
            [110, 37, 0, 54, 0, "MODEL"],
            [112, 56, 0, 55, 0, "MODEL"],
            [113, 57, 0, 58, 3, "LATENT"],
            [123, 55, 0, 58, 0, "MODEL"],
            [125, 54, 0, 57, 0, "MODEL"],
            [126, 59, 0, 57, 3, "LATENT"],
            [127, 6, 0, 57, 1, "CONDITIONING"],
            [128, 6, 0, 58, 1, "CONDITIONING"],
            [129, 7, 0, 57, 2, "CONDITIONING"],
            [130, 7, 0, 58, 2, "CONDITIONING"],
        ],
    }


def two_samplers(sampler="euler", scheduler="simple", steps=20, switch=10, shift=8.0):
    """The same two samplers in the API format, pasted without the rest of their graph."""
    common = {"steps": steps, "cfg": 3.5, "sampler_name": sampler, "scheduler": scheduler}
    return {
        "1": {"class_type": "KSamplerAdvanced", "inputs": {
            **common, "add_noise": "enable", "noise_seed": 7, "start_at_step": 0, "model": ["3", 0],
            "end_at_step": switch, "return_with_leftover_noise": "enable"}},
        "2": {"class_type": "KSamplerAdvanced", "inputs": {
            **common, "add_noise": "disable", "noise_seed": 0, "start_at_step": switch,
            "end_at_step": 10000, "return_with_leftover_noise": "disable", "latent_image": ["1", 0]}},
        "3": {"class_type": "ModelSamplingSD3", "inputs": {"shift": shift, "model": ["4", 0]}},
    }  # fmt: skip


def told(recipe, words):
    return any(words in note for note in recipe.notes)


def test_a_published_command_has_the_official_settings():
    recipe = read_recipe(T2V)
    golden = GOLDEN["official"]["runs"][0]
    assert (golden["solver"], golden["steps"], golden["shift"]) == ("unipc", 40, 12.0)
    assert recipe.schedule.timesteps.tolist() == golden["timesteps"]
    assert torch.equal(recipe.schedule.sigmas, torch.tensor(golden["sigmas"]))
    assert (recipe.guidance_high, recipe.guidance_low) == (4.0, 3.0)
    assert recipe.switch_step == sum(t >= 875 for t in golden["timesteps"]) == 26
    assert (recipe.width, recipe.height, recipe.num_frames) == (1280, 720, 81)
    assert recipe.seed is None
    assert told(recipe, "another seed")


@pytest.mark.parametrize("scale", ["3.0,4.0", "3.0 4.0", "'(3.0, 4.0)'"])
def test_the_official_pair_of_scales_is_low_noise_first(scale):
    recipe = read_recipe(f"{T2V} --sample_guide_scale {scale} --base_seed 42")
    assert (recipe.guidance_high, recipe.guidance_low) == (4.0, 3.0)
    assert recipe.seed == 42
    assert told(recipe, "low noise first")


@pytest.mark.parametrize("golden", GOLDEN["official"]["runs"], ids=lambda g: g["solver"])
def test_official_options_equal_the_official_schedulers(golden):
    recipe = read_recipe(
        f"{T2V} \\\n --sample_steps {golden['steps']} --sample_shift={golden['shift']} "
        f"--sample_solver {golden['solver']} --sample_guide_scale 5"
    )
    assert recipe.schedule.timesteps.tolist() == golden["timesteps"]
    assert torch.equal(recipe.schedule.sigmas, torch.tensor(golden["sigmas"]))
    assert recipe.guidance_high == recipe.guidance_low == 5


def test_image_to_video_and_prompt_rewriting_are_told():
    recipe = read_recipe(EIGHT_GPUS)
    assert (recipe.shift, recipe.boundary, recipe.switch_step) == (5.0, 0.9, 15)
    assert told(recipe, "rewritten")
    assert told(recipe, "starts from an image")


def test_the_official_python_call_has_its_own_defaults():
    recipe = read_recipe(
        "wan_t2v.generate('a cat', size=(832, 480), guide_scale=(3.0, 4.0), sampling_steps=50, seed=3)"
    )
    assert (recipe.shift, recipe.steps, recipe.seed) == (5.0, 50, 3)
    assert (recipe.guidance_high, recipe.guidance_low) == (4.0, 3.0)
    assert (recipe.width, recipe.height) == (832, 480)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [4, 20, 40, 50])
@pytest.mark.parametrize("kind", ["unipc", "dpm", "euler"])
def test_a_diffusers_call_has_the_levels_of_diffusers(kind, steps, shift):
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    theirs, made = {
        "unipc": (UniPCMultistepScheduler(**flow), f"UniPCMultistepScheduler.from_config(c, flow_shift={shift})"),
        "dpm": (DPMSolverMultistepScheduler(**flow), f"DPMSolverMultistepScheduler(flow_shift={shift}, use_flow_sigmas=True)"),
        "euler": (FlowMatchEulerDiscreteScheduler(shift=shift), f"FlowMatchEulerDiscreteScheduler(shift={shift})"),
    }[kind]  # fmt: skip
    theirs.set_timesteps(steps)
    recipe = read_recipe(DIFFUSERS.format(scheduler=made, steps=steps, device="cpu"))
    # Three of the last bits of float32 below 1.
    assert (recipe.schedule.sigmas - theirs.sigmas).abs().max() <= 1.8e-7
    assert (recipe.schedule.timesteps - theirs.timesteps.double()).abs().max() <= 1e-3
    assert recipe.solver == {"unipc": "unipc", "dpm": "dpm++", "euler": "euler"}[kind]


def test_a_diffusers_call_is_read_whole():
    recipe = read_recipe(DIFFUSERS.format(scheduler=UNIPC, steps=40, device="cuda"))
    assert (recipe.guidance_high, recipe.guidance_low) == (4.0, 3.0)
    assert (recipe.shift, recipe.boundary, recipe.seed) == (5.0, 0.875, 42)
    assert (recipe.width, recipe.height, recipe.num_frames) == (1280, 720, 81)
    assert (recipe.prompt, recipe.negative_prompt) == ("a cat", "dark")
    assert told(recipe, "drawn on the GPU")
    assert told(recipe, "since diffusers 0.37")
    on_cpu = read_recipe(DIFFUSERS.format(scheduler=UNIPC, steps=40, device="cpu"))
    assert not told(on_cpu, "drawn on the GPU")


def test_a_diffusers_fragment_says_what_it_left_out():
    recipe = read_recipe("guidance_scale=4.0, guidance_scale_2=3.0, num_inference_steps=40,")
    assert (recipe.steps, recipe.shift, recipe.boundary) == (40, 3.0, 0.875)
    for words in ("scheduler is not told", "boundary_ratio is not told", "without a generator"):
        assert told(recipe, words)


def test_one_diffusers_scale_serves_both_experts_and_1_turns_guidance_off():
    assert read_recipe("pipe(guidance_scale=5.0)").guidance_low == 5.0
    off = read_recipe("pipe(guidance_scale=1.0, guidance_scale_2=3.0)")
    assert (off.guidance_high, off.guidance_low) == (1.0, 1.0)
    assert told(off, "turns guidance off for both")


@pytest.mark.parametrize("golden", GOLDEN["lightx2v"]["runs"], ids=lambda g: Path(g["path"]).stem)
def test_published_lightx2v_configurations_have_its_own_levels(golden):
    config = golden["config"]
    recipe = read_recipe(json.dumps(config))
    assert torch.equal(recipe.schedule.sigmas, torch.tensor(golden["sigmas"]))
    assert (recipe.schedule.timesteps - torch.tensor(golden["timesteps"])).abs().max() < 1e-3
    if config["enable_cfg"]:
        assert [recipe.guidance_high, recipe.guidance_low] == config["sample_guide_scale"]
        assert recipe.boundary == config["boundary"]
        assert recipe.solver == "unipc"
    else:
        assert (recipe.guidance_high, recipe.guidance_low) == (1.0, 1.0)
        assert recipe.switch_step == config["boundary_step_index"] == 2
        assert recipe.solver == "euler"


@pytest.mark.parametrize(
    "golden", GOLDEN["comfyui"]["runs"], ids=lambda g: f"{g['sampler']}-{g['scheduler']}-{g['steps']}"
)  # fmt: skip
def test_two_samplers_run_the_levels_of_comfyui(golden):
    graph = two_samplers(
        golden["sampler"], golden["scheduler"], golden["steps"], 2, golden["shift"]
    )
    if golden["scheduler"] == "beta":
        with pytest.raises(ValueError, match="known only inside ComfyUI"):
            read_recipe(json.dumps(graph))
        return
    recipe = read_recipe(json.dumps(graph))
    # Two of the last bits of float32 below 1.
    assert (recipe.schedule.sigmas - torch.tensor(golden["sigmas"])).abs().max() <= 1.2e-7
    assert recipe.switch_step == min(2, golden["steps"])
    assert recipe.host_sampler == golden["sampler"]
    assert told(recipe, "drops the last but one") == (golden["sampler"] == "uni_pc")


def test_schedulers_are_asked_of_comfyui_where_it_is_there():
    asked = []

    def sigmas_of(*given):
        asked.append(given)
        return host_sigmas("simple", *given[1:])

    read_recipe(json.dumps(two_samplers("uni_pc", "beta", 6, 3, 5.0)), sigmas_of)
    assert asked == [("beta", 7, 5.0)]


def test_the_published_template_is_read_from_the_editors_format():
    recipe = read_recipe(json.dumps(editor()))
    assert (recipe.steps, recipe.switch_step, recipe.shift) == (20, 10, pytest.approx(8.0))
    assert (recipe.guidance_high, recipe.guidance_low) == (3.5, 3.5)
    assert (recipe.seed, recipe.host_sampler) == (774388746670969, "euler")
    assert (recipe.width, recipe.height, recipe.num_frames) == (1280, 704, 121)
    assert (recipe.prompt, recipe.negative_prompt) == ("a young woman", "overexposed")
    assert recipe.notes == ()


def test_a_subgraph_is_read_and_what_is_bypassed_is_not():
    inner = editor()
    inner["links"] = [
        {"id": n, "origin_id": a, "origin_slot": slot, "target_id": b}
        for n, a, slot, b, *_ in inner["links"]
    ]
    outer = {**editor(mode=4), "definitions": {"subgraphs": [inner]}}
    assert read_recipe(json.dumps(outer)).switch_step == 10
    with pytest.raises(ValueError, match="2 of them"):
        read_recipe(json.dumps({**editor(), "definitions": {"subgraphs": [inner]}}))
    assert read_recipe(json.dumps(editor(shift_mode=4, shifts=(3, 8)))).shift == 8.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first": [(0, "disable")]}, "starts without noise"),
        ({"second": [(0, "enable")]}, "adds noise again"),
        ({"first": [(8, 0)], "second": [(7, 0)]}, "adds no noise at all"),
        ({"first": [(5, "heun")], "second": [(5, "heun")]}, "looks ahead within a step"),
        ({"first": [(9, "disable")]}, "finishes the clip at the switch"),
        ({"second": [(7, 12)]}, "the second starts at 12"),
        ({"second": [(3, 30)]}, "steps is 20 in the first sampler and 30 in the second"),
        ({"second": [(5, "dpmpp_2m")]}, "sampler is euler in the first"),
        ({"shifts": (8, 5)}, "shift is 8"),
        ({"first": [(5, "uni_pc")], "second": [(5, "uni_pc")]}, "is not the official UniPC"),
        ({"first": [(5, "dpmpp_2m")], "second": [(5, "dpmpp_2m")]}, "forget at the switch"),
        ({"first": [(5, "res_multistep")], "second": [(5, "res_multistep")]}, "has no res_multistep"),
    ],
)  # fmt: skip
def test_mistakes_and_limits_of_two_samplers_are_told(changes, words):
    assert told(read_recipe(json.dumps(editor(**changes))), words)


def test_swapped_experts_are_told_by_their_names():
    graph = editor()
    graph["nodes"][0]["widgets_values"], graph["nodes"][1]["widgets_values"] = (
        graph["nodes"][1]["widgets_values"],
        graph["nodes"][0]["widgets_values"],
    )
    assert told(read_recipe(json.dumps(graph)), "low-noise expert runs first")


def test_the_command_says_what_the_recipe_says():
    words, missing = command(read_recipe(f"{T2V} --sample_guide_scale 3,4 --base_seed 42"))
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert not missing
    assert given["--schedule"] == given["--solver"] == "unipc"
    assert (given["--guidance-high"], given["--guidance-low"]) == ("4", "3")
    assert (given["--boundary"], given["--steps"], given["--shift"]) == ("0.875", "40", "12")
    words, missing = command(read_recipe(json.dumps(editor(first=[(3, 30)], second=[(3, 30)]))))
    assert words[words.index("--switch-step") + 1] == "10"
    assert len(missing) == 1
    assert "away" in missing[0]


def test_the_report_names_the_switch_in_all_forms():
    text = report(read_recipe(T2V))
    assert "boundary 0.8750, SNR 0.02041" in text
    assert "step 26 of 40" in text
    assert "guidance: 4 on the high-noise expert, 3 on the low-noise one" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing was pasted"),
        ("a red circle moves left", "paste the official command"),
        ("{", "not whole"),
        ('{"a": 1}', "no recipe that is known here"),
        ("[" * 100_000, "not whole"),
        (ONE_NETWORK, "no pair of experts"),
        ("python generate.py --sample_steps many", "cannot be read"),
        ("python generate.py --size big", "width*height"),
        ("python generate.py --sample_guide_scale 1,2,3", "neither one number nor two"),
        ("pipe(guidance_scale=", "not whole"),
        ("pipe(guidance_scale=args.scale)", "write the number itself"),
        ("pipe(guidance_scale=__import__('os').getpid())", "write the number itself"),
        ("p = WanPipeline.from_pretrained('Wan-AI/Wan2.1-T2V-14B-Diffusers')\np(guidance_scale=5)",
         "one network"),
        ("s = EulerDiscreteScheduler(shift=3)\np(guidance_scale=5)", "is not known here"),
        ('{"infer_steps": 50, "sample_shift": 8, "sample_guide_scale": 6}', "one network"),
        ('{"infer_steps": 4, "sample_shift": 5, "denoising_step_list": [1000, 0]}', "no list of whole"),
        (json.dumps({"1": two_samplers()["1"]}), "no chain of two"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_sentence(text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_recipe(text)
    assert "\n" not in str(error.value)
