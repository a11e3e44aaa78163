"""One guider over all stages: the noise level decides, each MODEL is loaded when it is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import prepare_sampling
from torch import Tensor

from ...wan.plan import RunPlan
from ...wan.state import tensor_digest
from ...wan.transformer import Memory
from .ahead import Ahead
from .designs import design_of_run
from .ladder import Ladder
from .manifest import record_run
from .runs import AUTO, HostRun
from .sampling import RUN
from .stages import LaterStage, RunInputs, stage_clone
from .start import Start
from .watch import with_words

log = logging.getLogger(__name__)

POST_CFG = "sampler_post_cfg_function"
NO_CFG1 = "disable_cfg1_optimization"


class ExpertsGuider(comfy.samplers.CFGGuider):
    """A GUIDER for the stages of one trajectory, each with its own MODEL and guidance.

    The stage of a call follows from the noise level passed in it (ties are the earlier one's); once
    a stage has run, earlier ones are not called again, unless a step is done again. MODELs are used through clones, so what the
    caller holds does not change. The MODEL that starts is loaded by ComfyUI's own start of a run, a
    later one when its first call comes, and not at all if none comes. Consecutive stages on one and
    the same MODEL share it: only the guidance changes.

    Every evaluation of the network passes :meth:`outer_predict_noise`, where the run's own
    :class:`~.runs.HostRun` looks at it; our SAMPLERs find that in ``model_options``.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        """``models`` are MODELs of one latent format, one for each stage of the plan."""
        super().__init__(models[0])
        self._models = tuple(models)
        self._plan_for: Callable[[Tensor], RunPlan] | None = None
        self._plan: RunPlan | None = None
        self._guiders: dict[int, comfy.samplers.CFGGuider] = {}
        self._stage = self._running = 0
        self._ready: set[comfy.samplers.CFGGuider] = set()
        self._inputs: RunInputs | None = None
        self._ahead = Ahead()
        self._origins: Sequence[str | None] = (None,) * len(self._models)
        self._resume = AUTO
        self._run: HostRun | None = None
        self.told: tuple[str, ...] = ()
        """What should be known of the latest run, one sentence each."""

    def set_plan(self, plan_for: Callable[[Tensor], RunPlan]) -> None:
        """``plan_for(sigmas)`` is asked at the start of each run; it may raise ValueError."""
        self._plan_for = plan_for

    def plan_run(self, sigmas: Tensor) -> RunPlan:
        """The plan of a run over ``sigmas`` (N+1,), before it; raises ValueError if there is none."""
        assert self._plan_for is not None
        plan = self._plan_for(sigmas)
        assert len(plan.stages) == len(self._models)
        return plan

    def set_keeping(self, origins: Sequence[str | None], resume: str) -> None:
        """``origins`` say what made each MODEL, ``resume`` (``runs.RESUME``) whether runs go on."""
        assert len(origins) == len(self._models)
        self._origins, self._resume = tuple(origins), resume

    @property
    def models(self) -> tuple[Any, ...]:
        """The MODEL of each stage, as it was given."""
        return self._models

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        **kw: Any,
    ) -> Tensor:
        """Run ``sampler`` over ``sigmas`` (N+1,), or what is left of it; as ``CFGGuider.sample`` otherwise."""
        if sigmas.shape[-1] < 2:
            return latent_image
        design = design_of_run(self._models, noise.shape)
        plan = self.plan_run(sigmas).noted(*filter(None, [design.note]))
        _announce(plan)
        callback = with_words(plan, callback)
        start = Start(
            plan=plan,
            models=self._models,
            origins=self._origins,
            conds=self.original_conds,
            noise=noise,
            drawn=tensor_digest(noise.float()),
            latent=latent_image,
            mask=denoise_mask,
            sampler=sampler,
            seed=seed,
        )
        with self._under_way(start, design.memory) as run:
            result = run.finished()
            if result is None:
                result = super().sample(
                    noise, latent_image, sampler, sigmas,
                    denoise_mask, callback, disable_pbar, seed, **kw,
                )  # fmt: skip
                run.finish(result)
        record_run(start, result, run.ladder.design)
        return result

    @contextmanager
    def _under_way(self, start: Start, memory: Memory) -> Iterator[HostRun]:
        """The run of ``start``, with this guider set up for it; nothing of it is left afterwards."""
        plan = self._plan = start.plan
        first, last = (plan.stage_of(float(plan.schedule.sigmas[end])) for end in (0, -1))
        self.told = ()
        self._stage = self._running = first
        self._ready = {self}
        self.model_patcher = stage_clone(self._models[first], plan)
        self.model_options = self.model_patcher.model_options
        try:
            self._guiders = self._line_up(plan, first, last)
            ladder = Ladder(
                tuple(self._guiders.values()),
                lambda: self._guiders[self._running],
                self._turn_back,
                memory,
            )
            self._run = HostRun(start, ladder, resume=self._resume)
            yield self._run
        finally:
            self._ahead.close()
            self.told = () if self._run is None else self._run.told
            self.model_patcher = self._models[0]
            self.model_options = self.model_patcher.model_options
            self._plan = self._inputs = self._run = None
            self._guiders = {}
            self._ready = set()

    def outer_sample(self, noise: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Run with all stages prepared: their hooks and wrappers are known, nothing is loaded.

        The wrappers of a whole run of every MODEL are around it, later ones inside. What later ones
        change on the way in and out is left out: the first MODEL's have done it, often the same ones.
        """
        later = self._later()
        result: Tensor | None = None

        def run(*_: Any, **__: Any) -> Tensor:
            nonlocal result
            result = super(ExpertsGuider, self).outer_sample(noise, *args, **kw)
            return result

        try:
            for stage in later:
                stage.prepare()
            wrapped: Callable[..., Tensor] = run
            for stage in reversed(later):
                wrapped = stage.around(wrapped)
            told = wrapped(noise, *args, **kw)
            return told if result is None else result
        finally:
            for stage in later:
                stage.release()

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
        """Remember what processing conditionings for later stages will need; tell SAMPLERs of the run."""
        self._inputs = RunInputs(
            noise=noise,
            latent_image=latent_image,
            device=device,
            denoise_mask=denoise_mask,
            seed=seed,
            sigmas=sigmas,
            shapes=shapes,
        )
        self.model_options[RUN] = self._run
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
        """Denoise with the stage of this noise level, through its MODEL's own wrappers."""
        assert self._plan is not None
        assert self._run is not None
        mode, options = self._run.ladder, model_options or {}

        def ask(x: Tensor, sigma: float) -> Tensor:
            assert self._plan is not None
            guider = self._turn_to(sigma)
            guider.set_cfg(self._plan.stages[self._stage].guidance.at(sigma))
            own = options
            if guider is not self:
                own = _with_sampler_hooks(guider.model_options, options, self.model_options)
            with mode.mode.around(guider.inner_model):
                predict = super(ExpertsGuider, self) if guider is self else guider
                return predict.outer_predict_noise(x, timestep, mode.mode.options(own), seed)

        return self._run.evaluate(ask, x, float(timestep.max()))

    def _turn_to(self, sigma: float) -> comfy.samplers.CFGGuider:
        """The guider of the stage due at ``sigma``, its MODEL loaded; never an earlier one's."""
        assert self._plan is not None
        due = max(self._stage, min(self._plan.stage_of(sigma), max(self._guiders)))
        guider = self._guiders[due]
        if due != self._running:
            log.info("switching to the %s stage", self._plan.stages[due].name)
            if guider is not self._guiders[self._running]:
                self._ahead.close()
                self._bring(guider)
        self._stage = self._running = due  # not before: where memory ran out it is loaded again
        self._look_ahead(sigma)
        return guider

    def _look_ahead(self, sigma: float) -> None:
        """In the last step of a stage, have the file of the next one read; after it, no more."""
        assert self._plan is not None
        coming = self._guiders.get(self._stage + 1)
        steps = self._plan.steps_of(self._stage)
        last = steps and sigma <= 1.000001 * float(self._plan.schedule.sigmas[steps[-1]])
        if last and coming is not None and coming not in self._ready:
            self._ahead.tell(coming.model_patcher.model)

    def _turn_back(self) -> None:
        """Let any stage of this run be due again: a step is done again, which may have ended in a later one."""
        self._stage = min(self._guiders)

    def _bring(self, guider: Any) -> None:
        """Load the MODEL of a stage, or load it again."""
        assert self._inputs is not None
        if guider in self._ready:
            shape = self._inputs.noise.shape
            options = guider.model_options
            prepare_sampling(guider.model_patcher, shape, guider.conds, options)
            return
        guider.load(self._inputs)
        self._ready.add(guider)

    def _line_up(self, plan: RunPlan, first: int, last: int) -> dict[int, comfy.samplers.CFGGuider]:
        """Who serves each stage from ``first`` to ``last``: this guider, and one per later MODEL."""
        guiders: dict[int, comfy.samplers.CFGGuider] = {first: self}
        self.set_cfg(plan.stages[first].guidance.at(float(plan.schedule.sigmas[0])))
        for index in range(first + 1, last + 1):
            model = self._models[index]
            if model is self._models[index - 1]:
                guiders[index] = guiders[index - 1]
                continue
            guiders[index] = LaterStage(stage_clone(model, plan), self.original_conds)
            guiders[index].set_cfg(plan.stages[index].guidance.at(plan.boundaries[index - 1]))
            around = WrappersMP.SAMPLER_SAMPLE
            if model.get_all_wrappers(around) and not self._models[first].get_all_wrappers(around):
                log.warning(
                    "a patch around the sampler on the MODEL of the %s stage does not run, because "
                    "one sampler runs all stages; put it on the first MODEL",
                    plan.stages[index].name,
                )
        return guiders

    @property
    def helpers(self) -> list[Any]:
        """Models that conditionings brought along, such as control nets."""
        return list(getattr(self, "loaded_models", []))

    def _later(self) -> list[LaterStage]:
        """The MODELs after the first, in order."""
        found = dict.fromkeys(self._guiders.values())
        return [guider for guider in found if isinstance(guider, LaterStage)]


def _announce(plan: RunPlan) -> None:
    steps = ", ".join(
        f"{len(plan.steps_of(index))} steps {stage.name}" for index, stage in enumerate(plan.stages)
    )
    ends = ", ".join(f"{stage.boundary:.4f}" for stage in plan.stages[:-1])
    log.info("%s (boundary %s, %s grid)", steps, ends or "none", plan.schedule.name)
    for note in plan.notes:
        log.warning("%s", note)


def _with_sampler_hooks(
    own: dict[str, Any], given: dict[str, Any], first: dict[str, Any]
) -> dict[str, Any]:
    """A later stage's options plus what the sampler itself added for this call.

    Samplers such as ``euler_cfg_pp`` hang a function onto the options they were given; those are the
    first MODEL's. Its other options stay with it.
    """
    hooks = [f for f in given.get(POST_CFG, []) if f not in first.get(POST_CFG, [])]
    merged = dict(own)
    if hooks:
        merged[POST_CFG] = [*own.get(POST_CFG, []), *hooks]
        if given.get(NO_CFG1):
            merged[NO_CFG1] = True
    return merged
