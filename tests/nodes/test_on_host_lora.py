"""Apply LoRA to Wan Experts: what it changes, finds, refuses and tells, on our MODELs and on core's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from wanexperts import comfy_server
from wanexperts.tests.helpers import relative
from wanexperts.wan.checkpoint import load_transformer

from . import lora_files as loras
from . import random_weights as files
from .graphs import LOADER, Graph, node, saved_latents

pytestmark = pytest.mark.comfy
MANAGED, WHOLE, NONE = -1.0, 1.0, 0.0
LORA = "lora"
FILES = (files.CORE_HIGH, files.CORE_LOW)


@pytest.fixture(scope="module", autouse=True)
def models(host) -> Path:
    folder: Path = host.base / "models"
    loras.write_all(folder / files.LORAS, files.CORE_EXPERT)
    return folder


def lora_node(high: str, low: str, **inputs: object) -> dict[str, object]:
    given = {
        "model_high_noise": (LOADER, 0),
        "model_low_noise": (LOADER, 1),
        "lora_high_noise": high,
        "lora_low_noise": low,
        "strength_high_noise": 1.0,
        "strength_low_noise": 1.0,
        "strict": False,
        "allow_mismatch": False,
    }
    return node("WanExpertsLora", **{**given, **inputs})


def our_models() -> Graph:
    return {LOADER: node("WanExpertsLoader", model_high_noise=FILES[0], model_low_noise=FILES[1])}


def core_models() -> Graph:
    return {
        str(slot): node("UNETLoader", unet_name=name, weight_dtype="default")
        for slot, name in enumerate(FILES)
    }


CORE_INPUTS = {"model_high_noise": ("0", 0), "model_low_noise": ("1", 0)}


def with_forwards(graph: Graph, *steps: tuple[tuple[str, int], float]) -> Graph:
    """Forwards of MODELs after each other, each with the share that is loaded."""
    after: dict[str, object] = {}
    for index, (model, share) in enumerate(steps):
        graph[f"forward {index}"] = node("WanProbeForward", model=model, share=share, **after)
        after = {"after": (f"forward {index}", 0)}
        graph[f"save {index}"] = node(
            "SaveLatent", samples=after["after"], filename_prefix=f"latents/lora{index}"
        )
    return graph


def forwards(host, graph: Graph, *steps: tuple[tuple[str, int], float]) -> list[Tensor]:
    outputs = host.run(with_forwards(graph, *steps))
    return [saved_latents(host, outputs, f"save {index}") for index in range(len(steps))]


def library_forward(models: Path, slot: int, *changes: Mapping[str, Tensor]) -> Tensor:
    """What ``WanProbeForward`` computes, by the library, with changes added to the weights."""
    expert = load_transformer(models / files.DIFFUSION_MODELS / FILES[slot])
    for change in changes:
        for key, delta in change.items():
            expert.get_parameter(key).data += delta
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1, 16, 3, 6, 8, generator=generator)
    context = torch.randn(1, 7, expert.config.text_dim, generator=generator)
    with torch.no_grad():
        return expert(x, torch.tensor([500.0]), context)


def change(seed: int, strength: float = 1.0, *, low_rank_only: bool = False) -> dict[str, Tensor]:
    made = loras.change(files.CORE_EXPERT, seed)
    kept = {f"{name}.weight" for name in loras.LAYERS} if low_rank_only else made.keys()
    return {key: strength * delta for key, delta in made.items() if key in kept}


@pytest.mark.parametrize("share", [MANAGED, WHOLE, NONE], ids=["managed", "resident", "novram"])
def test_a_pair_on_our_experts(host, models, share):
    graph = our_models()
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, strength_high_noise=0.7, strength_low_noise=-0.4)
    got = forwards(host, graph, ((LORA, 0), share), ((LORA, 1), share))
    for slot, strength in enumerate((0.7, -0.4)):
        wanted = library_forward(models, slot, change(slot + 1, strength))
        assert relative(got[slot], wanted) < 1e-5  # measured: 6.4e-7
        assert relative(library_forward(models, slot), wanted) > 0.1


@pytest.mark.parametrize("share", [MANAGED, WHOLE, NONE], ids=["managed", "resident", "novram"])
def test_a_pair_on_core_loaded_models(host, models, share):
    """Its modulation too, which ComfyUI's own loading drops; and the MODELs are as before without it."""
    graph = core_models()
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, strength_high_noise=0.7, **CORE_INPUTS)
    graph["again"] = lora_node(loras.HIGH, loras.LOW, strength_high_noise=0.3, **CORE_INPUTS)
    steps = [("0", 0), (LORA, 0), ("again", 0), (LORA, 0), ("0", 0), (LORA, 1)]
    plain, got, weaker, same, bare, low = forwards(host, graph, *((s, share) for s in steps))
    wanted = library_forward(models, 0, change(1, 0.7))
    assert relative(got, wanted) < 1e-4  # measured: 2.6e-6; core's arithmetic is not quite ours
    assert relative(library_forward(models, 0, change(1, 0.7, low_rank_only=True)), wanted) > 0.1
    assert relative(weaker, library_forward(models, 0, change(1, 0.3))) < 1e-4
    assert relative(low, library_forward(models, 1, change(2))) < 1e-4
    assert torch.equal(same, got)
    assert torch.equal(bare, plain)


@pytest.mark.parametrize("core", [False, True], ids=["ours", "core"])
def test_a_saved_model_has_the_lora_in_every_parameter(host, models, core):
    graph = core_models() if core else our_models()
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, **(CORE_INPUTS if core else {}))
    prefix = f"saved/{'core' if core else 'ours'}"
    graph["save"] = node("ModelSave", model=(LORA, 0), filename_prefix=prefix)
    host.run(graph)
    (path,) = (host.base / "output" / "saved").glob(f"{Path(prefix).name}_*.safetensors")
    saved = load_transformer(path)
    plain = load_transformer(models / files.DIFFUSION_MODELS / FILES[0]).state_dict()
    changes = change(1)
    assert set(loras.MODULATIONS) < changes.keys()
    for key, value in saved.state_dict().items():
        wanted = plain[key] + changes[key] if key in changes else plain[key]
        assert relative(value.float(), wanted.float()) < 1e-6, key  # measured: 1.3e-7


@pytest.mark.parametrize("core", [False, True], ids=["ours", "core"])
def test_loras_are_stacked_by_chaining(host, models, core):
    graph = core_models() if core else our_models()
    first = CORE_INPUTS if core else {}
    graph["first"] = lora_node(loras.HIGH, loras.LOW, strength_high_noise=0.7, **first)
    chained = {"model_high_noise": ("first", 0), "model_low_noise": ("first", 1)}
    graph[LORA] = lora_node(
        loras.LOW, "none", allow_mismatch=True, strength_high_noise=-0.5, **chained
    )
    (got,) = forwards(host, graph, ((LORA, 0), WHOLE))
    assert relative(got, library_forward(models, 0, change(1, 0.7), change(2, -0.5))) < 1e-4


def bytes_models() -> Graph:
    graph = core_models()
    for slot in range(2):
        graph[f"bytes {slot}"] = node("WanProbeBytes", model=(str(slot), 0))
    return graph


BYTES_INPUTS = {"model_high_noise": ("bytes 0", 0), "model_low_noise": ("bytes 1", 0)}


def test_models_whose_weights_another_pack_keeps_packed(host, models):
    """Such as ComfyUI-GGUF: nothing is left out for the shape of the bytes."""
    host.post("/free", {"unload_models": True, "free_memory": True})
    graph = bytes_models()
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, strict=True, **BYTES_INPUTS)
    (got,) = forwards(host, graph, ((LORA, 0), MANAGED))
    assert relative(got, library_forward(models, 0, change(1))) < 1e-4  # measured: 2.4e-6
    lines = report(host, graph).splitlines()
    assert lines[1] == "  5 of 5 modules"
    assert "(1 of 1 measured)" in lines[2]  # head.head; the others are packed
    host.post("/free", {"unload_models": True, "free_memory": True})


def test_weights_are_measured_once_for_a_file_and_a_model(host):
    host.post("/free", {"unload_models": True, "free_memory": True})

    def measured(lora_low: str = loras.LOW, **inputs: object) -> int:
        before = len(host.log.read_text())
        graph = our_models()
        graph[LORA] = lora_node(loras.HIGH, lora_low, **inputs)
        report(host, graph)
        return host.log.read_text()[before:].count("measuring ")

    assert measured(strength_high_noise=0.0, strength_low_noise=0.0) == 0
    assert measured(strength_high_noise=0.5, strength_low_noise=0.0) == 1
    assert measured(strength_high_noise=0.5, strength_low_noise=0.4) == 1
    assert measured(strength_high_noise=0.6, strength_low_noise=0.7) == 0
    assert measured(strength_high_noise=0.6, lora_low=loras.BOTH) == 1


def report(host, graph: Graph) -> str:
    graph["20"] = node("PreviewAny", source=(LORA, 2))
    return host.run(graph)["20"]["text"][0]


FOUND = {
    "partner-of-high": (loras.HIGH, "auto", (1, 2)),
    "partner-of-low": ("auto", loras.LOW, (1, 2)),
    "one-file-for-both": (loras.BOTH, "auto", (1, 1)),
    "from-the-other-side": ("auto", loras.BOTH, (1, 1)),
    "wan2.1-stays-low": ("auto", loras.WAN21, (None, 2)),
    "wan2.1-where-it-is-put": (loras.WAN21, "auto", (2, 2)),
    "no-partner": (loras.LONELY, "auto", (1, None)),
    "only-low": ("none", loras.LOW, (None, 2)),
}


@pytest.mark.parametrize(("high", "low", "seeds"), FOUND.values(), ids=FOUND)
def test_auto_finds_what_belongs(host, models, high, low, seeds):
    graph = our_models()
    graph[LORA] = lora_node(high, low)
    got = forwards(host, graph, ((LORA, 0), MANAGED), ((LORA, 1), MANAGED))
    for slot, seed in enumerate(seeds):
        changes = () if seed is None else (change(seed),)
        assert relative(got[slot], library_forward(models, slot, *changes)) < 1e-5


def test_one_file_with_both_experts_in_it(host, models):
    graph = our_models()
    graph[LORA] = lora_node("auto", loras.COMBINED)
    got = forwards(host, graph, ((LORA, 0), MANAGED), ((LORA, 1), MANAGED))
    for slot in range(2):
        wanted = library_forward(models, slot, change(slot + 1, low_rank_only=True))
        assert relative(got[slot], wanted) < 1e-5


def test_strength_0_leaves_an_expert_as_it_is(host):
    graph = our_models()
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, strength_low_noise=0.0)
    plain, got = forwards(host, graph, ((LOADER, 1), WHOLE), ((LORA, 1), WHOLE))
    assert torch.equal(got, plain)


def test_the_report_tells_coverage_scale_and_size(host, models):
    graph = our_models()
    graph[LORA] = lora_node(loras.HIGH, "auto", strength_low_noise=0.5)
    lines = report(host, graph).splitlines()
    assert lines[0] == f"high-noise expert: {loras.HIGH}, strength 1"
    assert lines[1] == "  5 of 5 modules"
    assert "LoRA + full deltas, rank 4, scale 0.75, at strength 1 " in lines[2]
    assert lines[3] == f"low-noise expert: {loras.LOW}, strength 0.5"
    expert = load_transformer(models / files.DIFFUSION_MODELS / FILES[0])
    changes = {key: delta for key, delta in change(1).items() if key.endswith(".weight")}
    norms = torch.stack([delta.norm() for delta in changes.values()]).norm()
    whole = torch.stack([expert.get_parameter(key).norm() for key in changes]).norm()
    assert f"{100 * float(norms / whole):.2g} % of the weights' norm" in lines[2]


@pytest.mark.parametrize("core", [False, True], ids=["ours", "core"])
def test_a_patched_model_is_measured_without_its_patches(host, core):
    graph = core_models() if core else our_models()
    first = CORE_INPUTS if core else {}
    graph["first"] = lora_node(loras.HIGH, loras.LOW, **first)
    with_forwards(graph, (("first", 0), MANAGED))
    chained = {"model_high_noise": ("first", 0), "model_low_noise": ("first", 1)}
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, **chained)
    again = report(host, graph).splitlines()[2]
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, **first)
    assert report(host, graph).splitlines()[2] == again


TOLD = {
    "half": (loras.HALF, "none", "WARNING: most of a LoRA is not used"),
    "half-names": (loras.HALF, "none", "2 of 5 modules, unused: "),
    "wan2.1": ("auto", loras.WAN21, "is made for Wan2.1, so only the low-noise expert is changed"),
    "wan2.1-high": (loras.WAN21, "none", "made for Wan2.1 and may disturb the layout"),
    "no-partner": (loras.LONELY, "auto", "has no partner for the low-noise expert"),
    "one-expert": (loras.BOTH, "none", "only the high-noise expert is changed"),
}


@pytest.mark.parametrize(("high", "low", "sentence"), TOLD.values(), ids=TOLD)
def test_what_is_odd_is_told_in_report_and_log(host, high, low, sentence):
    host.post("/free", {"free_memory": True})  # a cached run would say nothing again
    before = len(host.log.read_text())
    graph = our_models()
    graph[LORA] = lora_node(high, low)
    told = report(host, graph)
    assert sentence in told
    assert sentence in host.log.read_text()[before:]
    if "WARNING" in sentence:
        assert told.startswith(sentence)


REFUSED = {
    "swapped": (loras.LOW, loras.HIGH, {}, "the LoRAs are swapped"),
    "wrong-place": ("none", loras.HIGH, {}, "is a LoRA for the high-noise expert"),
    "wrong-place-auto": ("auto", loras.LONELY, {}, "or turn on allow_mismatch"),
    "nothing": ("auto", "none", {}, "no LoRA is chosen"),
    "not-listed": ("../pair_high_noise.safetensors", "auto", {}, "is not in the loras folders"),
    "outside": ("/etc/passwd", "auto", {}, "is not in the loras folders"),
    "foreign": (loras.FOREIGN, "none", {}, "is a LoRA of another network"),
    "damaged": (loras.BROKEN, "none", {}, "broken.safetensors is truncated"),
    "strength": (loras.HIGH, "auto", {"strength_low_noise": 1000.0}, "is not within -100 to 100"),
}


@pytest.mark.parametrize(("high", "low", "inputs", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refused_before_the_run(host, high, low, inputs, sentence):
    graph = with_forwards(our_models(), ((LORA, 0), MANAGED))
    graph[LORA] = lora_node(high, low, **inputs)
    with pytest.raises(comfy_server.Refused) as caught:
        host.run(graph)
    errors = caught.value.answer["node_errors"][LORA]["errors"]
    assert sentence in " ".join(f"{e['message']} {e['details']}" for e in errors)


def test_refused_in_the_run(host):
    graph = with_forwards(our_models(), ((LORA, 0), MANAGED))
    graph[LORA] = lora_node(loras.HALF, "none", strict=True)
    with pytest.raises(comfy_server.HostError, match=r"2 of 5 modules.*turn off strict"):
        host.run(graph)
    graph[LORA] = lora_node(loras.HIGH, loras.LOW, strict=True)
    assert host.run(graph)


def test_swapped_files_on_demand(host, models):
    graph = our_models()
    graph[LORA] = lora_node(loras.LOW, loras.HIGH, allow_mismatch=True)
    got = forwards(host, graph, ((LORA, 0), MANAGED), ((LORA, 1), MANAGED))
    for slot, seed in enumerate((2, 1)):
        assert relative(got[slot], library_forward(models, slot, change(seed))) < 1e-5
    assert "is made for the low-noise expert" in report(host, graph)


@pytest.fixture
def shelf(models):
    """Writes copies of the pair's halves under other names, and removes them again."""
    made = []

    def put(**names: str) -> None:
        for half, name in names.items():
            source = {"high": loras.HIGH, "low": loras.LOW, "broken": loras.BROKEN}[half]
            made.append(models / files.LORAS / loras.FOLDER / name)
            shutil.copy(models / files.LORAS / source, made[-1])

    yield put
    for path in made:
        path.unlink()


@pytest.mark.parametrize("given", ["high", "low"])
def test_a_name_too_unclear_alone_is_clear_beside_its_partner(host, models, shelf, given):
    shelf(high="mouth-high-k3nk.safetensors", low="mouth-low-k3nk.safetensors")
    name = f"{loras.FOLDER}/mouth-{given}-k3nk.safetensors"
    high, low = (name, "auto") if given == "high" else ("auto", name)
    graph = our_models()
    graph[LORA] = lora_node(high, low)
    got = forwards(host, graph, ((LORA, 0), MANAGED), ((LORA, 1), MANAGED))
    for slot in range(2):
        assert relative(got[slot], library_forward(models, slot, change(slot + 1))) < 1e-5
    graph[LORA] = lora_node(low, high)
    with pytest.raises(comfy_server.Refused, match="choose its partner there"):
        host.run(with_forwards(our_models() | {LORA: graph[LORA]}, ((LORA, 0), MANAGED)))


PARTNERS = {
    "undecided": (
        {"high": "mouth-high-k3nk"},
        "does not say which expert it is for, so both get it",
    ),
    "near": ({"high": "s_high_r64", "low": "s_low_r32"}, "names differ in more than the expert"),
    "damaged": (
        {"high": "d_high", "broken": "d_low"},
        "d_high.safetensors cannot be used, so only",
    ),
    "stranger": ({"high": "john_a_high", "low": "mary_a_low"}, "has no partner for the low-noise"),
}


@pytest.mark.parametrize(("names", "sentence"), PARTNERS.values(), ids=PARTNERS)
def test_what_is_odd_about_a_partner_is_told(host, shelf, names, sentence):
    shelf(**{half: f"{name}.safetensors" for half, name in names.items()})
    graph = our_models()
    graph[LORA] = lora_node(f"{loras.FOLDER}/{names['high']}.safetensors", "auto")
    assert sentence in report(host, graph)


def test_a_partner_that_comes_later_is_found(host, models):
    partner = models / files.LORAS / loras.LONELY.replace("high", "low")
    graph = our_models()
    graph[LORA] = lora_node(loras.LONELY, "auto")
    (before,) = forwards(host, graph, ((LORA, 1), MANAGED))
    shutil.copy(models / files.LORAS / loras.LOW, partner)
    try:
        (after,) = forwards(host, graph, ((LORA, 1), MANAGED))
    finally:
        partner.unlink()
    assert relative(before, library_forward(models, 1)) < 1e-5
    assert relative(after, library_forward(models, 1, change(2))) < 1e-5
