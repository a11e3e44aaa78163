"""One guider over two experts: the noise level decides, the second is loaded when it is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...wan.experts import count_high, is_high
from ...wan.schedule import Schedule
from . import compat
from .sampling import with_schedule

log = logging.getLogger(__name__)

Conds = dict[str, list[dict[str, Any]]]
POST_CFG = "sampler_post_cfg_function"
NO_CFG1 = "disable_cfg1_optimization"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a guider needs to know of a run before it starts."""

    schedule: Schedule
    boundary: float
    shift: float
    notes: tuple[str, ...] = ()
    """What a person should know before waiting for the result."""

    @property
    def high_steps(self) -> int:
        """Steps on the high-noise expert."""
        return count_high(self.schedule, self.boundary)

    def is_high(self, sigma: float) -> bool:
        """Whether the high-noise expert is due at ``sigma``."""
        return is_high(self.schedule.level(sigma), self.boundary)


@dataclass(kw_only=True)
class _Ready:
    """An expert that is loaded, with its processed conditionings and its own options."""

    patcher: Any
    model: Any
    conds: Conds
    options: dict[str, Any]
    helpers: list[Any] = field(default_factory=list)


class ExpertsGuider(comfy.samplers.CFGGuider):
    """A GUIDER for two MODELs that runs one solver over both.

    The expert of a call follows from the noise level passed in it (ties are high); once the low
    expert has run, the high one is not called again. Both MODELs are used through clones, so what
    the caller holds does not change. The expert that starts is loaded by ComfyUI's own start of a
    run, the other at the switch, and not at all if no step needs it.
    """

    def __init__(self, high: Any, low: Any, *, cfg_high: float, cfg_low: float) -> None:
        """``high`` and ``low`` are MODELs of one latent format."""
        super().__init__(high)
        self._high, self._low = high, low
        self._cfg_high, self._cfg_low = cfg_high, cfg_low
        self._plan_for: Callable[[Tensor], RunPlan] | None = None
        self._plan: RunPlan | None = None
        self._second: comfy.samplers.CFGGuider | None = None
        self._context: dict[str, Any] = {}
        self._ready: _Ready | None = None

    def set_plan(self, plan_for: Callable[[Tensor], RunPlan]) -> None:
        """``plan_for(sigmas)`` is asked at the start of each run; it may raise ValueError."""
        self._plan_for = plan_for

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kw: Any,
    ) -> Tensor:
        """Run ``sampler`` over ``sigmas`` (N+1,); as ``CFGGuider.sample`` otherwise."""
        assert self._plan_for is not None
        if sigmas.shape[-1] < 2:
            return latent_image
        plan = self._plan_for(sigmas)
        first_is_high = plan.is_high(float(sigmas[0]))
        pair = [self._high, self._low] if first_is_high else [self._low]
        clones = [with_schedule(patcher, plan.schedule, plan.shift) for patcher in pair]
        log.info(
            "%d steps high noise, %d low noise (boundary %.4f, %s grid)",
            plan.high_steps, plan.schedule.steps - plan.high_steps, plan.boundary, plan.schedule.name,
        )  # fmt: skip
        for note in plan.notes:
            log.warning("%s", note)
        self._plan = plan
        self._second = self._guider_of(clones[1]) if first_is_high else None
        self.model_patcher = clones[0]
        self.model_options = clones[0].model_options
        self.set_cfg(self._cfg_high if first_is_high else self._cfg_low)
        try:
            return super().sample(noise, latent_image, sampler, sigmas, *args, **kw)
        finally:
            self.model_patcher = self._high
            self.model_options = self._high.model_options
            self._plan = self._second = None
            self._context = {}

    def outer_sample(self, noise: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Run with both experts prepared: their hooks and wrappers are known, nothing is loaded.

        Both experts' wrappers of a whole run are around it, the second's inside. What those change
        on the way in and out is left out: the first expert's have done it, often the same ones.
        """
        result: Tensor | None = None

        def run(*_: Any, **__: Any) -> Tensor:
            nonlocal result
            result = super(ExpertsGuider, self).outer_sample(noise, *args, **kw)
            return result

        try:
            if self._second is None:
                return run()
            _prepare(self._second)
            own = get_all_wrappers(
                WrappersMP.OUTER_SAMPLE, self._second.model_options, is_model_options=True
            )
            executor = WrapperExecutor.new_class_executor(run, self._second, own)
            told = executor.execute(noise, *args, **kw)
            return told if result is None else result
        finally:
            self._release_second()

    def _guider_of(self, patcher: Any) -> comfy.samplers.CFGGuider:
        """What the wrappers of the second expert find as the guider of their run."""
        guider = comfy.samplers.CFGGuider(patcher)
        guider.original_conds = self.original_conds
        guider.set_cfg(self._cfg_low)
        around = WrappersMP.SAMPLER_SAMPLE
        if patcher.get_all_wrappers(around) and not self._high.get_all_wrappers(around):
            log.warning(
                "a patch around the sampler on the low-noise MODEL does not run, because one sampler "
                "runs both experts; put it on the high-noise MODEL"
            )
        return guider

    def inner_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        device: torch.device,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
        callback: Any,
        disable_pbar: bool,
        seed: int | None,
        **shapes: Any,
    ) -> Tensor:
        """Remember what processing conditionings for the second expert will need."""
        self._context = {
            "noise": noise,
            "latent_image": latent_image,
            "device": device,
            "denoise_mask": denoise_mask,
            "seed": seed,
            "sigmas": sigmas,
            "shapes": shapes,
        }
        return super().inner_sample(
            noise, latent_image, device, sampler, sigmas,
            denoise_mask, callback, disable_pbar, seed, **shapes,
        )  # fmt: skip

    def outer_predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: Any = None,
    ) -> Tensor:
        """Denoise with the expert of this noise level, through that expert's own wrappers."""
        assert self._plan is not None
        options = model_options or {}
        high = self._plan.is_high(float(timestep.max()))
        if self._second is None or (high and self._ready is None):
            return super().outer_predict_noise(x, timestep, options, seed)
        second = self._ready or self._load_second()
        merged = _with_sampler_hooks(second.options, options, self.model_options)
        executor = WrapperExecutor.new_class_executor(
            self._predict_second,
            self,
            get_all_wrappers(WrappersMP.PREDICT_NOISE, second.options, is_model_options=True),
        )
        return executor.execute(x, timestep, merged, seed)

    def _predict_second(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None
    ) -> Tensor:
        assert self._ready is not None
        return comfy.samplers.sampling_function(
            self._ready.model,
            x,
            timestep,
            self._ready.conds.get("negative"),
            self._ready.conds.get("positive"),
            self._cfg_low,
            model_options=model_options,
            seed=seed,
        )

    def _load_second(self) -> _Ready:
        """What ``CFGGuider.outer_sample`` and ``inner_sample`` do for a model, for the second expert."""
        log.info("switching to the low-noise expert")
        assert self._second is not None
        patcher, run = self._second.model_patcher, self._context
        # Wrappers around the run may have put their state into these.
        options = self._second.model_options
        model, conds, helpers = comfy.sampler_helpers.prepare_sampling(
            patcher, run["noise"].shape, self._second.conds, options
        )
        self._ready = _Ready(
            patcher=patcher, model=model, conds=conds, options=options, helpers=helpers
        )
        comfy.samplers.cast_to_load_options(
            options, device=patcher.load_device, dtype=patcher.model_dtype()
        )
        patcher.pre_run()
        latent = run["latent_image"]
        if latent is not None and torch.count_nonzero(latent) > 0:
            latent = model.process_latent_in(latent)
        self._ready.conds = comfy.samplers.process_conds(
            model, run["noise"], conds, run["device"], latent, run["denoise_mask"], run["seed"],
            **compat.accepted(comfy.samplers.process_conds, run["shapes"]),
        )  # fmt: skip
        options.setdefault("transformer_options", {})["sample_sigmas"] = run["sigmas"]
        return self._ready

    def _release_second(self) -> None:
        ready, self._ready = self._ready, None
        if self._second is not None:
            self._second.model_patcher.restore_hook_patches()
        if ready is None:
            return
        ready.patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(ready.conds, ready.helpers)
        comfy.samplers.cast_to_load_options(ready.options, device=ready.patcher.offload_device)


def _prepare(guider: comfy.samplers.CFGGuider) -> None:
    """What ``CFGGuider.sample`` does for a model before a run."""
    patcher = guider.model_patcher
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    conds = {name: [dict(c) for c in given] for name, given in guider.original_conds.items()}
    comfy.samplers.preprocess_conds_hooks(conds)
    comfy.sampler_helpers.prepare_model_patcher(patcher, conds, options)
    comfy.samplers.filter_registered_hooks_on_conds(conds, options)
    guider.model_options, guider.conds = options, conds


def _with_sampler_hooks(
    own: dict[str, Any], given: dict[str, Any], first: dict[str, Any]
) -> dict[str, Any]:
    """The second expert's options plus what the sampler itself added for this call.

    Samplers such as ``euler_cfg_pp`` hang a function onto the options they were given; those are the
    first expert's. Its other options stay with it.
    """
    hooks = [f for f in given.get(POST_CFG, []) if f not in first.get(POST_CFG, [])]
    merged = dict(own)
    if hooks:
        merged[POST_CFG] = [*own.get(POST_CFG, []), *hooks]
        if given.get(NO_CFG1):
            merged[NO_CFG1] = True
    return merged
