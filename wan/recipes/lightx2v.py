"""Configurations of LightX2V: a JSON file with ``infer_steps`` and ``sample_shift``."""

from __future__ import annotations

from collections.abc import Mapping

from ..schedule import TRAIN_TIMESTEPS, make_schedule
from .grids import distilled
from .recipe import GPU_NOISE, T2V_BOUNDARY, Recipe, boundary_of_step

SOURCE = "a LightX2V configuration"
_KEYS = {"infer_steps", "sample_shift", "denoising_step_list", "sample_guide_scale"}


def is_lightx2v(content: object) -> bool:
    """Whether a JSON document is such a configuration."""
    return isinstance(content, dict) and len(_KEYS & content.keys()) >= 2


def read_lightx2v(content: Mapping[str, object]) -> Recipe:
    """The run of a configuration.

    Raises:
        ValueError: a value is missing or no number, or it is for a model of one network.
    """
    shift = _number(content, "sample_shift")
    steps = content.get("denoising_step_list")
    if steps is None and "boundary_step_index" not in content:
        scale = content.get("sample_guide_scale")
        if "boundary" not in content and not isinstance(scale, list):
            raise ValueError(
                "the configuration has neither boundary nor two guidance scales, so it is for one "
                "network; paste one of configs/wan22"
            )
        schedule = make_schedule("unipc", steps=int(_number(content, "infer_steps")), shift=shift)
        boundary = _number(content, "boundary", T2V_BOUNDARY)
        solver = "unipc"
    else:
        schedule = distilled(_step_list(steps), shift)
        boundary = boundary_of_step(schedule, int(_number(content, "boundary_step_index", 2)))
        solver = "euler"
    high, low, order = _scales(content)
    return Recipe(
        source=SOURCE,
        schedule=schedule,
        shift=shift,
        boundary=boundary,
        guidance_high=high,
        guidance_low=low,
        solver=solver,
        width=_size(content, "target_width"),
        height=_size(content, "target_height"),
        num_frames=_size(content, "target_video_length"),
    ).with_notes(
        order,
        _count(content, schedule.steps) if solver == "euler" else "",
        GPU_NOISE + "; the seed is an argument of its command line",
        _loras(content),
        _inexact(content),
    )


def _scales(content: Mapping[str, object]) -> tuple[float, float, str]:
    """Scales of high and low noise, and what to say of them."""
    if content.get("enable_cfg") is False:
        return 1.0, 1.0, "enable_cfg is false: both experts run without guidance, at scale 1"
    given = content.get("sample_guide_scale")
    pair = given if isinstance(given, list) else [given, given]
    if len(pair) != 2 or not all(_is_number(scale) for scale in pair):
        raise ValueError(
            f"sample_guide_scale={given!r} is neither a number nor a pair; "
            "use [high noise, low noise] such as [4.0, 3.0]"
        )
    high, low = map(float, pair)
    told = f"the pair of guidance scales is high noise first, then low noise: {high:g} and {low:g}"
    return high, low, told if isinstance(given, list) else ""


def _step_list(given: object) -> list[float]:
    steps = [1000, 750, 500, 250] if given is None else given
    if (
        not isinstance(steps, list)
        or not steps
        or not all(_is_number(t) and t == int(t) and 1 <= t <= TRAIN_TIMESTEPS for t in steps)
    ):
        raise ValueError(
            f"denoising_step_list={given!r} is no list of whole timesteps within 1 to 1000; "
            "use one such as [1000, 750, 500, 250]"
        )
    return steps


def _count(content: Mapping[str, object], steps: int) -> str:
    told = content.get("infer_steps", steps)
    if told == steps:
        return ""
    return f"infer_steps {told} is not used there: the list of {steps} timesteps decides"


def _loras(content: Mapping[str, object]) -> str:
    given = content.get("lora_configs")
    if not isinstance(given, list) or not given:
        return ""
    told = ", ".join(
        f"{lora.get('path')} at {lora.get('strength', 1.0)} on {lora.get('name', 'both experts')}"
        for lora in given
        if isinstance(lora, dict)
    )
    return f"LoRAs to apply with Apply LoRA to Wan Experts: {told}"


def _inexact(content: Mapping[str, object]) -> str:
    """What makes the program itself differ from the plain computation."""
    used = [
        key
        for key in ("feature_caching", "dit_quant_scheme", "changing_resolution", "sparsity_ratio")
        if content.get(key) not in (None, False, "NoCaching", "Default", "Default-Force-FP32")
    ]
    if "sparse" in str(content.get("self_attn_1_type", "")):
        used.append("self_attn_1_type")
    return f"{', '.join(used)} change the picture there and have no part here" if used else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(content: Mapping[str, object], name: str) -> int | None:
    return int(_number(content, name)) if name in content else None


def _number(content: Mapping[str, object], name: str, default: float | None = None) -> float:
    value = content.get(name, default)
    if value is None:
        raise ValueError(f"the LightX2V configuration has no {name}; paste the whole file")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}={value!r} of the LightX2V configuration is not a number; use one")
    return value
