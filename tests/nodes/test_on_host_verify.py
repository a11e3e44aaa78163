"""What made latents travels with them into the file; Verify Wan Run names what differs."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file
from wanexperts import comfy_server
from wanexperts.wan.cli.record import record
from wanexperts.wan.manifest import differences, file_mark, read_manifest
from wanexperts.wan.manifest.compare import DETAILS
from wanexperts.wan.pipeline import Pipeline
from wanexperts.wan.state import tensor_digest

from . import lora_files as loras
from . import random_weights as files
from .graphs import (
    EMPTY,
    ENCODE,
    LOADER,
    NEGATIVE,
    PROMPT,
    SAMPLER,
    TEXT,
    VIDEO,
    base_graph,
    changed,
    node,
    saved_latents,
    video_graph,
)
from .test_on_host_run import library_latents

pytestmark = pytest.mark.comfy
VERIFY, BETWEEN = "70", "71"
_results: dict[str, str] = {}
"""ComfyUI version -> digest of the latents of one and the same run."""


def name_of(host, outputs, node_id=VIDEO):
    saved = outputs[node_id]["images"][0]
    return f"{saved['subfolder']}/{saved['filename']}", host.path(saved)


def verify(graph, name, **more):
    return {
        **graph,
        VERIFY: node("WanExpertsVerify", file=name, **{"samples": (SAMPLER, 0), **more}),
    }


def lines(host, graph):
    return host.run(graph)[VERIFY]["text"][0].splitlines()


def made(host, graph):
    """The record in the mp4 of a graph."""
    return read_manifest(name_of(host, host.run(graph))[1])


def test_the_mp4_says_what_made_it(host, random_models):
    graph = video_graph(noise_seed=11)
    outputs = host.run(graph)
    told = read_manifest(name_of(host, outputs)[1])
    folder = random_models / files.DIFFUSION_MODELS
    assert [stage.weights for stage in told.stages] == [
        file_mark(folder / files.HIGH),
        file_mark(folder / files.LOW),
    ]
    assert told.files["vae"] == file_mark(random_models / files.VAE / files.VAE_FILE)
    assert told.texts == {"positive": PROMPT, "negative": NEGATIVE}
    assert (told.seed, told.solver, told.schedule, told.shift) == (11, "unipc", "unipc", 5.0)
    assert told.versions["comfyui"] == host.version
    assert told.result == tensor_digest(saved_latents(host, outputs))
    assert not told.changed


def test_it_says_the_same_as_the_library(host, random_models, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Pipeline,
        "sample",
        lambda self, request: seen.append(record(self, request, self.plan(request))),
    )
    library_latents(random_models)
    told = made(host, video_graph())
    found = [line.partition(":")[0] for line in differences(told, seen[0])]
    assert found == ["attention", "version of comfyui"]


def test_both_hosts_give_the_same_latents_bit_for_bit(host):
    _results[host.version] = made(host, video_graph(noise_seed=12)).result
    assert len(set(_results.values())) == 1


def test_the_same_run_is_the_same_and_a_changed_one_is_named(host):
    graph = video_graph(noise_seed=13)
    name, _ = name_of(host, host.run(graph))
    assert lines(host, verify(graph, name)) == ["the same latents, bit for bit"]
    other = changed(graph, SAMPLER, cfg_low_noise=2.5, noise_seed=14)
    head, *rest = lines(host, verify(other, name))
    assert head == "the latents differ"
    assert [line.partition(":")[0] for line in rest] == ["guidance of low noise", "seed"]
    text = changed(graph, ENCODE, positive="a blue square")
    assert lines(host, verify(text, name))[1].startswith("prompt: 'a blue square' against")


def test_two_files_are_compared(host):
    names = [
        name_of(host, host.run(video_graph(noise_seed=15, sigma_shift=s)))[0] for s in (5.0, 7.0)
    ]
    graph = {VERIFY: node("WanExpertsVerify", file=names[0], other_file=names[1])}
    assert any(
        "unipc with shift 7 against unipc with shift 5" in line for line in lines(host, graph)
    )


def advanced(graph):
    """The same through SamplerCustomAdvanced."""
    sampler = graph[SAMPLER]["inputs"]
    kept = {
        key: value for key, value in sampler.items()
        if key.startswith(("model", "cfg", "switch", "boundary", "sigma", "positive", "negative",
                          "resume"))
    }  # fmt: skip
    return {
        **graph,
        "60": {"class_type": "WanExpertsGuider", "inputs": kept},
        "61": node("RandomNoise", noise_seed=sampler["noise_seed"]),
        "62": node("WanExpertsSolver", sampler_name="unipc"),
        "63": node(
            "WanExpertsSchedule", scheduler="unipc", steps=6, sigma_shift=5.0, switch="auto",
            boundary=0.875, switch_step=3, switch_value=875.0, timesteps="",
        ),
        SAMPLER: node(
            "SamplerCustomAdvanced", noise=("61", 0), guider=("60", 0), sampler=("62", 0),
            sigmas=("63", 0), latent_image=(EMPTY, 0),
        ),
    }  # fmt: skip


def test_cores_sampler_gives_a_file_with_a_record_too(host):
    graph = video_graph(noise_seed=16)
    name, _ = name_of(host, host.run(graph))
    through_core = advanced(graph)
    assert made(host, through_core).result == read_manifest(host.output / name).result
    assert lines(host, verify(through_core, name)) == ["the same latents, bit for bit"]
    through_core["62"] = node("KSamplerSelect", sampler_name="uni_pc")
    assert "solver: ComfyUI unipc against unipc; another picture" in lines(
        host, verify(through_core, name)
    )


def between(graph, kind, **inputs):
    """A core node between the sampler and the decoding, whose result is saved, too."""
    graph = changed(graph, VIDEO, samples=[BETWEEN, 0])
    graph[BETWEEN] = node(kind, samples=(SAMPLER, 0), **inputs)
    graph["72"] = node("SaveLatent", samples=(BETWEEN, 0), filename_prefix="latents/between")
    return graph


def test_core_nodes_carry_the_record_on_and_what_they_change_is_told(host):
    graph = video_graph(noise_seed=17)
    plain = made(host, graph)
    same = between(graph, "LatentFromBatch", batch_index=0, length=1)
    assert made(host, same) == plain
    halved = made(host, between(graph, "LatentMultiply", multiplier=0.5))
    assert halved.changed
    assert halved.stages == plain.stages
    name, _ = name_of(host, host.run(graph))
    other = verify(between(graph, "LatentMultiply", multiplier=0.5), name, samples=(BETWEEN, 0))
    assert lines(host, other) == [
        "the latents differ",
        "after the run: the latents were worked on against nothing; another picture",
    ]


def with_loras(graph, **strengths):
    given = {
        "lora_high_noise": loras.HIGH, "lora_low_noise": loras.LOW,
        "strength_high_noise": 1.0, "strength_low_noise": 1.0, **strengths,
    }  # fmt: skip
    graph = changed(graph, SAMPLER, model_high_noise=["80", 0], model_low_noise=["80", 1])
    graph["80"] = node(
        "WanExpertsLora", model_high_noise=(LOADER, 0), model_low_noise=(LOADER, 1), strict=False,
        allow_mismatch=True, **given,
    )  # fmt: skip
    return graph


def test_loras_are_named_with_their_strengths(host):
    loras.write_all(host.base / "models" / files.LORAS, files.EXPERT)
    graph = with_loras(video_graph(noise_seed=18), strength_low_noise=0.5)
    told = made(host, graph)
    found = [[(lora.file.name, lora.strength) for lora in stage.loras] for stage in told.stages]
    assert found == [
        [(loras.HIGH.split("/")[1], 1.0)],
        [(loras.LOW.split("/")[1], 0.5)],
    ]
    path = host.base / "models" / files.LORAS / loras.HIGH
    assert told.stages[0].loras[0].file == file_mark(path)
    name, _ = name_of(host, host.run(graph))
    weaker = with_loras(video_graph(noise_seed=18), strength_low_noise=0.25)
    assert any(line.startswith("LoRAs on low noise") for line in lines(host, verify(weaker, name)))


def core_graph(high=files.CORE_HIGH, strength=None, **sampling):
    """MODELs of core's loader, one of them with core's LoRA node."""
    graph = video_graph(**sampling)
    graph["81"] = node("UNETLoader", unet_name=high, weight_dtype="default")
    graph["82"] = node("UNETLoader", unet_name=files.CORE_LOW, weight_dtype="default")
    graph[TEXT] = node("WanExpertsTextEncoderLoader", text_encoder=files.CORE_TEXT_FILE)
    source = "81"
    if strength is not None:
        source = "83"
        graph[source] = node(
            "LoraLoaderModelOnly", model=("81", 0), lora_name=files.LORA, strength_model=strength
        )
    return changed(graph, SAMPLER, model_high_noise=[source, 0], model_low_noise=["82", 0])


def test_models_of_other_loaders_are_known_by_their_weights(host):
    plain = made(host, core_graph(noise_seed=19))
    assert all(stage.weights.in_memory and stage.weights.digest for stage in plain.stages)
    assert plain.stages[0].weights.digest != plain.stages[1].weights.digest
    host.post("/free", {"unload_models": True, "free_memory": True})
    assert made(host, core_graph(noise_seed=20)).stages == plain.stages
    one, two = (made(host, core_graph(noise_seed=20, strength=s)) for s in (0.5, 0.7))
    assert one.stages[0].weights == plain.stages[0].weights
    (first,), (second,) = one.stages[0].loras, two.stages[0].loras
    assert first.file.name == second.file.name == "patches of another node"
    assert first.file.digest != second.file.digest
    assert made(host, core_graph(noise_seed=21, strength=0.5)).stages == one.stages


def test_a_replaced_weight_file_is_named(host):
    folder = host.base / "models" / files.DIFFUSION_MODELS
    copy = folder / "copy_low_noise.safetensors"
    shutil.copy(folder / files.LOW, copy)
    graph = changed(video_graph(noise_seed=22), LOADER, model_low_noise=copy.name)
    name, _ = name_of(host, host.run(graph))
    (line,) = lines(host, verify(video_graph(noise_seed=22), name))[1:]
    assert "the same numbers; the picture does not change" in line
    state = load_file(copy)
    state["head.head.weight"] += 0.01
    save_file(state, copy, metadata={"wan_role": "low_noise"})
    head, line = lines(host, verify(graph, name))
    assert head == "the latents differ"
    assert line.startswith("weights of low noise: copy_low_noise.safetensors")
    copy.unlink()


def test_keys_in_eight_bits_are_named(host):
    name, path = name_of(host, host.run(video_graph(noise_seed=24)))
    usual = read_manifest(path).attention
    host.run({"room": node("WanProbeRoom", total=1)})
    try:
        told = lines(host, verify(video_graph(noise_seed=24), name))
    finally:
        host.run({"room": node("WanProbeRoom", total=0)})
    assert told == [
        "the latents differ",
        f"attention: {usual}, keys and values in 8 bits against {usual}; {DETAILS}",
    ]
    graph = video_graph(noise_seed=24)
    graph["41"] = node(
        "WanProbeFail",
        model=(LOADER, 0),
        kind="exact",
        step=2,
        value="nan",
        times=1,
        label="verify",
    )
    fallen = made(host, changed(graph, SAMPLER, model_high_noise=["41", 0]))
    assert fallen.attention == f"{usual}, keys and values in 8 bits"


def through_compiler(graph, *parts, idle=True):
    """Experts from Compile Wan Experts; what they go through compiles nothing while ``idle``."""
    graph["90"] = node(
        "WanExpertsCompile", model_high_noise=(LOADER, 0), model_low_noise=(LOADER, 1)
    )
    for slot, part in enumerate(("high", "low")):
        graph[part] = node("WanProbeThrough", model=("90", slot), idle=idle)
        if part in parts:
            graph[SAMPLER]["inputs"][f"model_{part}_noise"] = [part, 0]
    return graph


def test_compiled_blocks_are_named(host):
    name, path = name_of(host, host.run(video_graph(noise_seed=25)))
    usual = read_manifest(path).attention
    try:
        both = verify(through_compiler(video_graph(noise_seed=25), "high", "low"), name)
        assert lines(host, both) == [
            "the same latents, bit for bit",
            f"attention: {usual}, compiled blocks against {usual}; {DETAILS}",
        ]
        one = made(host, through_compiler(video_graph(noise_seed=26), "low"))
        assert one.attention == f"{usual}, compiled blocks on low noise"
        assert not any(stage.patches for stage in one.stages)
    finally:
        back = through_compiler(video_graph(), idle=False)
        host.run({key: back[key] for key in (LOADER, "90", "low")})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"file": ""}, "no file is named"),
        ({"file": "../main.py"}, "leaves the output folder"),
        ({"file": "/etc/passwd"}, "leaves the output folder"),
        ({"file": "video/gone.mp4"}, "in neither the output nor the input folder"),
        ({"file": "plain.txt"}, "neither an mp4, a PNG nor saved latents"),
    ],
)
def test_files_that_cannot_be_verified_are_refused_before_the_run(host, inputs, words):
    (host.output / "plain.txt").write_text("hello")
    with pytest.raises(comfy_server.Refused) as error:
        host.run(verify(base_graph(), name=inputs["file"]))
    assert words in str(error.value)


def test_latents_of_nowhere_are_told(host):
    name, _ = name_of(host, host.run(video_graph(noise_seed=23)))
    graph = verify(base_graph(), name, samples=(EMPTY, 0))
    with pytest.raises(comfy_server.HostError, match="do not say which run made them"):
        host.run(graph)
    with pytest.raises(comfy_server.HostError, match="nothing to compare with"):
        host.run({VERIFY: node("WanExpertsVerify", file=name)})
