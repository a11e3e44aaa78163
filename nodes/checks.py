"""What all nodes check alike: every input against its schema, in one sentence, before anything runs.

ComfyUI knows nothing of values that come over a link: the limits are written here once, for the widget
and for the check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from comfy_api.latest import io

from .host import compat

RARE = compat.accepted(io.Float.Input, {"advanced": True})
"""Options of an input that few people change: folded away by a ComfyUI that can."""
PLAIN = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool, "COMBO": str}
"""What ComfyUI makes of a widget's value where it can."""
WORDS = {"INT": "a whole number", "FLOAT": "a number", "COMBO": "a choice"}
NUMBERS = (io.Int.Input, io.Float.Input)
MANY = 12
"""Choices that a sentence names."""


class Limits(NamedTuple):
    """Smallest and largest legal value, the widget's step (None: the frontend's own), and whether
    few people change it.
    """

    low: float
    high: float
    step: float | None = None
    rare: bool = False


ALLOW_MISMATCH = (
    "Use the files although their names, headers or weights say that they do not belong together."
)
"""Tooltip of the input of that name."""

LIMITS = {
    "width": Limits(16, 8192, 16),
    "height": Limits(16, 8192, 16),
    "frames": Limits(1, 4097, 4),
    "batch_size": Limits(1, 64),
    "noise_seed": Limits(0, 0xFFFFFFFFFFFFFFFF),
    "steps": Limits(1, 1000),
    "cfg_high_noise": Limits(0.0, 100.0, 0.1),
    "cfg_low_noise": Limits(0.0, 100.0, 0.1),
    "sigma_shift": Limits(0.01, 100.0, 0.01),
    "boundary": Limits(0.0, 1.0, 0.001, rare=True),
    "switch_step": Limits(0, 1000, rare=True),
    "switch_value": Limits(0.0, 1000.0, 0.0001, rare=True),
    "cfg_motion": Limits(0.0, 100.0, 0.1, rare=True),
    "motion_until": Limits(0.0, 1000.0, 0.1, rare=True),
    "cfg": Limits(0.0, 100.0, 0.1),
    "until_value": Limits(0.0, 1000.0, 0.0001),
    "strength_high_noise": Limits(-100.0, 100.0, 0.01),
    "strength_low_noise": Limits(-100.0, 100.0, 0.01),
    "fps": Limits(0.1, 1000.0, 0.01),
}


def widget(name: str) -> dict[str, Any]:
    """``min``, ``max`` and ``step`` of the widget ``name``, and whether it is folded away."""
    limits = LIMITS[name]
    numbers = {"min": limits.low, "max": limits.high, "step": limits.step}
    return numbers | (RARE if limits.rare else {})


def check_limits(**given: float) -> None:
    """Raise ValueError for the first value outside the limits of its widget."""
    for name, value in given.items():
        low, high, *_ = LIMITS[name]
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name}={value} is not within {low:g} to {high:g}; use one that is")


def unless_linked(check: Callable[..., Any], *values: Any) -> None:
    """``check(*values)``, unless one of them comes over a link: None, as it is not known before the run."""
    if all(value is not None for value in values):
        check(*values)


class CheckedNode(io.ComfyNode):
    """A node all of whose inputs are looked at before anything runs."""

    @classmethod
    def check_inputs(cls, **given: Any) -> None:
        """What the schema cannot tell: the node's own rules. ``given`` holds None for what is linked."""

    @classmethod
    def validate_inputs(cls, input_types: Mapping[str, Any], **given: Any) -> bool:
        """Hold every input against the schema and the node's own rules.

        Asking for ``input_types``, the types of what is linked, and for all inputs leaves all of ComfyUI's
        own checks to the node.

        Raises:
            ValueError: the first problem. Were it returned, ComfyUI would repeat it for every input there
                is, right or wrong.
        """
        wanted = cls.define_schema().inputs
        for each in wanted:
            _check_kind(each, input_types, given)
        cls.check_inputs(**given)
        for each in wanted:
            _check_range(each, given.get(each.id))
        return True


def _check_kind(wanted: Any, linked: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Whether an input is there, and is a link or a value as it should be."""
    name, kind = wanted.id, wanted.get_io_type()
    is_widget = kind in PLAIN
    way = _range_of(wanted) if is_widget else f"connect a {kind}"
    if name in linked:
        if not compat.fits(linked[name], kind):
            raise ValueError(f"{name} is connected to a {linked[name]}; connect a {kind}")
    elif name not in given:
        if not wanted.optional:
            raise ValueError(f"{name} is {'missing' if is_widget else 'not connected'}; {way}")
    elif not isinstance(given[name], PLAIN.get(kind, ())):
        called = WORDS.get(kind, f"a {kind}" if is_widget else "a link")
        raise ValueError(f"{name}={given[name]!r} is not {called}; {way}")


def _check_range(wanted: Any, value: Any) -> None:
    """Whether a number is within the limits of its widget, a choice among its choices."""
    if value is None:
        return
    if isinstance(wanted, NUMBERS) and not wanted.min <= value <= wanted.max:
        told = f"is not within {_limits(wanted)}; use one that is"
    elif isinstance(wanted, io.Combo.Input) and value not in wanted.options:
        told = f"is not a choice; {_range_of(wanted)}"
    else:
        return
    raise ValueError(f"{wanted.id}={value!r} {told}")


def _range_of(wanted: Any) -> str:
    """The way out: what may be written."""
    if isinstance(wanted, NUMBERS):
        return f"use one within {_limits(wanted)}"
    if isinstance(wanted, io.Combo.Input):
        return "use one of " + (", ".join(wanted.options[:MANY]) or "the list, which is empty")
    return "write it"


def _limits(wanted: Any) -> str:
    """Of a number, whole ones in full."""
    low, high = (n if isinstance(n, int) else f"{n:g}" for n in (wanted.min, wanted.max))
    return f"{low} to {high}"
