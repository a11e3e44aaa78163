"""Packed weights in ComfyUI give what the same numbers unpacked give, however much is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from wanexperts import comfy_server
from wanexperts.tests.helpers import relative, sentencepiece_model
from wanexperts.wan.transformer import WanTransformer

from .graphs import ENCODE, LOADER, PROMPT, SAMPLER, TEXT, Graph, node, saved_latents
from .test_on_host_companions import ksampler

pytest.importorskip("gguf", reason="the gguf package writes the files: pip install gguf")
from . import packed_weights as files

pytestmark = pytest.mark.comfy
WHOLE, HALF, NONE = 1.0, 0.5, 0.0
LORA = "packed_lora.safetensors"
HOSTED = ("fp8-legacy", "fp8-comfy-quant", "fp8-e5m2", "fp8-header")
"""Forms that ComfyUI has layers for."""
PLAIN = ("fp8-plain", "F16", "BF16")
"""Number formats like any other."""
SAME = 5e-6
"""Measured: at most 9.3e-7, in float32; the order of sums depends on where in a file a weight begins."""
ROUNDED = {"fp8-e5m2": 0.04, "F16": 2e-4, "BF16": 2e-3}
"""Where ComfyUI writes a patched weight back as it is stored. Measured: fp8 0.9 %, e5m2 1.7 %, float16
5e-5, bfloat16 4e-4."""


@pytest.fixture(scope="module", autouse=True)
def models(host) -> Path:
    folder: Path = host.base / "models"
    files.write_experts(folder)
    spiece = torch.frombuffer(bytearray(sentencepiece_model(64)), dtype=torch.uint8)
    files.write_texts(folder, spiece)
    model, generator = WanTransformer(files.EXPERT), torch.Generator().manual_seed(30)
    state = {}
    for name in ("blocks.0.self_attn.v", "blocks.1.ffn.2"):
        rows, columns = model.get_submodule(name).weight.shape
        for side, shape in (("down", (4, columns)), ("up", (rows, 4))):
            key = f"diffusion_model.{name}.lora_{side}.weight"
            state[key] = torch.randn(shape, generator=generator) * 0.1
        state[f"diffusion_model.{name}.diff_b"] = torch.randn(rows, generator=generator)
    save_file(state, folder / "loras" / LORA)
    return folder


def loader(name: str) -> dict[str, object]:
    return node("WanExpertsLoader", model_high_noise=name, model_low_noise=files.LOW)


def forwards(host, *steps: tuple[str, float | None, float]) -> list[Tensor]:
    """Forwards in one prompt: a high-noise file, a LoRA's strength (None: without it) and a share."""
    graph: Graph = {}
    after: dict[str, object] = {}
    for index, (name, strength, share) in enumerate(steps):
        graph.setdefault(name, loader(name))
        model = (name, 0)
        if strength is not None:
            model = (f"lora {index}", 0)
            graph[model[0]] = node(
                "LoraLoaderModelOnly", model=(name, 0), lora_name=LORA, strength_model=strength
            )
        graph[f"forward {index}"] = node("WanProbeForward", model=model, share=share, **after)
        after = {"after": (f"forward {index}", 0)}
        graph[f"save {index}"] = node(
            "SaveLatent", samples=after["after"], filename_prefix=f"latents/packed{index}"
        )
    outputs = host.run(graph)
    return [saved_latents(host, outputs, f"save {index}") for index in range(len(steps))]


@pytest.mark.parametrize("form", files.FORMS)
def test_packed_gives_what_its_numbers_give(host, form):
    packed, numbers = files.packed_name(form), files.numbers_name(form)
    wanted, *got = forwards(
        host, (numbers, None, WHOLE), *((packed, None, share) for share in (WHOLE, HALF, NONE))
    )
    assert wanted.std() > 0.1
    for each in got:
        assert relative(each, wanted) < SAME


def is_rounded(host, form: str, share: float) -> bool:
    """Whether ComfyUI writes patched weights of this form back; ours never are."""
    if form in PLAIN:
        return share != NONE
    return form in HOSTED and (share != NONE or host.version.startswith("0.3."))


@pytest.mark.parametrize("share", [WHOLE, HALF, NONE], ids=["resident", "partial", "novram"])
@pytest.mark.parametrize("form", files.FORMS)
def test_a_lora_on_packed_weights(host, form, share):
    packed, numbers = files.packed_name(form), files.numbers_name(form)
    bare, wanted = forwards(host, (numbers, None, share), (numbers, 0.7, share))
    plain, strong, weak, again, after = forwards(
        host, *((packed, strength, share) for strength in (None, 0.7, 0.3, 0.7, None))
    )
    limit = ROUNDED.get(form, 0.02) if is_rounded(host, form, share) else SAME
    assert relative(strong, wanted) < limit
    assert relative(wanted, bare) > 0.05
    assert relative(weak, strong) > 0.02
    assert torch.equal(again, strong)
    assert torch.equal(after, plain)


def our_lora() -> dict[str, object]:
    return node(
        "WanExpertsLora",
        model_high_noise=(LOADER, 0),
        model_low_noise=(LOADER, 1),
        lora_high_noise=LORA,
        lora_low_noise="none",
        strength_high_noise=0.7,
        strength_low_noise=1.0,
        strict=True,
        allow_mismatch=False,
    )


@pytest.mark.parametrize("form", ["fp8-comfy-quant", "fp8-channel", "int8-channel", "Q8_0", "Q4_K"])
def test_our_lora_node_is_cores_on_packed_weights(host, form):
    name = files.packed_name(form)
    graph: Graph = {
        LOADER: loader(name),
        "ours": our_lora(),
        "forward": node("WanProbeForward", model=("ours", 0), share=NONE),
        "save": node("SaveLatent", samples=("forward", 0), filename_prefix="latents/ours"),
    }
    got = saved_latents(host, host.run(graph), "save")
    (wanted,) = forwards(host, (name, 0.7, NONE))
    # The older version puts patched fp8 back into fp8; the last bit of the numbers decides how.
    limit = 0.01 if is_rounded(host, form, NONE) else SAME
    assert relative(got, wanted) < limit


@pytest.mark.parametrize("form", files.FORMS)
def test_the_report_says_where_comfyui_rounds_to_fp8(host, form):
    graph: Graph = {
        LOADER: loader(files.packed_name(form)),
        "ours": our_lora(),
        "20": node("PreviewAny", source=("ours", 2)),
    }
    told = host.run(graph)["20"]["text"][0]
    assert ("rounds the patched weights" in told) == (form in HOSTED or form == "fp8-plain")


@pytest.mark.parametrize("form", files.FORMS)
def test_weights_stay_in_their_file_as_they_are_stored(host, models, form):
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux tells which memory is a file's")
    name = files.packed_name(form)
    graph = {
        LOADER: loader(name),
        "storage": node("WanProbeStorage", model=(LOADER, 0)),
        "20": node("PreviewAny", source=("storage", 0)),
    }
    lines = [line.split() for line in host.run(graph)["20"]["text"][0].splitlines()]
    weights = {key: (dtype, place) for key, dtype, place in lines if is_weight(key)}
    assert {place for _, place in weights.values()} == {"mapped"}
    stored = files.stored_dtypes(models / files.DIFFUSION_MODELS / name)
    assert {key: dtype for key, (dtype, _) in weights.items()} == {
        key: str(dtype) for key, dtype in stored.items() if is_weight(key)
    }


def is_weight(key: str) -> bool:
    """Scales and notes are small copies."""
    return key.rpartition(".")[2] in ("weight", "bias", "modulation")


@pytest.mark.parametrize("form", ["fp8-plain", "fp8-comfy-quant", "Q8_0"])
def test_what_is_pinned_leaves_its_file_and_comes_back(host, form):
    name = files.packed_name(form)
    graph = {
        LOADER: loader(name),
        "pinned": node("WanProbePinned", model=(LOADER, 0)),
        "storage": node("WanProbeStorage", model=("pinned", 0)),
        "20": node("PreviewAny", source=("pinned", 1)),
        "21": node("PreviewAny", source=("storage", 0)),
    }
    outputs = host.run(graph)
    told, after = (outputs[key]["text"][0].splitlines() for key in ("20", "21"))
    assert {line.split()[2] for line in after if is_weight(line.split()[0])} == {"mapped"}
    if told == ["never pins"]:
        pytest.skip(f"ComfyUI {host.version} pins nothing")
    first, left = map(int, told[0].split())
    private = [line for line in told[1:] if line.endswith("memory") and is_weight(line.split()[0])]
    assert len(private) == first > 4
    assert left == 0


def conditioning(host, *names: str) -> list[Tensor]:
    graph: Graph = {}
    for name in names:
        graph[name] = node("WanExpertsTextEncoderLoader", text_encoder=name)
        graph[f"text {name}"] = node("CLIPTextEncode", clip=(name, 0), text=PROMPT)
        graph[f"as {name}"] = node("WanProbeText", conditioning=(f"text {name}", 0))
        graph[f"save {name}"] = node(
            "SaveLatent", samples=(f"as {name}", 0), filename_prefix="latents/text"
        )
    outputs = host.run(graph)
    return [saved_latents(host, outputs, f"save {name}") for name in names]


@pytest.mark.parametrize("form", files.TEXT_FORMS)
def test_packed_text_encoders(host, form):
    wanted, got = conditioning(host, files.text_numbers_name(form), files.text_name(form))
    assert wanted.std() > 0.01
    assert relative(got, wanted) < SAME


def test_memory_is_asked_for_unpacking(host):
    """Enough for several LoRAs at once, which is more than one or none needs."""
    packed, numbers = files.packed_name("Q8_0"), files.numbers_name("Q8_0")
    graph: Graph = {name: loader(name) for name in (packed, numbers)}
    graph["asked"] = node("WanProbeUnpacking", packed=(packed, 0), numbers=(numbers, 0))
    graph["20"] = node("PreviewAny", source=("asked", 0))
    none, one, several = map(float, host.run(graph)["20"]["text"][0].split())
    assert several == pytest.approx(1, abs=0.1), (
        none,
        one,
        several,
    )  # measured: 0.94; the rest are slabs
    assert none > one > several


def test_folders_are_walked_again_only_when_they_changed(host, models):
    def listed() -> list[str]:
        kind, *rest = host.get("/object_info/WanExpertsLoader")["WanExpertsLoader"]["input"][
            "required"
        ]["model_high_noise"]
        return kind if isinstance(kind, list) else rest[0]["options"]

    folder = models / "diffusion_models" / "later" / "deeper"
    folder.mkdir(parents=True)
    assert "later/deeper/new.gguf" not in listed()
    (folder / "new.gguf").write_bytes(b"GGUF")
    assert "later/deeper/new.gguf" in listed()
    shutil.rmtree(folder)
    assert "later/deeper/new.gguf" not in listed()
    graph: Graph = {
        LOADER: loader(files.numbers_name("Q8_0")),
        "walks": node("WanProbeWalks", model=(LOADER, 1)),
        "20": node("PreviewAny", source=("walks", 0)),
    }
    assert host.run(graph)["20"]["text"][0] == "0"


def test_packed_weights_are_not_saved(host):
    graph = {
        LOADER: loader(files.packed_name("Q8_0")),
        "save": node("ModelSave", model=(LOADER, 0), filename_prefix="packed"),
    }
    with pytest.raises(comfy_server.HostError, match="which cannot be saved"):
        host.run(graph)


def test_a_scheduled_lora_on_packed_weights_is_refused(host):
    """ComfyUI writes those into the weights between two steps."""
    graph: Graph = ksampler()
    graph[LOADER] = loader(files.packed_name("Q8_0"))
    graph[TEXT]["inputs"]["text_encoder"] = files.text_name("Q8_0")
    graph["hook"] = node("CreateHookLora", lora_name=LORA, strength_model=1.0, strength_clip=0.0)
    graph["set"] = node(
        "ConditioningSetProperties",
        cond_NEW=(ENCODE, 0),
        strength=1.0,
        set_cond_area="default",
        hooks=("hook", 0),
    )
    graph[SAMPLER]["inputs"]["positive"] = ["set", 0]
    with pytest.raises(
        comfy_server.HostError, match=r"a LoRA on a schedule \(hook\) cannot change"
    ):
        host.run(graph)
    del graph["hook"], graph["set"]
    graph[SAMPLER]["inputs"]["positive"] = [ENCODE, 0]
    assert host.run(graph)


@pytest.mark.parametrize("form", ["Q8_0", "int8-channel"])
def test_merging_reads_and_changes_packed_weights(host, form):
    """Half of a model and half of the same one, packed or not, is that model."""
    packed, numbers = files.packed_name(form), files.numbers_name(form)
    graph: Graph = {name: loader(name) for name in (packed, numbers)}
    for index, (first, second) in enumerate([(packed, numbers), (numbers, packed)]):
        graph[f"merge {index}"] = node(
            "ModelMergeSimple", model1=(first, 0), model2=(second, 0), ratio=0.5
        )
        graph[f"forward {index}"] = node(
            "WanProbeForward", model=(f"merge {index}", 0), share=WHOLE
        )
        graph[f"save {index}"] = node(
            "SaveLatent", samples=(f"forward {index}", 0), filename_prefix="latents/merged"
        )
    outputs = host.run(graph)
    (wanted,) = forwards(host, (numbers, None, WHOLE))
    for index in range(2):
        assert relative(saved_latents(host, outputs, f"save {index}"), wanted) < SAME
