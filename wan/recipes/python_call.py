"""Python that calls a pipeline: diffusers' WanPipeline or the official ``generate``. Read, never run."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping

from ..schedule import Schedule
from .grids import diffusers_dpm, diffusers_euler, diffusers_unipc
from .official import official_call
from .recipe import GPU_NOISE, I2V_BOUNDARY, T2V_BOUNDARY, Recipe

SOURCE = "a diffusers call"
PUBLISHED_SHIFT = 3.0
"""``flow_shift`` in the scheduler configuration of the published Diffusers folders."""
SCALE, STEPS, WIDTH, HEIGHT, FRAMES = 5.0, 50, 832, 480, 81
"""Defaults of ``WanPipeline.__call__``."""
_CALLED = {"num_inference_steps", "guidance_scale", "guidance_scale_2"}
_OFFICIAL = {"sampling_steps", "guide_scale"}
_SCHEDULERS: dict[str, tuple[str, str, Callable[[int, float], Schedule]]] = {
    "UniPCMultistepScheduler": ("flow_shift", "unipc", diffusers_unipc),
    "DPMSolverMultistepScheduler": ("flow_shift", "dpm++", diffusers_dpm),
    "FlowMatchEulerDiscreteScheduler": ("shift", "euler", diffusers_euler),
}
"""Class -> its argument for the shift, our solver, its noise levels."""
_OTHER_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_CHANGED = (
    "these are the noise levels of UniPCMultistepScheduler since diffusers 0.37; before, it had those of "
    "the official code (schedule unipc here)"
)


def is_python(text: str) -> bool:
    """Whether a text looks like a call of a pipeline."""
    return any(re.search(rf"\b{name}\s*=", text) for name in _CALLED | _OFFICIAL)


def read_python(text: str) -> Recipe:
    """The run of the last call of a pipeline in a piece of Python.

    Raises:
        ValueError: it is no Python, calls no pipeline, or a number comes from elsewhere.
    """
    script = _Script(_parse(text))
    official = script.last_call(_OFFICIAL)
    if official is not None:
        return official_call(script.keywords(official))
    call = script.last_call(_CALLED)
    if call is None:
        raise ValueError(
            "the Python holds no call with num_inference_steps or guidance_scale; "
            "paste the lines that make the pipeline and the call of it"
        )
    return _diffusers(script, script.keywords(call))


def _diffusers(script: _Script, given: Mapping[str, object]) -> Recipe:
    boundary, assumed = _boundary(script)
    scheduler, shift, told = _scheduler(script)
    _, solver, grid = _SCHEDULERS[scheduler]
    high = _number(given, "guidance_scale", SCALE)
    low = high if given.get("guidance_scale_2") is None else _number(given, "guidance_scale_2", 0)
    off = high <= 1 and low != 1
    seed, device = script.seed()
    prompt, negative = given.get("prompt"), given.get("negative_prompt")
    return Recipe(
        source=SOURCE,
        schedule=grid(int(_number(given, "num_inference_steps", STEPS)), shift),
        shift=shift,
        boundary=boundary,
        guidance_high=1.0 if high <= 1 else high,
        guidance_low=1.0 if high <= 1 else low,
        solver=solver,
        seed=seed,
        width=int(_number(given, "width", WIDTH)),
        height=int(_number(given, "height", HEIGHT)),
        num_frames=int(_number(given, "num_frames", FRAMES)),
        prompt=prompt if isinstance(prompt, str) else None,
        negative_prompt=negative if isinstance(negative, str) else None,
    ).with_notes(
        "guidance_scale is that of the high-noise expert, guidance_scale_2 of the low-noise one",
        f"guidance_scale {high:g} turns guidance off for both experts there, whatever "
        "guidance_scale_2 says" if off else "",
        assumed,
        told,
        _CHANGED if solver == "unipc" else "",
        "no negative prompt means an empty one there, the official one here"
        if negative in (None, "") else "",
        "" if seed is not None else "without a generator every run draws another seed",
        GPU_NOISE if seed is not None and device != "cpu" else "",
        "LoRAs are loaded there; apply them here, too" if script.names("load_lora_weights") else "",
    )  # fmt: skip


def _boundary(script: _Script) -> tuple[float, str]:
    """Where the experts change, and what to say if the text does not tell."""
    for call in script.calls():
        given = script.keywords(call)
        if isinstance(value := given.get("boundary_ratio"), (int, float)):
            return float(value), ""
    texts = " ".join(script.strings())
    if re.search(r"Wan2\.1|5B", texts):
        raise ValueError(
            "the pipeline is made of one network, not of two experts; "
            "paste a call for Wan2.2 A14B, or name its boundary_ratio"
        )
    image = "ImageToVideo" in script.source or "I2V" in texts
    level = I2V_BOUNDARY if image else T2V_BOUNDARY
    return level, f"boundary_ratio is not told; {level:g} is that of the published folder"


def _scheduler(script: _Script) -> tuple[str, float, str]:
    """Class of the scheduler, its shift, and what to say if the text does not tell."""
    for call in reversed(list(script.calls())):
        name = next((part for part in _dotted(call.func) if part.endswith("Scheduler")), None)
        if name is None or _dotted(call.func)[-1] == "from_pretrained":
            continue
        if name not in _SCHEDULERS:
            raise ValueError(
                f"scheduler {name} is not known here; use {' or '.join(_SCHEDULERS)} there, or Wan "
                "Sigmas here"
            )
        given = script.keywords(call)
        odd = [key for key in _OTHER_GRIDS if given.get(key)]
        if odd:
            raise ValueError(
                f"{odd[0]} is not known here; paste a recipe without it, or build the noise levels "
                "with a core scheduler"
            )
        key = _SCHEDULERS[name][0]
        kept = "from_config" in _dotted(call.func)
        if key in given or not kept:
            return name, _number(given, key, 1.0), ""
        return name, PUBLISHED_SHIFT, _published(key)
    return "UniPCMultistepScheduler", PUBLISHED_SHIFT, _published("scheduler")


def _published(what: str) -> str:
    return f"{what} is not told; the published folders come with UniPC and flow_shift {PUBLISHED_SHIFT:g}"


class _Script:
    """Parsed Python and the constants it gives names to."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self.source = ast.unparse(tree)
        self._constants: dict[str, object] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if isinstance(target, ast.Name) and (value := _literal(node.value)) is not _UNKNOWN:
                    self._constants[target.id] = value

    def calls(self) -> Iterator[ast.Call]:
        """Calls in the order of the text."""
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call)]
        yield from sorted(found, key=lambda call: (call.lineno, call.col_offset))

    def last_call(self, named: set[str]) -> ast.Call | None:
        """The last call that has one of these keywords."""
        fitting = [call for call in self.calls() if named & {k.arg for k in call.keywords}]
        return fitting[-1] if fitting else None

    def keywords(self, call: ast.Call) -> dict[str, object]:
        """Keyword arguments: constants, by name or written out; others as their text in ``_Text``."""
        return {k.arg: self._value(k.value) for k in call.keywords if k.arg is not None}

    def strings(self) -> list[str]:
        """What may name a model: texts without spaces."""
        return [
            node.value
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " not in node.value
        ]

    def names(self, attribute: str) -> bool:
        """Whether a method of this name is called."""
        return any(attribute == _dotted(call.func)[-1] for call in self.calls())

    def seed(self) -> tuple[int | None, str]:
        """The number given to ``manual_seed`` and the generator's device; diffusers' default is cpu."""
        for call in self.calls():
            if _dotted(call.func)[-1] == "manual_seed" and call.args:
                value = self._value(call.args[0])
                if not isinstance(value, int):
                    return None, ""
                made = call.func.value if isinstance(call.func, ast.Attribute) else None
                words = re.findall(r"cuda|cpu|mps|xpu|npu", ast.unparse(made) if made else "")
                known = isinstance(made, ast.Call) and not (made.args or made.keywords)
                return value, words[0] if words else ("cpu" if known or made is None else "")
        return None, ""

    def _value(self, node: ast.expr) -> object:
        if isinstance(node, ast.Name) and node.id in self._constants:
            return self._constants[node.id]
        value = _literal(node)
        return _Text(ast.unparse(node)) if value is _UNKNOWN else value


class _Text:
    """An expression whose value the text does not tell."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


_UNKNOWN = object()


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNKNOWN


def _dotted(node: ast.expr) -> list[str]:
    """``a.b.c`` as its parts; what is no name gives one empty part."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else ["", *parts]


def _number(given: Mapping[str, object], name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}={value!r} is no number in the text; write the number itself")
    return value


def _parse(text: str) -> ast.Module:
    """The text as Python: as it is, without prompts of a console, or as bare keyword arguments."""
    plain = textwrap.dedent(re.sub(r"(?m)^[ \t]*(>>>|\.\.\.) ?", "", text))
    tree = _parsed(plain) or _parsed(f"call(\n{plain.strip().rstrip(',')}\n)")
    if tree is None:
        raise ValueError(
            "the text looks like a Python call but is not whole; paste it from its first line to its "
            "last bracket"
        )
    return tree


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
