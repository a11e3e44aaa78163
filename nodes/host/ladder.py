"""Safer and smaller ways to evaluate a MODEL inside a run, for a step that failed.

Every evaluation of our guider looks at the mode of its run's :class:`Ladder`. MODELs are not changed:
what a mode sets on a network is taken back after the evaluation.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_sub_quad
from einops import rearrange
from torch import Tensor

from ...wan.attention import plain
from ...wan.schedule import Velocity
from ...wan.sentinel import Rung
from ...wan.transformer import EXACT, Memory
from .designs import smaller_designs, using
from .interrupt import ATTENTION, check_interrupted

CONDS = "sampler_calc_cond_batch_function"
"""Where ComfyUI looks for a function to call in place of evaluating all conditionings together."""
CASTS = ("comfy_cast_weights", "comfy_force_cast_weights", "_full_precision_mm")
"""What makes a layer of ComfyUI's compute in the dtype of its input, as far as it has them."""
EVERYTHING = 1e30
"""More bytes than any device has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """How evaluations differ from the usual.

    Attributes:
        plain: attention by its formula in float32.
        wide: the whole network in float32.
        apart: conditionings one after the other.
        memory: what forwards of our networks hold how.
    """

    plain: bool = False
    wide: bool = False
    apart: bool = False
    memory: Memory = EXACT

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The ``model_options`` of an evaluation in this mode."""
        if self.apart and CONDS not in given:
            given = {**given, CONDS: _one_by_one}
        if self.plain:
            inside = given.get("transformer_options", {})
            given = {**given, "transformer_options": {**inside, ATTENTION: _plain_attention}}
        return given

    @contextmanager
    def around(self, model: Any) -> Iterator[None]:
        """While a ComfyUI model is evaluated in this mode."""
        with using(model, self.memory), self._widened(model):
            yield

    @contextmanager
    def _widened(self, model: Any) -> Iterator[None]:
        if not self.wide:
            yield
            return
        changed = [
            (layer, name)
            for layer in model.diffusion_model.modules()
            for name in CASTS
            if getattr(layer, name, None) is False
        ]
        before = model.manual_cast_dtype
        model.manual_cast_dtype = torch.float32
        for layer, name in changed:
            setattr(layer, name, True)
        try:
            yield
        finally:
            model.manual_cast_dtype = before
            for layer, name in changed:
                setattr(layer, name, False)


class Ladder:
    """The mode of a run, and the rungs that change it."""

    def __init__(
        self,
        guiders: Sequence[Any],
        current: Callable[[], Any],
        turn_back: Callable[[], None],
        memory: Memory = EXACT,
    ) -> None:
        """``guiders`` of the run's MODELs; ``current()`` is the one whose MODEL is evaluated.

        ``turn_back()`` lets earlier ones be due again; ``memory`` is the design the run begins with.
        """
        self._guiders, self._current, self._turn_back = guiders, current, turn_back
        self._usual = Mode(memory=memory)  # once memory ran out, what it takes from then on
        self._mode = self._usual

    @property
    def mode(self) -> Mode:
        """Of the evaluation under way."""
        return self._mode

    @property
    def design(self) -> Memory:
        """What the run holds how, from now on."""
        return self._usual.memory

    def usual(self, evaluate: Velocity) -> Velocity:
        """``evaluate``, which asks the guider, as this run usually does it."""

        def run(x: Tensor, sigma: float) -> Tensor:
            return self._in(self._usual, evaluate)(x, sigma)

        return run

    def numbers(self, evaluate: Velocity) -> list[Rung]:
        """Safer ways: without the attention kernel, then in float32."""

        def rung(name: str, **more: bool) -> Rung:
            return Rung(name=name, build=lambda: self._in(replace(self._usual, **more), evaluate))

        rungs = [rung("plain attention", plain=True)]
        if any(_dtype(guider.model_patcher) != torch.float32 for guider in self._guiders):
            rungs.append(rung("float32", plain=True, wide=True))
        return rungs

    def memory(self, evaluate: Velocity) -> list[Rung]:
        """Smaller ways: other models out, one conditioning at a time, less of this MODEL, other designs."""

        def rung(name: str, tidy: Callable[[], None], **more: Any) -> Rung:
            def build() -> Velocity:
                tidy()
                self._usual = replace(self._usual, **more)
                return self._in(self._usual, evaluate)

            return Rung(name=name, build=build)

        models = [guider.model_patcher for guider in self._guiders]
        return [
            rung("other models out of memory", self._unload_others),
            rung("one conditioning at a time", _tidy, apart=True),
            rung("half of the model on the device", lambda: self._unload(0.5), apart=True),
            rung("none of the model on the device", lambda: self._unload(1.0), apart=True),
            *(
                rung(design.told, _tidy, apart=True, memory=design)
                for design in smaller_designs(models, self._usual.memory)
            ),
        ]

    def of_step(self, rungs: Sequence[Rung]) -> list[Rung]:
        """``rungs`` for a whole step: what is evaluated again may belong to an earlier stage."""

        def anew(rung: Rung) -> Velocity:
            velocity = rung.build()
            self._turn_back()
            return velocity

        return [replace(rung, build=partial(anew, rung)) for rung in rungs]

    def _in(self, mode: Mode, evaluate: Velocity) -> Velocity:
        def run(x: Tensor, sigma: float) -> Tensor:
            before, self._mode = self._mode, mode
            try:
                return evaluate(x, sigma)
            finally:
                self._mode = before

        return run

    def _unload_others(self) -> None:
        guider = self._current()
        kept = [guider.model_patcher, *guider.helpers]
        _tidy()
        mm.free_memory(
            EVERYTHING, guider.model_patcher.load_device, [mm.LoadedModel(model) for model in kept]
        )
        _tidy()

    def _unload(self, share: float) -> None:
        patcher = self._current().model_patcher
        patcher.partially_unload(patcher.offload_device, share * patcher.loaded_size())
        _tidy()


def _tidy() -> None:
    gc.collect()
    mm.soft_empty_cache()


def _dtype(patcher: Any) -> torch.dtype:
    dtype: torch.dtype = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    return dtype


def _one_by_one(args: dict[str, Any]) -> list[Tensor]:
    given = args["model"], args["input"], args["sigma"], args["model_options"]
    model, x, sigma, options = given
    return [
        comfy.samplers.calc_cond_batch(model, [cond], x, sigma, options)[0]
        for cond in args["conds"]
    ]


def _plain_attention(
    func: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *more: Any,
    **kw: Any,
) -> Tensor:
    """In place of ComfyUI's attention and of any other; what has a mask goes to its slow one."""
    del func
    check_interrupted()
    if mask is not None or more or kw.get("skip_reshape") or kw.get("skip_output_reshape"):
        return attention_sub_quad(q, k, v, heads, mask, *more, **kw)
    return plain(*(rearrange(t, "b l (n d) -> b l n d", n=heads) for t in (q, k, v)))
