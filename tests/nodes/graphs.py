"""API graphs for the host suite."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from . import random_weights as files

Graph = dict[str, Any]
LOADER, TEXT, VAE, ENCODE, EMPTY, SAMPLER, VIDEO, SAVE = "12345678"

PROMPT, NEGATIVE = "a red circle", "white background"
WIDTH, HEIGHT, FRAMES, STEPS, SEED = 64, 48, 9, 6, 5
SAMPLING = {
    "noise_seed": SEED,
    "steps": STEPS,
    "cfg_high_noise": 3.0,
    "cfg_low_noise": 2.0,
    "sampler_name": "unipc",
    "scheduler": "unipc",
    "sigma_shift": 5.0,
    "switch": "auto",
    "boundary": 0.875,
    "switch_step": 3,
    "resume": "off",  # every run of a test really runs
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node; a tuple is a link."""
    links = {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()}
    return {"class_type": class_type, "inputs": links}


def base_graph(**sampling: Any) -> Graph:
    """Random experts, prompt to saved latents; ``sampling`` overrides sampler inputs."""
    return {
        LOADER: node("WanExpertsLoader", model_high_noise=files.HIGH, model_low_noise=files.LOW),
        TEXT: node("WanExpertsTextEncoderLoader", text_encoder=files.TEXT_FILE),
        VAE: node("WanExpertsVAELoader", vae=files.VAE_FILE),
        ENCODE: node("WanExpertsTextEncode", clip=(TEXT, 0), positive=PROMPT, negative=NEGATIVE),
        EMPTY: node(
            "WanExpertsEmptyLatent", width=WIDTH, height=HEIGHT, frames=FRAMES, batch_size=1
        ),
        SAMPLER: node(
            "WanExpertsSampler",
            model_high_noise=(LOADER, 0),
            model_low_noise=(LOADER, 1),
            positive=(ENCODE, 0),
            negative=(ENCODE, 1),
            latent_image=(EMPTY, 0),
            **{**SAMPLING, **sampling},
        ),
        SAVE: node("SaveLatent", samples=(SAMPLER, 0), filename_prefix="latents/test"),
    }


def video_graph(**sampling: Any) -> Graph:
    """The base graph with its mp4."""
    graph = base_graph(**sampling)
    graph[VIDEO] = node(
        "WanExpertsDecodeToVideo",
        vae=(VAE, 0),
        samples=(SAMPLER, 0),
        fps=8.0,
        filename_prefix="video/test",
    )
    return graph


def changed(graph: Graph, node_id: str, **inputs: Any) -> Graph:
    """A copy with other inputs on one node."""
    copy = deepcopy(graph)
    copy[node_id]["inputs"].update(inputs)
    return copy


def saved_latents(host: Any, outputs: dict[str, Any], node_id: str = SAVE) -> Tensor:
    """What SaveLatent wrote."""
    path: Path = host.path(outputs[node_id]["latents"][0])
    return load_file(path)["latent_tensor"]
