"""The runs a workflow holds: which networks, stages, noise levels and clip, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import T2V_A14B, MotionConfig
from ..guidance import Guidance, parse_guidance
from ..presets import AS_BELOW
from ..switch import Switch
from .graph import Link, Node, Workflow

NO_LORA, AUTO_LORA = "none", "auto"
"""What Apply LoRA to Wan Experts calls no file, and one that it finds by itself."""
SWITCH_STEP = 1
"""Number of the output of Wan Sigmas that says at which step the experts change."""
GUIDERS = ("WanExpertsGuider", "WanExpertsStagesGuider")
LATENTS = ("WanExpertsEmptyLatent", "EmptyHunyuanLatentVideo")


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """A LoRA on a MODEL.

    Attributes:
        file: its name on the node, or :data:`AUTO_LORA`.
        strength: None if it is only known when the workflow runs.
    """

    file: str
    strength: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelUse:
    """A MODEL as it reaches a sampler.

    Attributes:
        file: name of its file in the loader; None if it comes from a node this library does not know.
        loras: what is on it, in the order of the nodes.
    """

    file: str | None
    loras: tuple[LoraChoice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageUse:
    """One stage of a run: its network, its guidance and where it ends."""

    name: str
    model: ModelUse
    guidance: Guidance
    switch: Switch


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSize:
    """What an empty latent asks for."""

    width: int
    height: int
    frames: int
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GridUse:
    """Noise levels: the name of a schedule (ours, ``list``, or one of ComfyUI's), steps and shift."""

    name: str
    steps: int
    shift: float
    timesteps: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundRun:
    """One run of a workflow.

    Attributes:
        node: the sampler.
        stages: from noise to clean.
        grid: its noise levels.
        shift: what the networks are told is the shift.
        solver: a key of ``SOLVERS``, or the name of a sampler of ComfyUI.
        preset: the preset on the node; None where its widgets decide.
        clip: its size; None if it comes from a node this library does not know.
        negative: the negative prompt; None if it is not in the file.
        text, vae: names of weight files; None if the workflow holds none.
        fps: of the file; None without one.
    """

    node: Node
    stages: tuple[StageUse, ...]
    grid: GridUse
    shift: float
    solver: str
    preset: str | None = None
    clip: ClipSize | None = None
    negative: str | None = None
    text: str | None = None
    vae: str | None = None
    fps: float | None = None


def find_runs(workflow: Workflow) -> list[FoundRun]:
    """All runs of ``workflow``, in the order of the file.

    Raises:
        ValueError: there is none of ours, or a setting is only known when the workflow runs.
    """
    found = [_of_sampler(workflow, node) for node in workflow.of("WanExpertsSampler")]
    for node in workflow.of("SamplerCustomAdvanced"):
        guider = workflow.source(node, "guider")
        if guider is not None and guider[0].kind in GUIDERS:
            found.append(_of_guider(workflow, node, guider[0]))
    if not found:
        raise ValueError(
            "the workflow holds no run of this pack; add Sample Wan Experts, or Wan Experts Guider "
            "with SamplerCustomAdvanced"
        )
    return found


def _of_sampler(workflow: Workflow, node: Node) -> FoundRun:
    shift = _number(workflow, node, "sigma_shift")
    name = str(workflow.value(node, "preset", AS_BELOW))
    return FoundRun(
        node=node,
        stages=_experts(workflow, node),
        grid=GridUse(
            name=str(workflow.value(node, "scheduler")),
            steps=int(_number(workflow, node, "steps")),
            shift=shift,
        ),
        shift=shift,
        solver=str(workflow.value(node, "sampler_name")),
        preset=None if name == AS_BELOW else name,
        **_around(workflow, node, node),
    )


def _of_guider(workflow: Workflow, node: Node, guider: Node) -> FoundRun:
    chained = guider.kind == "WanExpertsStagesGuider"
    stages = tuple(_chain(workflow, guider)) if chained else _experts(workflow, guider)
    solver = workflow.source(node, "sampler")
    if solver is None or solver[0].kind not in ("WanExpertsSolver", "KSamplerSelect"):
        raise ValueError(
            f"the sampler of node {node.id} ({node.title}) is not known outside ComfyUI; use Wan "
            "Solver or KSamplerSelect"
        )
    return FoundRun(
        node=node,
        stages=stages,
        grid=_grid(workflow, node),
        shift=_number(workflow, guider, "sigma_shift"),
        solver=str(workflow.value(solver[0], "sampler_name")),
        **_around(workflow, node, guider),
    )


def _grid(workflow: Workflow, node: Node) -> GridUse:
    """The noise levels of SamplerCustomAdvanced."""
    source = workflow.source(node, "sigmas")
    kind = source[0].kind if source else "nowhere"
    if source is not None and kind == "WanExpertsSchedule" and source[1] == 0:
        return GridUse(
            name=str(workflow.value(source[0], "scheduler")),
            steps=int(_number(workflow, source[0], "steps")),
            shift=_number(workflow, source[0], "sigma_shift"),
            timesteps=str(workflow.value(source[0], "timesteps", "")),
        )
    if source is not None and kind == "ManualSigmas":
        told = str(workflow.value(source[0], "sigmas"))
        return GridUse(name="list", steps=0, shift=1.0, timesteps=told)
    raise ValueError(
        f"the sigmas of node {node.id} ({node.title}) come from {kind}, which only ComfyUI can run; "
        "use Wan Sigmas"
    )


def _experts(workflow: Workflow, node: Node) -> tuple[StageUse, ...]:
    """The stages of a node that takes both experts, and perhaps one for motion."""
    switch = _switch(workflow, node, "switch")
    stages = [
        StageUse(
            name=f"{part} noise",
            model=_model(workflow, node, f"model_{part}_noise"),
            guidance=_guidance(workflow, node, f"cfg_{part}_noise", f"cfg_curve_{part}"),
            switch=switch if part == "high" else Switch(),
        )
        for part in ("high", "low")
    ]
    if workflow.source(node, "model_motion") is None:
        return tuple(stages)
    own = MotionConfig()
    motion = StageUse(
        name="motion",
        model=_model(workflow, node, "model_motion"),
        guidance=Guidance.constant(_number(workflow, node, "cfg_motion", own.guidance)),
        switch=Switch("timestep", _number(workflow, node, "motion_until", own.until)),
    )
    return (motion, *stages)


def _chain(workflow: Workflow, guider: Node) -> list[StageUse]:
    """The stages before Wan Stages Guider, from noise to clean."""
    found: list[StageUse] = []
    nodes: list[Node] = []
    source = workflow.source(guider, "stages")
    while source is not None and source[0].kind == "WanExpertsStage" and source[0] not in nodes:
        nodes.append(source[0])
        source = workflow.source(source[0], "stages")
    for number, node in enumerate(reversed(nodes), start=1):
        kind = str(workflow.value(node, "until", "auto"))
        found.append(
            StageUse(
                name=str(workflow.value(node, "name", "")).strip() or f"stage {number}",
                model=_model(workflow, node, "model"),
                guidance=_guidance(workflow, node, "cfg", "cfg_curve"),
                switch=Switch(kind, _number(workflow, node, "until_value", 0.0), named="until"),
            )
        )
    if not found:
        raise ValueError(f"node {guider.id} ({guider.title}) has no stages; connect Wan Stage")
    return found


def _switch(workflow: Workflow, node: Node, name: str) -> Switch:
    kind = str(workflow.value(node, name, "auto"))
    place = {"boundary": "boundary", "step": "switch_step"}.get(kind, "switch_value")
    if kind == "step" and (schedule := _switching_schedule(workflow, node)) is not None:
        told = _switch(workflow, schedule, "switch")
        if told.kind == "auto" and workflow.source(schedule, "model") is None:
            return Switch("boundary", T2V_A14B.sampling.boundary)
        return told
    return Switch() if kind == "auto" else Switch(kind, _number(workflow, node, place))


def _switching_schedule(workflow: Workflow, guider: Node) -> Node | None:
    """The Wan Sigmas that gives ``guider`` both its noise levels and the step of the switch."""
    source = workflow.source(guider, "switch_step")
    users = [
        node
        for node in workflow.of("SamplerCustomAdvanced")
        if workflow.source(node, "guider") == (guider, 0)
    ]
    if source is None or source[0].kind != "WanExpertsSchedule" or source[1] != SWITCH_STEP:
        return None
    own = all(workflow.source(node, "sigmas") == (source[0], 0) for node in users)
    return source[0] if own else None


def _guidance(workflow: Workflow, node: Node, scale: str, curve: str) -> Guidance:
    if written := str(workflow.value(node, curve, "")).strip():
        return parse_guidance(written)
    return Guidance.constant(_number(workflow, node, scale))


def _number(workflow: Workflow, node: Node, name: str, default: float | None = None) -> float:
    value = workflow.value(node, name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{name} of node {node.id} ({node.title}) is {value!r}, not a number; open the workflow "
            "in ComfyUI and save it again"
        )
    return value


def _model(workflow: Workflow, node: Node, name: str) -> ModelUse:
    """Follow a MODEL through LoRAs and patches to its loader."""
    loras, seen = list[LoraChoice](), set[str]()
    source = workflow.source(node, name)
    while source is not None and source[0].id not in seen:
        found, slot = source
        seen.add(found.id)
        part = ("model_high_noise", "model_low_noise")[min(slot, 1)]
        if found.kind == "WanExpertsLoader":
            return ModelUse(file=str(workflow.value(found, part)), loras=tuple(loras))
        if found.kind == "UNETLoader":
            return ModelUse(file=str(workflow.value(found, "unet_name")), loras=tuple(loras))
        if found.kind == "WanExpertsLora":
            names = (part.replace("model", "lora"), part.replace("model", "strength"))
            loras[:0] = _lora(workflow, found, *names)
            source = workflow.source(found, part)
            continue
        if found.kind == "WanExpertsCompile":
            source = workflow.source(found, part)
            continue
        if found.kind == "LoraLoaderModelOnly":
            loras[:0] = _lora(workflow, found, "lora_name", "strength_model")
        source = workflow.source(found, "model")
    return ModelUse(file=None, loras=tuple(loras))


def _lora(workflow: Workflow, node: Node, file: str, strength: str) -> list[LoraChoice]:
    """The LoRA of a node, if it has one."""
    name = str(workflow.value(node, file, NO_LORA))
    return [] if name == NO_LORA else [LoraChoice(name, _known(workflow, node, strength))]


def _around(workflow: Workflow, sampler: Node, conditioned: Node) -> dict[str, Any]:
    """What is known of the run beside its stages: fields of :class:`FoundRun`."""
    text = _first(workflow, "WanExpertsTextEncoderLoader", "CLIPLoader")
    vae = _first(workflow, "WanExpertsVAELoader", "VAELoader")
    video = _first(workflow, "WanExpertsDecodeToVideo", "CreateVideo")
    return {
        "clip": _clip(workflow, sampler),
        "negative": _negative(workflow, conditioned),
        "text": text and _known(workflow, text, "text_encoder", "clip_name"),
        "vae": vae and _known(workflow, vae, "vae", "vae_name"),
        "fps": video and _known(workflow, video, "fps"),
    }


def _first(workflow: Workflow, *kinds: str) -> Node | None:
    return next(iter(workflow.of(*kinds)), None)


def _known(workflow: Workflow, node: Node, *names: str) -> Any:
    """The first of some widgets that the node has; None if it is only known when the workflow runs."""
    value = next((node.inputs[name] for name in names if name in node.inputs), None)
    return None if isinstance(value, Link) else value


def _clip(workflow: Workflow, sampler: Node) -> ClipSize | None:
    source = workflow.source(sampler, "latent_image")
    if source is None or source[0].kind not in LATENTS:
        return None
    node = source[0]
    frames = "frames" if node.kind == "WanExpertsEmptyLatent" else "length"
    width, height, count, batch = (
        int(_number(workflow, node, name)) for name in ("width", "height", frames, "batch_size")
    )
    return ClipSize(width=width, height=height, frames=count, batch=batch)


def _negative(workflow: Workflow, node: Node) -> str | None:
    source = workflow.source(node, "negative")
    if source is None or source[0].kind not in ("WanExpertsTextEncode", "CLIPTextEncode"):
        return None
    name = "negative" if source[0].kind == "WanExpertsTextEncode" else "text"
    given = source[0].inputs.get(name)
    return given if isinstance(given, str) else None
