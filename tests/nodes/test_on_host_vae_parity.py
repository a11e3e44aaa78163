"""Our VAE against ComfyUI's own on the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wanexperts import comfy_server
from wanexperts.tests.helpers import random_state, relative
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.shapes import latent_frames
from wanexperts.wan.vae import WanVAE

from .conftest import CHECKOUTS

SCRIPT = Path(__file__).parent / "vae_parity.py"
TOLERANCE = 1e-5  # measured: 7.6e-6
# Of the published width as many as time allows.
CASES = {16: ((1, 4, 6), (5, 2, 4), (17, 4, 2), (33, 2, 4), (81, 2, 2)), 96: ((1, 2, 4), (9, 2, 2))}


@pytest.fixture(scope="module", params=CASES, ids="dim {}".format)
def ours(request):
    vae = WanVAE(VAEConfig(dim=request.param), device=torch.device("meta")).eval()
    state = {k: torch.empty(v.shape) for k, v in vae.state_dict().items()}
    vae.load_state_dict(state, assign=True)
    state, generator = random_state(vae, seed=0), torch.Generator().manual_seed(1)
    for key in [key for key in state if key.endswith("gamma")]:
        state[key] += 0.3 * torch.randn(state[key].shape, generator=generator)
    vae.load_state_dict(state, assign=True)
    return vae.requires_grad_(False)


@pytest.mark.parametrize("checkout", CHECKOUTS, ids=lambda path: path.name)
def test_encode_and_decode_equal_comfyui(ours, checkout, tmp_path, record_property):
    generator, given = torch.Generator().manual_seed(2), {}
    for frames, height, width in CASES[ours.config.dim]:
        shape = (1, 16, latent_frames(frames), height, width)
        given[f"latents.{frames}"] = torch.randn(shape, generator=generator)
        shape = (1, 3, frames, 8 * height, 8 * width)
        given[f"video.{frames}"] = torch.rand(shape, generator=generator) * 2 - 1
    weights = {f"weights.{key}": value for key, value in ours.state_dict().items()}
    source, target = tmp_path / "given.safetensors", tmp_path / "found.safetensors"
    save_file(weights | given, source)
    helpers = os.pathsep.join(map(str, comfy_server.HELPERS))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(checkout), str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": helpers},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = load_file(target)
    assert len(wanted) == len(given) == 2 * len(CASES[ours.config.dim])
    for name, tensor in given.items():
        kind = name.partition(".")[0]
        found = ours.decode(tensor) if kind == "latents" else ours.encode(tensor)
        other = wanted[name].clamp(-1, 1) if kind == "latents" else wanted[name]
        difference = relative(found, other)
        record_property(f"vae_{'decode' if kind == 'latents' else 'encode'}_vs_comfyui", difference)
        assert difference < TOLERANCE, name
