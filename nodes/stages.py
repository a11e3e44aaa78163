"""Stages: any number of MODELs on one trajectory, chained from noise to clean."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan.schedule import TRAIN_TIMESTEPS
from ..wan.switch import KINDS, Switch
from .checks import RARE, CheckedNode, check_limits, unless_linked, widget
from .host import compat
from .host.graph_key import made_by
from .host.runs import AUTO
from .inputs import resume_input
from .trajectory import CATEGORY, DEFAULTS, WiredStage, make_guider, read_guidance

Stages = io.Custom("WAN_STAGES")
UNTIL_VALUE = TRAIN_TIMESTEPS * DEFAULTS.boundary


class WanExpertsStage(CheckedNode):
    """One stage, after those it is chained to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsStage",
            display_name="Wan Stage",
            category=CATEGORY,
            description="One stage of a run: a MODEL with its own LoRAs and patches, its guidance, and "
            "where it ends. Chain one after another from noise to clean, then connect Wan Stages Guider.",
            search_aliases=["wan", "phase", "three phases", "moe", "lightning motion", "万相"],
            inputs=[
                io.Model.Input("model", tooltip="MODEL of this stage; stages may share one."),
                io.String.Input(
                    "name", default="", tooltip="For the plan and the log. Empty: its number."
                ),
                io.Float.Input(
                    "cfg", default=DEFAULTS.guidance_low, **widget("cfg"),
                    tooltip="Guidance of this stage, 0 to 100. 1 skips the negative prompt: half the time, for "
                    "distilled models.",
                ),
                io.Combo.Input(
                    "until", options=list(KINDS), default="auto",
                    tooltip="Where this stage ends. auto: at the noise level the experts were trained "
                    "to divide at. Others: at until_value. The last stage runs to the end in any case.",
                ),
                io.Float.Input(
                    "until_value", default=UNTIL_VALUE, **widget("until_value"),
                    tooltip="boundary: a noise level, 0 to 1. snr: ((1 - sigma) / sigma)^2, a ratio. "
                    "timestep: 0 to 1000. fraction: of all steps of the run, 0 to 1. step: steps of the "
                    "run done by then. A tie still belongs to this stage.",
                ),
                io.String.Input(
                    "cfg_curve", default="", optional=True, **RARE,
                    tooltip="Guidance over the noise level, in place of cfg: sigma:scale pairs such as "
                    "1:4, 0.9:3. Empty: cfg.",
                ),
                Stages.Input(
                    "stages", optional=True, tooltip="The stages before this one; none for the first."
                ),
            ],
            hidden=[io.Hidden.dynprompt],
            outputs=[
                Stages.Output(
                    display_name="stages",
                    tooltip="All stages so far, for the next Wan Stage or for Wan Stages Guider.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def check_inputs(
        cls,
        until: str | None = None,
        until_value: float | None = None,
        cfg_curve: str | None = "",
        **_: Any,
    ) -> None:
        """Numbers and curve; the order of stages is checked when the sigmas are known."""
        unless_linked(read_guidance, "cfg", 1.0, cfg_curve)
        unless_linked(_until, until, until_value)

    @classmethod
    def execute(
        cls,
        model: Any,
        name: str,
        cfg: float,
        until: str,
        until_value: float,
        cfg_curve: str = "",
        stages: tuple[WiredStage, ...] = (),
    ) -> io.NodeOutput:
        """Add one stage; nothing is loaded."""
        stage = WiredStage(
            name=name.strip() or f"stage {len(stages) + 1}",
            model=model,
            guidance=read_guidance("cfg", cfg, cfg_curve),
            switch=_until(until, until_value),
            origin=made_by(cls.hidden, "model"),
        )
        return io.NodeOutput((*stages, stage))


def _until(kind: str, value: float) -> Switch:
    switch = Switch(kind, value, named="until")
    check_limits(until_value=value)
    return switch


class WanExpertsStagesGuider(CheckedNode):
    """All stages as a GUIDER for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsStagesGuider",
            display_name="Wan Stages Guider",
            category=CATEGORY,
            description="Any number of stages behind one GUIDER, for SamplerCustomAdvanced with any "
            "sampler and any sigmas. The noise level of each call decides the stage.",
            search_aliases=["wan", "cfg guider", "three phases", "moe", "万相"],
            inputs=[
                Stages.Input("stages", tooltip="From the last Wan Stage."),
                io.Conditioning.Input("positive", tooltip="Encoded prompt, for all stages."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="Encoded negative prompt; a stage whose cfg is 1 does not read it.",
                ),
                io.Float.Input(
                    "sigma_shift", default=DEFAULTS.shift, **widget("sigma_shift"),
                    tooltip="The shift of the sigmas: a whole official UniPC grid of this shift gets "
                    "the official whole timesteps.",
                ),
                resume_input(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        stages: tuple[WiredStage, ...],
        positive: Any,
        negative: Any,
        sigma_shift: float,
        resume: str = AUTO,
    ) -> io.NodeOutput:
        """Build the guider; nothing is loaded before sampling."""
        check_limits(sigma_shift=sigma_shift)
        return io.NodeOutput(make_guider(stages, positive, negative, sigma_shift, resume=resume))
