"""What made some latents, written down at the end of a run and found again where they arrive.

The record travels in the LATENT, under a key that nodes which copy the dictionary carry on. A node of
ComfyUI that samples (SamplerCustomAdvanced) lets nothing be put there: for it, and for latents that come
back from a file, the records of runs since ComfyUI started are kept by the digest of their latents.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import comfy.ldm.modules.attention
import comfyui_version
import torch
from torch import Tensor, nn

from ...wan import __version__
from ...wan.manifest import KEY as TAG_KEY
from ...wan.manifest import (
    LoraMark,
    Manifest,
    Mark,
    StageRecord,
    from_json,
    tensors_digest,
    text_digest,
    to_json,
)
from ...wan.state import tensor_digest
from ...wan.transformer import Memory
from .compiled import KEY as COMPILED
from .compiled import compiled_as
from .lora import DeltaPatch
from .sampling import pure_noise
from .start import Start

log = logging.getLogger(__name__)

KEY = "wan_manifest"
"""Of the LATENT dictionary: plain JSON."""
TEXT = "wan_text"
"""Of a conditioning: the prompt as it was typed."""
FOREIGN = "patches of another node"
KEPT = 64
"""Records that are remembered; each has some kilobytes."""
_UNTOLD = ("uuid", "model_conds", TEXT)
"""Of a conditioning: what says nothing of the picture."""
_HOOKS = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    "denoise_mask_function",
)
"""Of a MODEL's options: functions that other packs hang there."""

_records: dict[str, Manifest] = {}
_weights: WeakKeyDictionary[nn.Module, Mark] = WeakKeyDictionary()


def record_run(start: Start, result: Tensor, memory: Memory) -> None:
    """Write down a run that gave raw latents ``result`` (B, C, T, h, w) and ended in the design ``memory``.

    Trouble with that costs one sentence in the log, never the run.
    """
    try:
        manifest = write_down(start, result, memory)
    except Exception as error:  # noqa: BLE001 - MODELs of other packs may hold anything
        log.warning("the run could not be written down for Verify Wan Run: %s", error)
        return
    _records.pop(manifest.result, None)
    _records[manifest.result] = manifest
    while len(_records) > KEPT:
        del _records[next(iter(_records))]


def carry(latent: dict[str, Any]) -> dict[str, Any]:
    """A LATENT with the record of the run that made it; as it is where no run is known."""
    manifest = _records.get(tensor_digest(latent["samples"].float()))
    return latent if manifest is None else {**latent, KEY: to_json(manifest)}


def recall(latent: Mapping[str, Any]) -> Manifest | None:
    """The record of the run that made a LATENT, with the digest it has now; None if none is known."""
    digest = tensor_digest(latent["samples"].float())
    if digest in _records:
        return _records[digest]
    try:
        held = from_json(latent[KEY])
    except (KeyError, ValueError):
        return None
    return held if held.result == digest else replace(held, result=digest, changed=True)


def file_tags(latent: Mapping[str, Any], vae: Any) -> dict[str, object]:
    """What a file decoded from a LATENT by ``vae`` tells of the run; nothing where no run is known."""
    manifest = recall(latent)
    if manifest is None:
        return {}
    try:
        manifest = replace(manifest, files={**manifest.files, "vae": _vae_mark(vae)})
    except Exception as error:  # noqa: BLE001 - a VAE of another pack may be anything
        log.warning("the VAE could not be written down: %s", error)
    return {TAG_KEY: to_json(manifest)}


def write_down(start: Start, result: Tensor, memory: Memory) -> Manifest:
    """The record of a run that gave ``result``, see :func:`record_run`."""
    schedule, first = start.plan.schedule, start.models[0]
    return Manifest(
        stages=tuple(
            StageRecord(
                name=spec.name,
                boundary=spec.boundary,
                guidance=spec.guidance.points,
                weights=weights_mark(model),
                loras=loras_of(model),
                patches=patches_of(model),
                dtype=_dtype(model),
            )
            for spec, model in zip(start.plan.stages, start.models, strict=True)
        ),
        sigmas=tuple(schedule.sigmas.tolist()),
        timesteps=tuple(schedule.timesteps.tolist()),
        schedule=schedule.name,
        shift=float(start.plan.shift),
        solver=_solver(start.sampler),
        seed=start.seed,
        noise="",
        shape=tuple(result.shape),
        attention=", ".join((attention_name(), *_compiled(start), *memory.changes)),
        device=device_name(first.load_device),
        inputs=dict(_inputs(start)),
        texts=_texts(start.conds),
        versions={
            "wan": __version__,
            "torch": torch.__version__,
            "comfyui": comfyui_version.__version__,
        },
        result=tensor_digest(result.float()),
    )


def weights_mark(patcher: Any) -> Mark:
    """What a MODEL's weights are: the file for one of our loader, else a fast hash of them in memory.

    Patches do not count, also where they are already on the weights.
    """
    if (mark := getattr(patcher.model, "wan_mark", None)) is not None:
        return mark
    kept = {key: entry.weight for key, entry in patcher.backup.items()}
    return _network_mark(patcher.model, kept)


def _vae_mark(vae: Any) -> Mark:
    return getattr(vae, "wan_mark", None) or _network_mark(vae.first_stage_model, {})


def _network_mark(network: nn.Module, kept: Mapping[str, Tensor]) -> Mark:
    """Fast hash of weights in memory, of those in ``kept`` where a patch is on the others."""
    if network not in _weights:
        stored = (
            (name, _bare(kept.get(name, weight))) for name, weight in network.named_parameters()
        )
        name = type(network).__name__
        _weights[network] = Mark(name=name, digest=tensors_digest(stored), in_memory=True)
    return _weights[network]


def _bare(weight: Tensor) -> Tensor:
    """A weight as it is stored, also where another pack keeps it packed."""
    return getattr(weight, "_qdata", weight).detach().as_subclass(Tensor)


def loras_of(patcher: Any) -> tuple[LoraMark, ...]:
    """LoRAs of our node by their files; what other nodes patched as one hash of it all."""
    ours: dict[Mark, float] = {}
    others: list[tuple[str, Tensor]] = []
    settings: dict[str, str] = {}
    for key, entries in patcher.patches.items():
        here: dict[Mark, float] = {}
        for number, (strength, value, strength_model, *_) in enumerate(entries):
            if isinstance(value, DeltaPatch) and value.mark is not None:
                here[value.mark] = here.get(value.mark, 0.0) + strength
                continue
            settings[f"{key}.{number}"] = f"{strength} {strength_model}"
            others += [(f"{key}.{number}.{i}", tensor) for i, tensor in enumerate(_tensors(value))]
        ours |= here
    found = [LoraMark(file=mark, strength=strength) for mark, strength in ours.items()]
    if settings:
        digest = text_digest({**settings, "tensors": tensors_digest(others)})
        found.append(LoraMark(file=Mark(name=FOREIGN, digest=digest, in_memory=True), strength=1.0))
    return tuple(found)


def _tensors(value: Any) -> Iterable[Tensor]:
    """The tensors in a patch of ComfyUI, whatever its kind."""
    if isinstance(value, Tensor):
        yield _bare(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "weights"):
        yield from _tensors(value.weights)


def patches_of(patcher: Any) -> tuple[str, ...]:
    """Names of what else hangs on a MODEL and may change what it computes, but for compiling."""
    options = patcher.model_options
    inside = options.get("transformer_options", {})
    found = {key for key in patcher.object_patches if key != "model_sampling"}
    found |= {key for key in _HOOKS if options.get(key)}
    for group in ("patches", "patches_replace"):
        found |= {str(name) for name, held in inside.get(group, {}).items() if held}
    for group in (inside.get("wrappers", {}), getattr(patcher, "wrappers", {})):
        found |= {str(kind) for kind, held in group.items() if _keys(held) - {COMPILED}}
    if (override := inside.get("optimized_attention_override")) is not None:
        found.add(f"attention {getattr(override, '__qualname__', type(override).__name__)}")
    if getattr(patcher, "hook_patches", None):
        found.add("hooks")
    return tuple(sorted(found))


def _keys(held: Mapping[str, Sequence[Any]]) -> set[str]:
    """The keys under which wrappers of one kind hang."""
    return {str(key) for key, some in held.items() if some}


def _compiled(start: Start) -> Iterable[str]:
    """How MODELs of a run are compiled, and which where not all are in one way."""
    found: dict[str, list[str]] = {}
    for spec, model in zip(start.plan.stages, start.models, strict=True):
        found.setdefault(compiled_as(model), []).append(spec.name)
    for how, names in found.items():
        if how:
            yield how if len(found) == 1 else f"{how} on {' and '.join(names)}"


def _dtype(patcher: Any) -> str:
    dtype = getattr(patcher.model, "manual_cast_dtype", None) or patcher.model_dtype()
    return str(dtype).removeprefix("torch.")


def _solver(sampler: Any) -> str:
    """Our solver by its name, ComfyUI's sampler as such, with the settings it was given."""
    name = getattr(sampler, "wan_solver", None)
    if name is None:
        function = getattr(sampler, "sampler_function", sampler)
        made = getattr(function, "__name__", type(function).__name__)
        name = f"ComfyUI {made.removeprefix('sample_')}"
    options = getattr(sampler, "extra_options", {}) or {}
    told = [f"{key}={options[key]}" for key in sorted(options)]
    return " ".join([name, *told])


def attention_name() -> str:
    """ComfyUI's attention backend."""
    return comfy.ldm.modules.attention.optimized_attention.__name__.removeprefix("attention_")


def device_name(device: torch.device) -> str:
    """A device as a person knows it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _inputs(start: Start) -> Iterable[tuple[str, str]]:
    yield "noise", start.drawn
    for name, conds in start.conds.items():
        yield (
            name,
            text_digest(
                {
                    f"{number} {key}": _value(value)
                    for number, cond in enumerate(conds)
                    for key, value in cond.items()
                    if key not in _UNTOLD and value is not None
                }
            ),
        )
    from_noise = float(start.plan.schedule.sigmas[0]) >= pure_noise(start.plan.shift) - 1e-5
    if start.latent is not None and (start.mask is not None or not from_noise):
        yield "latent", tensor_digest(start.latent.float())
    if start.mask is not None:
        yield "mask", tensor_digest(start.mask.float())


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {tensor_digest(value.float())}"
    plain = isinstance(value, (str, int, float, bool, tuple, list))
    return str(value) if plain else type(value).__name__


def _texts(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """The prompts, where each is one text that is known."""
    return {
        name: str(held[0][TEXT])
        for name, held in conds.items()
        if len(held) == 1 and TEXT in held[0]
    }
