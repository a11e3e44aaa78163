"""Settings of other programs as runs of this one: the same noise levels, experts and guidance."""

from __future__ import annotations

import json

from .grids import HostSigmas, host_sigmas
from .ksamplers import is_graph, read_ksamplers
from .lightx2v import is_lightx2v, read_lightx2v
from .official import is_official, read_official
from .python_call import is_python, read_python
from .recipe import Recipe, command, nearest_schedule, report

__all__ = [
    "HostSigmas",
    "Recipe",
    "command",
    "host_sigmas",
    "nearest_schedule",
    "read_recipe",
    "report",
]

LIMIT = 4_000_000
"""Characters of a text; a workflow with everything in it has a tenth of that."""
WHAT_CAN_BE_PASTED = (
    "paste the official command (python generate.py --task t2v-A14B ...), a diffusers call "
    "(pipe(..., guidance_scale=...)), a LightX2V JSON configuration, or a ComfyUI graph with two chained "
    "KSamplerAdvanced"
)


def read_recipe(text: str, sigmas_of: HostSigmas = host_sigmas) -> Recipe:
    """The run that settings of another program describe.

    Args:
        text: a command, a piece of Python, or JSON. Nothing in it is run.
        sigmas_of: ComfyUI's schedulers; without ComfyUI the plain ones are known.

    Raises:
        ValueError: it is none of these, or says what cannot be run; one sentence tells.
    """
    text = text.strip().lstrip("\ufeff")
    if not text:
        raise ValueError(f"nothing was pasted; {WHAT_CAN_BE_PASTED}")
    if len(text) > LIMIT:
        raise ValueError(
            f"the text has {len(text)} characters, more than any settings; {WHAT_CAN_BE_PASTED}"
        )
    if text[0] in "{[":
        return _read_json(text, sigmas_of)
    if is_official(text):
        return read_official(text)
    if is_python(text):
        return read_python(text)
    raise ValueError(f"{text[:40]!r} is no recipe that is known here; {WHAT_CAN_BE_PASTED}")


def _read_json(text: str, sigmas_of: HostSigmas) -> Recipe:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the text looks like JSON but is not whole ({error}); copy it from the first bracket to "
            "the last"
        ) from error
    if is_lightx2v(content):
        return read_lightx2v(content)
    if is_graph(content):
        return read_ksamplers(content, sigmas_of)
    raise ValueError(f"the JSON is no recipe that is known here; {WHAT_CAN_BE_PASTED}")
