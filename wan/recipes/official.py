"""The command line of the official repository: ``python generate.py --task t2v-A14B ...``."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import NoReturn

from ..config import I2V_A14B_SAMPLING, T2V_A14B, SamplingConfig
from ..schedule import make_schedule
from .recipe import GPU_NOISE, Recipe

SOURCE = "the official command line"
TASKS: dict[str, SamplingConfig] = {
    "t2v-A14B": T2V_A14B.sampling,
    "i2v-A14B": I2V_A14B_SAMPLING,
}
"""Tasks of two experts and their official settings."""
PAIR_ORDER = (
    "the official pair of guidance scales is low noise first, then high noise: {low:g} and {high:g} "
    "(its configuration and Python call take a pair, its command line only one number for both)"
)
_FLAGS = ("offload_model", "convert_model_dtype", "t5_cpu", "t5_fsdp", "dit_fsdp", "ulysses_size")
"""How the official program fits on its machine: no part of the recipe."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{SOURCE} cannot be read: {message}; paste it as it was run")


def is_official(text: str) -> bool:
    """Whether a text looks like the official command line."""
    return bool(re.search(r"\bgenerate\.py\b|--(task|sample_\w+|base_seed)\b", text))


def read_official(text: str) -> Recipe:
    """The run of an official command line; what it leaves out has the official default.

    Raises:
        ValueError: it cannot be read, or is for a model of one network.
    """
    given, others = _parser().parse_known_args(_words(text))
    if given.task not in TASKS:
        raise ValueError(
            f"task {given.task} is no pair of experts; paste a command for {' or '.join(TASKS)}"
        )
    if given.sample_solver not in ("unipc", "dpm++"):
        raise ValueError(
            f"sample_solver {given.sample_solver!r} is not an official one; use unipc or dpm++"
        )
    own = TASKS[given.task]
    steps = own.steps if given.sample_steps is None else given.sample_steps
    shift = own.shift if given.sample_shift is None else given.sample_shift
    low, high, order = _scales(given.sample_guide_scale, own)
    width, height = _size(given.size)
    return Recipe(
        source=SOURCE,
        schedule=make_schedule(given.sample_solver, steps=steps, shift=shift),
        shift=shift,
        boundary=own.boundary,
        guidance_high=high,
        guidance_low=low,
        solver=given.sample_solver,
        seed=given.base_seed if given.base_seed >= 0 else None,
        width=width,
        height=height,
        num_frames=given.frame_num or own.num_frames,
        prompt=given.prompt,
    ).with_notes(
        order,
        GPU_NOISE,
        "" if given.base_seed >= 0 else "without --base_seed every run draws another seed",
        "the prompt was rewritten by a language model before the run (--use_prompt_extend); "
        "paste the rewritten one, which its log tells" if given.use_prompt_extend else "",
        "it starts from an image, which this pack samples but does not load"
        if given.task.startswith("i2v") else "",
        f"not read: {' '.join(others)}" if others else "",
    )  # fmt: skip


def official_call(values: dict[str, object]) -> Recipe:
    """The same from the arguments of a Python call of the official ``generate``.

    Its own defaults differ from those of the command line: 50 steps, shift 5, scale 5 for both.
    """
    solver = str(values.get("sample_solver", "unipc"))
    steps, shift = int(_number(values, "sampling_steps", 50)), _number(values, "shift", 5.0)
    low, high, order = _scales(values.get("guide_scale", 5.0), T2V_A14B.sampling)
    seed = int(_number(values, "seed", -1))
    size = values.get("size")
    width, height = size if isinstance(size, tuple) and len(size) == 2 else (1280, 720)
    prompt, negative = values.get("input_prompt"), values.get("n_prompt")
    return Recipe(
        source="a Python call of the official code",
        schedule=make_schedule(solver, steps=steps, shift=shift),
        shift=shift,
        boundary=T2V_A14B.sampling.boundary,
        guidance_high=high,
        guidance_low=low,
        solver=solver,
        seed=seed if seed >= 0 else None,
        width=int(width),
        height=int(height),
        num_frames=int(_number(values, "frame_num", 81)),
        prompt=prompt if isinstance(prompt, str) else None,
        negative_prompt=negative if isinstance(negative, str) and negative else None,
    ).with_notes(order, GPU_NOISE)


def _words(text: str) -> list[str]:
    """The words of a command; what stands before the first option is the program."""
    plain = re.sub(r"\\\s*\n", " ", text)
    # A shell joins quoted pieces, as in "--prompt '"$PROMPT"'"; a prompt with an apostrophe does not.
    try:
        words = shlex.split(plain, comments=True)
    except ValueError:
        words = plain.replace("'", "").replace('"', "").split()
    start = next((i for i, word in enumerate(words) if word.startswith("generate.py")), -1)
    return words[start + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="generate.py", add_help=False)
    parser.add_argument("--task", default="t2v-A14B")
    parser.add_argument("--size", default="1280*720")
    for name in ("frame_num", "sample_steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--sample_shift", type=float)
    parser.add_argument("--sample_guide_scale", nargs="+")
    parser.add_argument("--sample_solver", default="unipc")
    parser.add_argument("--base_seed", type=int, default=-1)
    parser.add_argument("--prompt")
    parser.add_argument("--use_prompt_extend", action="store_true")
    for name in ("ckpt_dir", "image", "save_file", *_FLAGS):
        parser.add_argument(f"--{name}", nargs="?")
    for name in ("method", "model", "target_lang"):
        parser.add_argument(f"--prompt_extend_{name}")
    return parser


def _scales(given: object, own: SamplingConfig) -> tuple[float, float, str]:
    """Scales of low and high noise, and what to say of their order."""
    if given is None:
        return own.guidance_low, own.guidance_high, ""
    numbers = [float(n) for n in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", str(given))]
    if len(numbers) not in (1, 2):
        raise ValueError(
            f"guidance {given} is neither one number nor two; use one for both experts, "
            "or low noise and high noise such as 3.0,4.0"
        )
    low, high = numbers[0], numbers[-1]
    told = PAIR_ORDER.format(low=low, high=high) if len(numbers) == 2 else ""
    return low, high, told


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\s*[*x]\s*(\d+)", text)
    if found is None:
        raise ValueError(f"size {text!r} is not width*height; use one such as 1280*720")
    return int(found[1]), int(found[2])


def _number(values: dict[str, object], name: str, default: float) -> float:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}={value!r} is not a number; write the number into the text")
    return value
