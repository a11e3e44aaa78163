"""What differs between two runs, in words, and whether it can change the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from ..experts import select
from ..files import shown
from ..guidance import Guidance
from .record import LoraMark, Manifest, Mark, StageRecord

OTHER = "another picture"
DETAILS = "small details of the picture may change"
SAME = "the picture does not change"
UNKNOWN = "the records cannot tell"
_PART = {"positive": "prompt", "negative": "negative prompt"}
_CLOSE = 1e-9
"""Noise levels and scales this close are the same number."""


def differences(first: Manifest, second: Manifest) -> list[str]:
    """What differs, one sentence each, the weightiest kinds first; empty if nothing does."""
    found = [
        *_schedule(first, second),
        *_stages(first, second),
        *_inputs(first, second),
        *_plain("clip", first.clip, second.clip, OTHER),
        *_plain("batch", first.shape[0], second.shape[0], OTHER),
        *_plain("solver", first.solver, second.solver, OTHER),
        *_plain("after the run", _after(first), _after(second), OTHER),
        *_plain("attention", first.attention, second.attention, DETAILS),
        *_plain("device", first.device, second.device, DETAILS),
        *_versions(first.versions, second.versions),
    ]
    both = first.result and second.result
    if both and first.result != second.result and not found:
        found.append("the latents differ, although nothing that was written down of the runs does")
    return found


def verdict(first: Manifest, second: Manifest) -> str:
    """The whole comparison as text: one line on the latents, then a line for each difference."""
    lines = differences(first, second)
    if first.result and first.result == second.result:
        head = "the same latents, bit for bit"
    elif first.result and second.result:
        head = "the latents differ"
    else:
        head = "the same run" if not lines else "not the same run"
    return "\n".join([head, *lines])


def _plain(what: str, first: object, second: object, effect: str) -> Iterator[str]:
    if first != second:
        yield f"{what}: {_word(first)} against {_word(second)}; {effect}"


def _word(value: object) -> str:
    if value is None or value == "":
        return "not told"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _after(manifest: Manifest) -> str:
    return "the latents were worked on" if manifest.changed else "nothing"


def _schedule(first: Manifest, second: Manifest) -> Iterator[str]:
    if first.steps != second.steps:
        yield f"steps: {first.steps} against {second.steps}; {OTHER}"
        return
    apart = [abs(a - b) for a, b in zip(first.sigmas, second.sigmas, strict=True)]
    told = [abs(a - b) for a, b in zip(first.timesteps, second.timesteps, strict=True)]
    if max(apart) > _CLOSE:
        place = next(i for i, distance in enumerate(apart) if distance > _CLOSE)
        effect = OTHER if max(apart) > 1e-6 else DETAILS
        yield (
            f"noise levels: {_grid(first)} against {_grid(second)}, different from step {place + 1} on, "
            f"by {max(apart):.2g} at most; {effect}"
        )
    elif max(told) > _CLOSE:
        yield f"timesteps told to the network: different by {max(told):.2g} at most; {OTHER}"
    elif _grid(first) != _grid(second):
        yield f"schedule: {_grid(first)} against {_grid(second)}, the same noise levels; {SAME}"


def _grid(manifest: Manifest) -> str:
    return f"{manifest.schedule} with shift {manifest.shift:g}"


def _stages(first: Manifest, second: Manifest) -> Iterator[str]:
    if len(first.stages) != len(second.stages):
        yield f"stages: {len(first.stages)} against {len(second.stages)}; {OTHER}"
        return
    owners = _owners(first), _owners(second)
    boundaries = [[stage.boundary for stage in run.stages] for run in (first, second)]
    if first.steps == second.steps and owners[0] != owners[1]:
        ends = [
            [sum(o <= i for o in owner) for i in range(len(first.stages) - 1)] for owner in owners
        ]
        yield f"switch: after step {_list(ends[0])} against {_list(ends[1])}; {OTHER}"
    elif boundaries[0] != boundaries[1]:
        effect = SAME if first.steps == second.steps else OTHER
        yield (
            f"boundary: {_list(boundaries[0][:-1])} against {_list(boundaries[1][:-1])}"
            f"{', the same steps' if effect is SAME else ''}; {effect}"
        )
    for index, pair in enumerate(zip(first.stages, second.stages, strict=True)):
        used = [first.sigmas[i] for i, owner in enumerate(owners[0]) if owner == index]
        yield from _stage(*pair, used)


def _owners(manifest: Manifest) -> list[int]:
    """The stage of each step, latched as :func:`wan.experts.route` does."""
    boundaries = [stage.boundary for stage in manifest.stages]
    due = (select(boundaries, timestep / 1000) for timestep in manifest.timesteps)
    return list(accumulate(due, max))


def _stage(first: StageRecord, second: StageRecord, used: list[float]) -> Iterator[str]:
    """Differences of one stage that runs at the noise levels ``used``."""
    name = first.name
    idle = SAME if not used else ""
    scales = Guidance(first.guidance), Guidance(second.guidance)
    if first.guidance != second.guidance:
        equal = all(abs(scales[0].at(level) - scales[1].at(level)) <= _CLOSE for level in used)
        yield f"guidance of {name}: {scales[0]} against {scales[1]}; {SAME if equal else OTHER}"
    yield from _mark(f"weights of {name}", first.weights, second.weights, idle)
    if not _same_loras(first.loras, second.loras):
        yield (
            f"LoRAs on {name}: {_list(map(_lora, first.loras))} against "
            f"{_list(map(_lora, second.loras))}; {idle or OTHER}"
        )
    yield from _plain(
        f"patches on {name}", _list(first.patches), _list(second.patches), idle or OTHER
    )
    yield from _plain(f"precision of {name}", first.dtype, second.dtype, idle or DETAILS)


def _same_loras(first: tuple[LoraMark, ...], second: tuple[LoraMark, ...]) -> bool:
    """Whether the same files are on with the same strengths; in which order does not matter."""

    def sums(loras: tuple[LoraMark, ...]) -> dict[str, float]:
        found: dict[str, float] = {}
        for lora in loras:
            key = lora.file.digest or lora.file.name
            found[key] = found.get(key, 0.0) + lora.strength
        return {key: strength for key, strength in found.items() if strength}

    one, other = sums(first), sums(second)
    return one.keys() == other.keys() and all(abs(one[k] - other[k]) <= _CLOSE for k in one)


def _lora(lora: LoraMark) -> str:
    return f"{_marked(lora.file)} at {lora.strength:g}"


def _marked(mark: Mark | None) -> str:
    if mark is None:
        return "none"
    return f"{mark.name} ({mark.digest[:8]})" if mark.digest else mark.name


def _mark(what: str, first: Mark | None, second: Mark | None, effect: str = "") -> Iterator[str]:
    if first == second:
        return
    told = f"{what}: {_marked(first)} against {_marked(second)}"
    if first is None or second is None or not (first.digest and second.digest):
        yield f"{told}; {effect or UNKNOWN}"
    elif first.in_memory != second.in_memory:
        yield f"{told}, one known by its file, one by its weights in memory; {effect or UNKNOWN}"
    elif first.digest == second.digest:
        yield f"{told}, the same numbers; {SAME}"
    else:
        yield f"{told}; {effect or OTHER}"


def _inputs(first: Manifest, second: Manifest) -> Iterator[str]:
    yield from _noise(first, second)
    for part, name in _PART.items():
        one, other = first.texts.get(part), second.texts.get(part)
        encoded = first.inputs.get(part), second.inputs.get(part)
        if one is not None and other is not None and one != other:
            yield f"{name}: {shown(repr(one))} against {shown(repr(other))}; {OTHER}"
        elif None not in encoded and encoded[0] != encoded[1]:
            why = " as the text encoder gives it" if one is not None and one == other else ""
            yield f"{name}{why}: different numbers; {OTHER}"
        elif (one is None or other is None) and None in encoded:
            yield f"{name}: known as text in one record only; {UNKNOWN}"
    for part in ("latent", "mask"):
        if first.inputs.get(part) != second.inputs.get(part):
            yield f"{part} the run started from: not the same; {OTHER}"
    equal = all(
        first.inputs.get(part) is not None and first.inputs.get(part) == second.inputs.get(part)
        for part in _PART
    )
    for key, name, effect in (
        ("text_encoder", "text encoder", SAME if equal else ""),
        ("vae", "VAE", ""),
    ):
        marks = first.files.get(key), second.files.get(key)
        if None not in marks:  # else one record does not speak of it
            yield from _mark(name, *marks, effect)


def _noise(first: Manifest, second: Manifest) -> Iterator[str]:
    drawn = first.inputs.get("noise"), second.inputs.get("noise")
    seeds = first.seed, second.seed
    known = None not in drawn
    effect = (SAME if drawn[0] == drawn[1] else OTHER) if known else OTHER
    if seeds[0] != seeds[1]:
        told = "seed" if effect == OTHER else "seed of the same noise"
        yield f"{told}: {_word(seeds[0])} against {_word(seeds[1])}; {effect}"
    elif first.noise and second.noise and first.noise != second.noise:
        yield f"noise: drawn as {first.noise} against {second.noise}; {effect}"
    elif known and drawn[0] != drawn[1] and first.shape == second.shape:
        yield f"noise: not the same, although the seeds are; {OTHER}"


def _versions(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*first, *second}):
        yield from _plain(f"version of {name}", first.get(name), second.get(name), DETAILS)


def _list(values: object) -> str:
    told: Callable[[object], str] = _word
    return ", ".join(told(value) for value in values) or "none"  # type: ignore[attr-defined]
