"""What is asked for, and the plan that follows from it before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint import PARTS
from ..config import SamplingConfig
from ..guidance import Guidance
from ..noise import LAYOUTS, MAX_SEED
from ..plan import RunPlan, StageSpec
from ..schedule import Schedule, make_schedule
from ..shapes import LatentShape, latent_shape
from ..solvers import get_solver
from ..switch import Switch
from ..text import clean

EXPERTS = ("high", "low")
AUTO = Switch()


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One expert over a range of noise levels.

    Attributes:
        expert: ``high`` or ``low``.
        guidance: its scale over the noise level.
        switch: where it ends; has no meaning in the last phase, which runs to the end. ``auto`` is the
            boundary the experts were trained with.
        loras: what the strengths of the expert's LoRAs are multiplied by; 0 runs without them.
        called: its name where several phases run one expert; "" for that of the expert.
    """

    expert: str
    guidance: Guidance
    switch: Switch = AUTO
    loras: float = 1.0
    called: str = ""

    @property
    def name(self) -> str:
        """What it is called, in words."""
        return self.called or PARTS[self.expert]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One clip to make.

    Attributes:
        prompt: what the clip shows; never empty.
        sampling: how; start from :attr:`Pipeline.defaults` and ``dataclasses.replace``. An empty
            ``negative_prompt`` stands for the official one, as in the official pipeline.
        seed: of all noise, 0 to 2**64 - 1.
        noise: whose order the initial noise is drawn in, one of ``wan.noise.LAYOUTS``.
        switch: where the high-noise expert ends; ``auto`` lets ``sampling.boundary`` decide.
        guidance_high: a curve instead of ``sampling.guidance_high``.
        guidance_low: a curve instead of ``sampling.guidance_low``.
        phases: any number of phases from noise to clean, instead of two experts with their switch and
            guidance.
    """

    prompt: str
    sampling: SamplingConfig
    seed: int = 0
    noise: str = LAYOUTS[0]
    switch: Switch = AUTO
    guidance_high: Guidance | None = None
    guidance_low: Guidance | None = None
    phases: tuple[Phase, ...] = ()

    @property
    def negative_prompt(self) -> str:
        """The negative prompt that is encoded."""
        given = self.sampling.negative_prompt
        return given if clean(given) else SamplingConfig().negative_prompt

    def all_phases(self) -> tuple[Phase, ...]:
        """The phases asked for: :attr:`phases`, or the two experts."""
        if self.phases:
            return self.phases
        high = self.guidance_high or Guidance.constant(self.sampling.guidance_high)
        low = self.guidance_low or Guidance.constant(self.sampling.guidance_low)
        return (
            Phase(expert="high", guidance=high, switch=self.switch),
            Phase(expert="low", guidance=low),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """A checked request: what will run, known before any weight is read.

    Attributes:
        run: which phase runs which steps; its stages are ``phases``.
        phases: from noise to clean.
        solver: a name of ``wan.solvers.SOLVERS``.
        shape: of the latents, without the batch.
    """

    run: RunPlan
    phases: tuple[Phase, ...]
    solver: str
    shape: LatentShape

    @property
    def schedule(self) -> Schedule:
        """The noise levels of the run."""
        return self.run.schedule

    def phase(self, step: int) -> int:
        """Index of the phase that ran when ``step`` steps are done (1..N)."""
        return self.run.stage_at(step - 1)


def make_plan(request: Request, channels: int) -> Plan:
    """Check a request for a model of ``channels`` latent channels.

    Raises:
        ValueError: an empty prompt, or any setting the model cannot run; one sentence says which.
    """
    given = request.sampling
    if not clean(request.prompt):
        raise ValueError(
            "the prompt is empty; say what the clip shows, "
            "such as 'a red circle moves left on a white background'"
        )
    if not 0 <= request.seed <= MAX_SEED:
        raise ValueError(f"seed={request.seed} is not within 0 to 2**64 - 1; use one that is")
    if request.noise not in LAYOUTS:
        raise ValueError(f"unknown noise {request.noise!r}; use one of {', '.join(LAYOUTS)}")
    get_solver(given.solver)
    shape = latent_shape(given.num_frames, given.height, given.width, channels=channels)
    schedule = make_schedule(given.schedule, steps=given.steps, shift=given.shift)
    phases = request.all_phases()
    for phase in phases:
        if phase.expert not in EXPERTS:
            raise ValueError(f"unknown expert {phase.expert!r}; use one of {', '.join(EXPERTS)}")
    stages = tuple(
        StageSpec(
            name=phase.name,
            boundary=phase.switch.boundary(schedule, given.boundary) if i < len(phases) else 0.0,
            guidance=phase.guidance,
        )
        for i, phase in enumerate(phases, 1)
    )
    run = RunPlan(schedule=schedule, shift=given.shift, stages=stages)
    return Plan(run=run, phases=phases, solver=given.solver, shape=shape)
