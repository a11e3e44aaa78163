"""Damaged and foreign files through a real server: refused before the run, in one sentence, unharmed.

And names: whatever a workflow says, no file outside the model folders is opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from wanexperts import comfy_server
from wanexperts.tests.canary import Canaries
from wanexperts.tests.wan.zoo import KINDS
from wanexperts.tests.wan.zoo_base import Kind, expert, write
from wanexperts.tests.wan.zoo_files import code_archive, code_pickle, sentinel
from wanexperts.wan.files import shown

from . import random_weights as files
from .graphs import LOADER, SAVE, TEXT, VAE, Graph, base_graph, changed, node, video_graph

pytestmark = pytest.mark.comfy
LORA = "lora"
PLACES = {
    "high": (files.DIFFUSION_MODELS, LOADER, "model_high_noise"),
    "vae": (files.VAE, VAE, "vae"),
    "text": (files.TEXT_ENCODERS, TEXT, "text_encoder"),
    "lora": (files.LORAS, LORA, "lora_high_noise"),
}
"""Part -> its model folder, its loader and the loader's input."""
CHOSEN = {name: kind for name, kind in KINDS.items() if kind.host}
# What shows when a LoRA meets its expert is told by the run: the node sees no MODEL before.
IN_THE_RUN = {"LoRA of Wan2.1 1.3B", "LoRA with NaN"}
PARTNER = "zoo_low_noise.safetensors"
"""A good expert that fits those of the zoo."""


def graph_of(part: str, name: object) -> Graph:
    """A whole graph whose ``part`` is ``name``."""
    graph = video_graph(noise_seed=77)
    del graph[SAVE]  # a second good output would run without the bad one
    graph[LORA] = node(
        "WanExpertsLora", model_high_noise=(LOADER, 0), model_low_noise=(LOADER, 1),
        lora_high_noise=files.LORA, lora_low_noise="none", strength_high_noise=1.0,
        strength_low_noise=1.0, strict=False, allow_mismatch=False,
    )  # fmt: skip
    graph["6"]["inputs"]["model_high_noise"] = [LORA, 0]
    _, node_id, field = PLACES[part]
    partner = {"model_low_noise": PARTNER} if part == "high" else {}
    return changed(graph, node_id, **{field: name}, **partner)


def refusal(host: comfy_server.Host, part: str, name: object) -> str:
    """The one sentence that the loader of ``part`` says of ``name`` before anything runs."""
    with pytest.raises(comfy_server.Refused) as caught:
        host.run(graph_of(part, name))
    ((node_id, told),) = caught.value.answer["node_errors"].items()
    assert node_id == PLACES[part][1]
    (error,) = told["errors"]
    sentence: str = error["details"]
    return sentence


@pytest.fixture(scope="module")
def zoo(host) -> Iterator[dict[str, tuple[str, Path]]]:
    """The files of the chosen kinds in the server's folders: kind -> (name in the list, path)."""
    places, folders = {}, []
    write(host.base / "models" / files.DIFFUSION_MODELS / PARTNER, expert(seed=2))
    for number, (name, kind) in enumerate(CHOSEN.items()):
        root = host.base / "models" / PLACES[kind.part][0]
        folder = root / f"zoo{number}"
        folder.mkdir()
        folders.append(folder)
        path = kind.make(folder)
        listed = str(path.relative_to(root))
        places[name] = f"{listed}/" if path.is_dir() else listed, path
    yield places
    for folder in folders:
        shutil.rmtree(folder)
    (host.base / "models" / files.DIFFUSION_MODELS / PARTNER).unlink()


@pytest.mark.parametrize(
    "kind", [k for n, k in CHOSEN.items() if n not in IN_THE_RUN], ids=lambda k: k.name
)
def test_refused_before_the_run(host, zoo, kind: Kind) -> None:
    name, path = zoo[kind.name]
    before = len(host.log.read_bytes())
    sentence = refusal(host, kind.part, name)
    assert kind.words in sentence
    assert sentence.isprintable()
    assert shown(path.name) in sentence
    assert "; " in sentence
    assert not sentinel(path).exists(), "code of a pickle has run"
    log = host.log.read_bytes()[before:].decode(errors="replace")
    assert "Traceback" not in log


@pytest.mark.parametrize("name", sorted(IN_THE_RUN))
def test_refused_when_it_meets_its_expert(host, zoo, name) -> None:
    with pytest.raises(comfy_server.HostError) as caught:
        host.run(graph_of("lora", zoo[name][0]))
    assert KINDS[name].words in str(caught.value)
    assert "; " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("part", PLACES)
@pytest.mark.parametrize("carrier", [code_archive, code_pickle])
@pytest.mark.parametrize("ending", ["pth", "safetensors", "ckpt"])
def test_no_pickle_runs(host, part, carrier, ending) -> None:
    folder = host.base / "models" / PLACES[part][0] / "pickles"
    folder.mkdir(exist_ok=True)
    path = carrier(folder / f"weights.{ending}")
    try:
        assert "weights" in refusal(host, part, f"pickles/{path.name}")
        assert not sentinel(path).exists()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def secrets(host) -> Iterator[list[Path]]:
    """Good weights just outside the model folders."""
    places = [host.base, host.base / "models", host.base / "models" / "secret"]
    made = []
    for place in places:
        place.mkdir(exist_ok=True)
        for kind in (files.VAE_FILE, "secret.safetensors"):
            made.append(place / kind)
            shutil.copy(host.base / "models" / files.VAE / files.VAE_FILE, made[-1])
    yield made
    for path in made:
        path.unlink()
    places[-1].rmdir()


# {base} is the server's folder, {good} a name that is in the list, {here} the folder of that list.
NAMES = {
    "above": "../secret.safetensors",
    "further above": "../../secret.safetensors",
    "beside": "../secret/secret.safetensors",
    "through a folder": "{good}/../../secret.safetensors",
    "through a folder that is none": "none/../../secret.safetensors",
    "absolute": "{base}/models/secret.safetensors",
    "absolute with two slashes": "/{base}/models/secret.safetensors",
    "absolute to the listed file": "{base}/models/{here}/{good}",
    "Windows, above": "..\\secret.safetensors",
    "Windows, mixed": "..\\../secret.safetensors",
    "Windows drive": "C:\\secret.safetensors",
    "Windows share": "\\\\server\\share\\secret.safetensors",
    "NUL": "{good}\0.png",
    "NUL above": "../secret.safetensors\0",
    "URL": "https://example.com/secret.safetensors",
    "file URL": "file://{base}/models/secret.safetensors",
    "home": "~/secret.safetensors",
    "variable": "$HOME/secret.safetensors",
    "trailing slash": "{good}/",
    "trailing dot": "{good}/.",
    "leading dot": "./{good}",
    "two slashes": "//{good}",
    "space": " {good}",
    "new line": "{good}\n",
    "percent": "..%2fsecret.safetensors",
    "full width": "．．／secret.safetensors",
    "device": "/dev/zero",
    "process": "/proc/self/environ",
    "above, as a folder": "../secret/",
    "the folder itself": "./",
    "slash": "/",
    "nothing": "",
    "endless": "x" * 100_000,
    "number": 7,
    "truth": True,
    "table": {"name": "../secret.safetensors"},
}  # fmt: skip
GOOD = {"high": files.HIGH, "vae": files.VAE_FILE, "text": files.TEXT_FILE, "lora": files.LORA}


@pytest.mark.parametrize("part", PLACES)
def test_no_name_leaves_the_model_folders(host, secrets, part) -> None:
    for what, given in NAMES.items():
        name = given
        if isinstance(given, str):
            name = given.format(base=host.base, good=GOOD[part], here=PLACES[part][0])
        with Canaries(secrets) as birds:
            sentence = refusal(host, part, name)
            assert not birds.opened(), what
        refused = ("is not a choice", f"is not in the {PLACES[part][0]} folders")
        assert sentence.partition("; ")[0].endswith(refused), what
        assert sentence.isprintable(), what
        assert len(sentence) < 1000, what


def test_the_same_canary_notices_a_listed_file(host, secrets) -> None:
    """Without this the test above would prove nothing."""
    inside = host.base / "models" / files.VAE / "canary.safetensors"
    shutil.copy(secrets[0], inside)
    broken = write(host.base / "models" / files.VAE / "broken.safetensors", {"a": torch.zeros(1)})
    try:
        with Canaries([inside, broken]) as birds:
            refusal(host, "vae", broken.name)
            assert set(birds.opened()) == {broken}
    finally:
        inside.unlink()
        broken.unlink()


def test_a_linked_model_folder_is_followed(host, tmp_path_factory) -> None:
    """People keep models on another disk; the link is theirs, not the workflow's."""
    elsewhere = tmp_path_factory.mktemp("disk")
    models = host.base / "models" / files.VAE
    shutil.copy(models / files.VAE_FILE, elsewhere / "elsewhere.safetensors")
    (models / "linked").symlink_to(elsewhere)
    try:
        graph = {
            VAE: node("WanExpertsVAELoader", vae="linked/elsewhere.safetensors"),
            "9": node("WanExpertsEmptyLatent", width=32, height=32, frames=1, batch_size=1),
            "10": node("WanExpertsDecode", vae=(VAE, 0), samples=("9", 0)),
            "11": node("PreviewImage", images=("10", 0)),
        }
        assert host.run(graph)
    finally:
        (models / "linked").unlink()


def test_a_good_run_follows(host, zoo) -> None:
    """None of the refused files left anything behind."""
    assert host.run(base_graph(noise_seed=1234))
