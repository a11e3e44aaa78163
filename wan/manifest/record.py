"""What is written down of a run, and its canonical JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..experts import check_order
from ..guidance import Guidance
from ..shapes import pixel_frames, pixel_size

FORM = 1
"""Version of the fields below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Something with numbers in it, by which it is known again.

    Attributes:
        name: of the file, for people; two names for one digest are one thing.
        digest: a fast hash, see :mod:`.marks`; "" if unknown.
        in_memory: whether the hash is of weights in memory, which a file's cannot be compared with.
    """

    name: str
    digest: str
    in_memory: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraMark:
    """A LoRA on one stage.

    Attributes:
        file: which.
        strength: how strong.
    """

    file: Mark
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """One stage of a run.

    Attributes:
        name: such as ``high noise``.
        boundary: lowest noise level it runs on, as in :class:`~wan.plan.StageSpec`.
        guidance: points ``(sigma, scale)``, as in :class:`~wan.guidance.Guidance`.
        weights: the expert.
        loras: what is on it, in order.
        patches: names of what else is hung on its network, sorted.
        dtype: of its matrix products, such as ``bfloat16``.
    """

    name: str
    boundary: float
    guidance: tuple[tuple[float, float], ...]
    weights: Mark
    loras: tuple[LoraMark, ...] = ()
    patches: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What made some latents: enough to make them again, or to say what would be different.

    Attributes:
        stages: from noise to clean.
        sigmas: (N+1,) noise levels, as float32 holds them.
        timesteps: (N,) what the network was told.
        schedule: name of the schedule; ``custom`` for levels from elsewhere.
        shift: the shift behind it.
        solver: name of the solver or of ComfyUI's sampler.
        seed: of the noise; None where there is none.
        noise: how it was drawn, one of ``wan.noise.LAYOUTS``; "" for noise from elsewhere.
        inputs: digests of the tensors that went in: ``noise``, ``positive``, ``negative``, and where
            they play a part ``latent`` and ``mask``.
        texts: ``positive`` and ``negative`` prompt, where they are known as text.
        files: other files of the run: ``text_encoder``, ``vae``.
        shape: of the latents, (B, C, T, h, w).
        attention: the kernel, and after it what else rounds otherwise: ``compiled blocks``, ``keys and
            values in 8 bits``.
        device: where the network ran, with the name of the GPU.
        versions: of ``wan``, ``torch`` and, where it is there, ``comfyui``.
        result: digest of the raw float32 latents; "" while they are not known.
        changed: whether other nodes worked on the latents after the run; ``result`` is of what came out.
        form: version of this record.
    """

    stages: tuple[StageRecord, ...]
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    schedule: str
    shift: float
    solver: str
    seed: int | None
    noise: str
    shape: tuple[int, ...]
    attention: str
    device: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mark] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    result: str = ""
    changed: bool = False
    form: int = FORM

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    @property
    def clip(self) -> str:
        """Size of the clip in words."""
        height, width = pixel_size(*self.shape[-2:])
        return f"{width} x {height}, {pixel_frames(self.shape[-3])} frames"


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain JSON: texts, numbers, lists and tables."""
    plain: dict[str, Any] = json.loads(canonical(manifest))
    return plain


def canonical(manifest: Manifest) -> str:
    """Its one spelling: equal manifests give equal texts. Numbers keep every bit."""
    return json.dumps(
        dataclasses.asdict(manifest), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )


def from_json(content: object) -> Manifest:
    """The manifest behind :func:`to_json`.

    Raises:
        ValueError: it is none, or of a newer version.
    """
    form = content.get("form") if isinstance(content, dict) else None
    if isinstance(form, int) and form > FORM:
        raise ValueError(
            f"the record is of form {form}, this version knows {FORM}; update ComfyUI-WanExperts"
        )
    try:
        made: Manifest = _read(Manifest, content)
        _check_sense(made)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the record of the run is damaged ({error}); nothing can be verified"
        ) from error
    return made


def _check_sense(made: Manifest) -> None:
    """Raise ValueError unless the parts belong together as those of a run do."""
    check_order([stage.boundary for stage in made.stages])
    for stage in made.stages:
        Guidance(stage.guidance)
    if len(made.timesteps) != made.steps or len(made.shape) != 5:
        raise ValueError("its lengths disagree")
    if min((*made.timesteps, *made.shape), default=-1) < 0:
        raise ValueError("it has numbers below 0")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``: a dataclass, a tuple, a mapping by text, or a plain type, checked."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _check(isinstance(value, dict), "a table", value)
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], value[name]) for name in hints if name in value})
    if origin is tuple:
        _check(isinstance(value, list), "a list", value)
        if inner[-1] is Ellipsis:
            return tuple(_read(inner[0], part) for part in value)
        _check(len(value) == len(inner), f"{len(inner)} numbers", value)
        return tuple(_read(one, part) for one, part in zip(inner, value, strict=True))
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _check(isinstance(value, dict), "a table", value)
        return {key: _read(inner[1], part) for key, part in value.items()}
    if origin in (Union, types.UnionType):
        return None if value is None else _read(inner[0], value)
    if kind is float and type(value) in (int, float):
        _check(math.isfinite(value), "a number", value)
        return float(value)
    _check(type(value) is kind, kind.__name__, value)
    return value


def _check(fits: bool, wanted: str, value: object) -> None:
    if not fits:
        raise TypeError(f"{str(value)[:40]!r} is not {wanted}")
