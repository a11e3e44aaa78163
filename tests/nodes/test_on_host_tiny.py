"""Tiny decoders inside ComfyUI: equal to its own network, as VAEs, in previews and through a server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wanexperts import comfy_server
from wanexperts.tests.wan.clips import psnr
from wanexperts.tests.wan.tiny_files import NORMALIZED, RAW, write_tiny
from wanexperts.wan.checkpoint import load_decoder
from wanexperts.wan.video import read_png, to_frames

from .conftest import CHECKOUTS
from .graphs import EMPTY, HEIGHT, STEPS, WIDTH, base_graph, node

pytestmark = pytest.mark.comfy

CASES = Path(__file__).parent / "tiny_cases.py"
TOLERANCE = 1e-5  # measured: 3.2e-6 against one pass over all frames, 0 against their stream
HALF = 2e-3  # measured: 5.0e-4, of weights stored in float16


@pytest.fixture(scope="module", params=CHECKOUTS, ids=lambda path: path.name)
def found(request):
    helpers = os.pathsep.join(map(str, comfy_server.HELPERS))
    done = subprocess.run(
        [sys.executable, str(CASES), str(request.param)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": helpers},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"checkout": request.param}


@pytest.mark.parametrize("name", [NORMALIZED, RAW])
def test_the_same_frames_as_comfyui_s_own_network(found, name):
    if found[name] is None:
        assert not (found["checkout"] / "comfy" / "taesd" / "taehv.py").exists()
        pytest.skip("this ComfyUI has no tiny video decoder")
    assert [case["frames"] for case in found[name]] == [1, 5, 17, 33]
    for case in found[name]:
        assert case["spread"] > 0.1
        assert case["stream"] < TOLERANCE
        assert case["whole"] < TOLERANCE


def test_the_loader_lists_those_of_wan_wherever_they_lie(found):
    mine = f"{NORMALIZED}_mine.safetensors"
    assert sorted(found["listed"]) == [f"{RAW}.safetensors", f"{NORMALIZED}.pth", mine]


def test_they_are_vaes_that_only_decode(found):
    for name, case in found["vaes"].items():
        assert case["shape"] == [2, 9, 32, 48, 3]
        assert case["difference"] < (HALF if name.endswith("pth") else TOLERANCE)
        assert case["still_shape"] == [1, 1, 32, 48, 3]
        assert case["still"] < TOLERANCE
        assert case["asked"] == pytest.approx(1)
        assert case["refused"].startswith(f"{name} is a tiny decoder and cannot encode")


def test_previews_show_decoded_frames_in_their_colours(found):
    assert found["preview"] < 1.01  # of 255; the fraction is dropped
    assert found["preview_normalised"] < 1.5  # measured: 1.02, of weights stored in float16


def test_previews_are_comfyui_s_own_where_ours_cannot_help(found):
    colours = "Latent2RGBPreviewer"
    assert found["without"] == found["damaged"] == found["not_asked"] == colours
    assert found["other"] != "TinyPreviewer"
    assert found["no_memory"]


JPEG = b"\xff\xd8"
VAE, LATENT, OURS, CORE, VIDEO, SAVE, SAVE_CORE, ENCODE = "12345678"


def put(host, name: str, raw: torch.Tensor) -> str:
    """A file that core Load Latent lists."""
    path = host.base / "input" / f"{name}.latent"
    save_file({"latent_tensor": raw, "latent_format_version_0": torch.empty(0)}, path)
    return path.name


@pytest.mark.parametrize("frames", [1, 2])
def test_every_decoding_node_takes_them_for_clips_and_stills(host, frames):
    name = f"{NORMALIZED}_{frames}.safetensors"
    file = write_tiny(host.base / "models" / "vae_approx" / name)
    raw = torch.randn(1, 16, frames, 6, 8, generator=torch.Generator().manual_seed(frames))
    images = {"images": (OURS, 0), "filename_prefix": f"tiny/{frames}"}
    graph = {
        VAE: node("WanExpertsVAELoader", vae=name),
        LATENT: node("LoadLatent", latent=put(host, f"tiny-{frames}", raw)),
        OURS: node("WanExpertsDecode", vae=(VAE, 0), samples=(LATENT, 0)),
        CORE: node("VAEDecode", vae=(VAE, 0), samples=(LATENT, 0)),
        SAVE: node("SaveImage", **images),
        SAVE_CORE: node("SaveImage", **{**images, "images": (CORE, 0)}),
        VIDEO: node(
            "WanExpertsDecodeToVideo", vae=(VAE, 0), samples=(LATENT, 0), fps=8.0,
            filename_prefix=f"tiny/clip{frames}", format="png-sequence",
        ),
    }  # fmt: skip
    outputs = host.run(graph)
    wanted = to_frames(load_decoder(file).decode(raw)[0], 8)
    assert len(wanted) == 4 * frames - 3
    for saved in (SAVE, SAVE_CORE):
        shown = [read_png(host.path(image)) for image in outputs[saved]["images"]]
        assert (torch.stack(shown).int() - wanted.int()).abs().max() <= 1
    (folder,) = (host.output / "tiny").glob(f"clip{frames}_*")
    shown = [read_png(path) for path in sorted(folder.iterdir())]
    assert psnr(torch.stack(shown).int(), wanted.int(), 255) > 60


def test_encoding_and_names_that_do_not_tell_are_refused(host):
    folder = host.base / "models"
    write_tiny(folder / "vae_approx" / f"{RAW}_x.safetensors")
    write_tiny(folder / "vae" / "taehv.safetensors")
    graph = {
        VAE: node("WanExpertsVAELoader", vae="taehv.safetensors"),
        CORE: node("EmptyImage", width=64, height=48, batch_size=5, color=0),
        ENCODE: node("VAEEncode", pixels=(CORE, 0), vae=(VAE, 0)),
        SAVE: node("SaveLatent", samples=(ENCODE, 0), filename_prefix="tiny/x"),
    }
    with pytest.raises(comfy_server.HostError, match="does not say of which latents"):
        host.run(graph)
    graph[VAE]["inputs"]["vae"] = f"{RAW}_x.safetensors"
    with pytest.raises(comfy_server.HostError, match="is a tiny decoder and cannot encode"):
        host.run(graph)
    (folder / "vae" / "taehv.safetensors").unlink()


def test_a_run_sends_decoded_frames_where_it_is_told_to(host):
    if "def set_preview_method" not in (host.checkout / "latent_preview.py").read_text():
        pytest.skip("this ComfyUI is told at its start alone")
    file = write_tiny(host.base / "models" / "vae_approx" / f"{RAW}.safetensors")
    graph = base_graph(noise_seed=31)
    graph[EMPTY]["inputs"]["frames"] = 1
    events = list(host.events(graph, {"preview_method": "taesd"}))
    previews = [event["data"]["image"] for event in events if event["type"] == "preview"]
    pictures = [data for data in previews if data.startswith(JPEG)]
    assert len(pictures) == STEPS
    outputs = [event["data"]["output"] for event in events if event["type"] == "executed"]
    (image,) = next(output["latents"] for output in outputs if "latents" in output)
    latents = load_file(host.path(image))["latent_tensor"]
    # After the last step the estimate is the result. Below the frame there may be words.
    wanted = to_frames(load_decoder(file).decode(latents)[0], 8)[0]
    with Image.open(io.BytesIO(pictures[-1])) as picture:
        frame = picture.crop((0, 0, picture.width, round(picture.width * HEIGHT / WIDTH)))
        pixels = frame.convert("RGB").resize((WIDTH, HEIGHT)).tobytes()
    shown = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).int()
    assert psnr(shown.view_as(wanted), wanted.int(), 255) > 25  # measured: 31 dB, of JPEG
    # The previews leave the run alone.
    graph["8"]["inputs"]["filename_prefix"] = "latents/plain"
    (plain,) = host.run(graph)["8"]["latents"]
    assert torch.equal(load_file(host.path(plain))["latent_tensor"], latents)
