"""What determines a run inside ComfyUI, and each of its beginnings, as names that outlive the server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
import comfyui_version
import torch
from comfy.cli_args import args
from torch import Tensor

from ...wan import __version__
from ...wan.pipeline.keys import branch_points
from ...wan.solvers import SOLVERS
from ...wan.state import RunKeys, run_key
from .compiled import compiled_as
from .graph_key import UnknownOrigin
from .interrupt import ATTENTION
from .manifest import TEXT, attention_name, device_name, loras_of, patches_of, weights_mark
from .patches import KEY as PATCHES
from .readings import KEY as READINGS
from .start import Start

_OUTSIDE = re.compile(
    r"(^|_)(listen|port|tls|cors|upload|directory|paths|launch|preview|cache|manager|server|ci|standalone|"
    r"metadata|nodes|user|verbose|log|end|compress|api|database|assets|hashing|vae|enc)(_|$)"
)
"""Words in the names of ComfyUI's options that do not act on what a MODEL computes."""
DTYPE = "manual_cast_dtype"
"""Of a ComfyUI model: what it computes in, if not what its weights are stored in."""
OURS = (PATCHES, READINGS)
"""Keys of callbacks of this pack, none of which remembers a step."""
_UNTOLD = ("uuid", TEXT)
"""Of a conditioning: what does not act on a run."""


def name_start(start: Start) -> RunKeys:
    """The names of a run and of its beginnings up to each change of stages.

    A beginning is determined by everything but what only later stages use.

    Raises:
        UnknownOrigin: something that acts on the run has no name that lasts.
    """
    if None in start.origins:
        raise UnknownOrigin("the nodes that made a MODEL are not known")
    plan, solver = start.plan, getattr(start.sampler, "wan_solver", None)
    common = {
        "versions": [__version__, torch.__version__, comfyui_version.__version__],
        "device": [device_name(start.models[0].load_device), torch.get_num_threads()],
        "options": _options(),
        "attention": attention_name(),
        "conds": {name: [_cond(cond) for cond in held] for name, held in start.conds.items()},
        "noise": start.noise,
        "latent": start.latent,
        "mask": start.mask,
        "seed": start.seed,
        "sampler": _sampler(start.sampler),
        "sigmas": plan.schedule.sigmas,
        "timesteps": plan.schedule.timesteps,
        "shift": plan.shift,
    }
    base = run_key(common)
    marks = [_model(model) for model in start.models]

    def name(until: int) -> str:
        stages = []
        for index, spec in enumerate(plan.stages):
            steps = [step for step in plan.steps_of(index) if step < until]
            if steps:
                made = start.origins[index], marks[index], spec.guidance.points
                stages.append([steps[0], steps[-1], *made])
        return run_key({"base": base, "until": until, "stages": stages})

    branches = branch_points(plan, solver) if solver in SOLVERS else []
    return RunKeys(run=name(plan.schedule.steps), branches={step: name(step) for step in branches})


def remembering(models: Sequence[Any]) -> str:
    """What hangs on MODELs and may remember earlier steps, in words; "" for nothing.

    Caches and guidance with momentum do. What is asked for one result at a time does not: attention, a
    compiled network; nor does a dtype.
    """
    found: set[str] = set()
    for model in models:
        found |= {
            name
            for name in patches_of(model)
            if name != DTYPE and not name.startswith("attention ")
        }
        found |= {
            str(key)
            for group in model.callbacks.values()
            for key, held in group.items()
            if held and key not in OURS
        }
        found |= {str(key) for key, held in getattr(model, "injections", {}).items() if held}
    return ", ".join(sorted(found))


def _model(patcher: Any) -> list[object]:
    """A MODEL's weights and LoRAs themselves: a node may hold on to a file that was replaced since."""
    mark, loras = weights_mark(patcher), loras_of(patcher)
    override = patcher.model_options.get("transformer_options", {}).get(ATTENTION)
    dtypes = patcher.model.get_dtype(), patcher.get_model_object(DTYPE)
    return [
        type(patcher.model).__name__,
        [mark.name, mark.digest],
        [[lora.file.name, lora.file.digest, lora.strength] for lora in loras],
        [*patches_of(patcher), *filter(None, [compiled_as(patcher)])],
        [str(dtype) for dtype in dtypes],
        getattr(override, "__qualname__", str(type(override))),
    ]


def _options() -> dict[str, str]:
    return {
        name: str(value) for name, value in sorted(vars(args).items()) if not _OUTSIDE.search(name)
    }


def _cond(cond: Mapping[str, Any]) -> dict[str, object]:
    return {
        name: plain(value)
        for name, value in cond.items()
        if name not in _UNTOLD and not (name == "model_conds" and not value)
    }


def plain(value: Any) -> object:
    """What :func:`run_key` takes; raises UnknownOrigin for anything that is more than its values."""
    if value is None or isinstance(value, (str, int, float, Tensor)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    raise UnknownOrigin(
        f"{type(value).__name__} in a conditioning or a SAMPLER has no lasting name"
    )


def _sampler(sampler: Any) -> object:
    """Our solver, or a function of ComfyUI's own with its settings."""
    if type(sampler) is not comfy.samplers.KSAMPLER:
        raise UnknownOrigin(f"{type(sampler).__name__} is a SAMPLER of another pack")
    function = sampler.sampler_function
    settings = [plain(sampler.extra_options), plain(sampler.inpaint_options)]
    if (name := getattr(sampler, "wan_solver", None)) in SOLVERS:
        return ["wan", name, settings]
    home = getattr(function, "__module__", "")
    if not home.startswith("comfy.") or getattr(function, "__closure__", None) is not None:
        raise UnknownOrigin("the SAMPLER is of another pack")
    return [home, function.__qualname__, settings]
