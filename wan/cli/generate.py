"""``generate``: from a prompt to an mp4, or to a still."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from .. import __version__
from ..checkpoint import BUNDLED, PARTS, find_parts
from ..config import EncodingConfig, SamplingConfig
from ..guidance import Guidance, parse_guidance
from ..manifest import KEY, TAG, to_json
from ..noise import LAYOUTS
from ..pipeline import AUTO, Keep, LoraUse, Phase, Pipeline, Plan, Request
from ..presets import OFFICIAL, PRESETS, get_preset
from ..sampling import Progress
from ..schedule import SCHEDULES
from ..solvers import SOLVERS
from ..state import Store
from ..switch import KINDS, Switch
from ..video import FORMATS, STILL_FORMATS, Clip, FrameWriter, open_writer
from . import extend
from .bar import Bar
from .device import add_device, torch_device
from .kernels import add_kernels, with_kernels
from .latents import save_latents
from .memory import add_memory, with_memory
from .outputs import check_outputs, check_still, write_clip
from .record import record, with_result

_LORAS = {
    "--lora": "the expert its keys or name say, else both",
    "--lora-high": f"the {PARTS['high']}",
    "--lora-low": f"the {PARTS['low']}",
}
_SETTINGS = [field.name for field in fields(SamplingConfig)]
KEPT = ".wan-runs"
"""Folder beside the output in which runs are kept."""


def add_arguments(generate: argparse.ArgumentParser) -> None:
    """Defaults of settings are the family's, found in the weights."""
    generate.add_argument("--prompt", required=True, help="what the clip shows, English or Chinese")
    generate.add_argument(
        "--out", required=True, type=Path, help="the mp4 to write, or the .png of one frame"
    )
    generate.add_argument("--contact-sheet", type=Path, metavar="PNG", help="frames as one image")
    generate.add_argument(
        "--save-latents", type=Path, metavar="FILE",
        help="raw latents as safetensors, written before decoding (.latent loads in ComfyUI)",
    )  # fmt: skip
    generate.add_argument(
        "--fresh", action="store_true",
        help=f"start anew instead of going on where the same command ended (kept in {KEPT})",
    )  # fmt: skip
    _add_settings(generate.add_argument_group("settings (default: those of the model)"))
    extend.add_arguments(generate)
    weights = generate.add_argument_group("weights (default: the bundled miniature family)")
    weights.add_argument("--models", type=Path, metavar="FOLDER", help="folder with all four parts")
    for part, name in PARTS.items():
        weights.add_argument(f"--{part}", type=Path, help=f"{name}: file or official folder")
    add_device(weights)
    add_memory(weights)
    add_kernels(weights)
    weights.add_argument("--tokenizer", type=Path, help="spiece.model, where the encoder has none")
    for option, expert in _LORAS.items():
        weights.add_argument(
            option, action="append", default=[], metavar="FILE[:STRENGTH]",
            help=f"LoRA for {expert}; may be repeated",
        )  # fmt: skip
    weights.add_argument(
        "--allow-mismatch", action="store_true",
        help="run experts or LoRAs that do not look as if they belong together",
    )  # fmt: skip


def _add_settings(group: argparse._ArgumentGroup) -> None:
    told = "; ".join(f"{name}: {preset.told}" for name, preset in PRESETS.items())
    group.add_argument(
        "--preset", choices=list(PRESETS),
        help=f"settings that belong together, of which the others below still change any. {told}",
    )  # fmt: skip
    group.add_argument("--negative", dest="negative_prompt", help="what to stay away from")
    group.add_argument("--frames", dest="num_frames", type=int, help="frame count, 4k+1")
    group.add_argument("--height", type=int, help="pixels, a multiple of 16")
    group.add_argument("--width", type=int, help="pixels, a multiple of 16")
    group.add_argument("--fps", type=int, help="frames per second of the file")
    group.add_argument("--steps", type=int, help="steps of both experts together")
    group.add_argument("--shift", type=float, help="how long the run stays at high noise")
    switch = group.add_mutually_exclusive_group()
    switch.add_argument(
        "--boundary", type=float, help="lowest noise level of the high-noise expert"
    )
    switch.add_argument("--switch-step", type=int, help="steps on the high-noise expert instead")
    switch.add_argument(
        "--switch", metavar="KIND=VALUE",
        help=f"where the high-noise expert ends, by one of {', '.join(KINDS[1:])}: snr=0.02",
    )  # fmt: skip
    for part in ("high", "low"):
        group.add_argument(
            f"--guidance-{part}", metavar="SCALE",
            help=f"guidance of the {PARTS[part]}: 4, or sigma:scale pairs such as 1:4,0.9:3",
        )  # fmt: skip
    group.add_argument("--solver", choices=list(SOLVERS))
    group.add_argument("--schedule", choices=list(SCHEDULES))
    group.add_argument("--seed", type=int, default=0, help="of all noise, default 0")
    group.add_argument("--noise", choices=LAYOUTS, default=LAYOUTS[0], help="whose initial noise")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The files to make of a clip.

    Attributes:
        out: the mp4, or the PNG of one frame.
        sheet, latents: beside it; None makes none.
        fresh: start anew instead of going on with a run that was kept.
        fps: frames per second; None takes the request's.
        format, crf: of an mp4.
        tags: more metadata of the file.
    """

    out: Path
    sheet: Path | None = None
    latents: Path | None = None
    fresh: bool = False
    fps: float | None = None
    format: str = FORMATS[0]
    crf: int = EncodingConfig().crf
    tags: Mapping[str, object] = field(default_factory=dict)


def run(given: argparse.Namespace, bar: Bar) -> None:
    """One clip; raises before any weight is read if the input cannot work."""
    pipeline = with_kernels(open_pipeline(given), given)
    request = read_request(given, pipeline.defaults)
    # Before anybody is asked.
    pipeline = with_memory(pipeline, pipeline.plan(request), given.memory)
    request = replace(request, prompt=extend.extended(given))
    if request.prompt != given.prompt:
        print(f"prompt: {request.prompt}", file=sys.stderr)
    wanted = Wanted(
        out=given.out, sheet=given.contact_sheet, latents=given.save_latents, fresh=given.fresh
    )
    make_clip(pipeline, request, wanted, bar, lora_uses(given), given.allow_mismatch)


def make_clip(
    pipeline: Pipeline,
    request: Request,
    wanted: Wanted,
    bar: Bar,
    loras: Sequence[LoraUse],
    allow_mismatch: bool,
) -> None:
    """Make the files of one clip and print their names.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: something cannot work; no weight is read before.
    """
    plan = pipeline.plan(request)
    outputs = check_outputs([wanted.out, wanted.sheet, wanted.latents])
    pipeline = pipeline.with_loras(loras, allow_mismatch=allow_mismatch)
    settings = request.sampling
    manifest = record(pipeline, request, plan)
    metadata = {**describe(request, pipeline), KEY: to_json(manifest)}
    _open_writer(wanted, settings, metadata)  # says now what cannot be written

    bar.show("read weights", 0, 1)
    keep = Keep(store=Store(folder=wanted.out.parent / KEPT), fresh=wanted.fresh, manifest=metadata)
    latents = pipeline.sample(request, lambda progress: _show_step(bar, plan, progress), keep=keep)
    metadata[KEY] = to_json(with_result(manifest, latents))
    if wanted.latents:
        save_latents(wanted.latents, latents, metadata)
    kept = wanted.latents or pipeline.kept_latents(request, keep)
    write_clip(
        pipeline.decode(latents, kept=kept), _open_writer(wanted, settings, metadata),
        total=settings.num_frames, bar=bar, sheet=wanted.sheet,
    )  # fmt: skip
    for path in outputs:
        print(path)


def _open_writer(
    wanted: Wanted, settings: SamplingConfig, metadata: dict[str, object]
) -> FrameWriter:
    clip = Clip(
        width=settings.width,
        height=settings.height,
        fps=wanted.fps or settings.fps,
        metadata={**wanted.tags, TAG: metadata},
    )
    still = check_still(wanted.out, settings.num_frames)
    format = next(iter(STILL_FORMATS)) if still else wanted.format
    return open_writer(wanted.out, clip, format=format, crf=wanted.crf)


def open_pipeline(given: argparse.Namespace) -> Pipeline:
    """The system the arguments name; raises ValueError or OSError, see :meth:`Pipeline.load`."""
    named = {part: getattr(given, part) for part in PARTS if getattr(given, part)}
    if given.models is None and named and len(named) < len(PARTS):
        missing = " and ".join(f"--{part}" for part in PARTS if part not in named)
        raise ValueError(f"without {missing}: name all four files, or their folder by --models")
    parts = named if len(named) == len(PARTS) else find_parts(given.models or BUNDLED, named)
    return Pipeline.load(
        high=parts["high"],
        low=parts["low"],
        vae=parts["vae"],
        text=parts["text"],
        device=torch_device(given.device),
        stream=given.stream,
        tokenizer=given.tokenizer,
        allow_mismatch=given.allow_mismatch,
    )


def lora_uses(given: argparse.Namespace) -> list[LoraUse]:
    """The LoRAs the arguments name."""
    return [
        *_lora_uses(given.lora, None),
        *_lora_uses(given.lora_high, "high"),
        *_lora_uses(given.lora_low, "low"),
    ]


def _lora_uses(given: Sequence[str], part: str | None) -> list[LoraUse]:
    """``FILE`` or ``FILE:STRENGTH``; a colon that no number follows belongs to the name."""
    uses = []
    for text in given:
        name, colon, number = text.rpartition(":")
        try:
            use = LoraUse(path=Path(name), strength=float(number), part=part) if colon else None
        except ValueError:
            use = None
        uses.append(use or LoraUse(path=Path(text), part=part))
    return uses


def read_request(given: argparse.Namespace, defaults: SamplingConfig) -> Request:
    """What was asked for, on top of the family's defaults.

    Raises:
        ValueError: a switch or a guidance that cannot be read.
    """
    told = {name: getattr(given, name) for name in _SETTINGS if getattr(given, name) is not None}
    curves: dict[str, Guidance | None] = {"guidance_high": None, "guidance_low": None}
    for name in told.keys() & curves.keys():
        curve = parse_guidance(told.pop(name))
        if curve.is_constant:
            told[name] = curve.at(1.0)
        else:
            curves[name] = curve
    preset = get_preset(given.preset or OFFICIAL)
    request = Request(
        prompt=given.prompt,
        sampling=replace(preset.settings(defaults), **told),
        seed=given.seed,
        noise=given.noise,
        switch=_switch(given),
        guidance_high=curves["guidance_high"],
        guidance_low=curves["guidance_low"],
    )
    if preset.motion is None:
        return request
    motion = Phase(
        expert="high",
        guidance=Guidance.constant(preset.motion.guidance),
        switch=Switch("timestep", preset.motion.until),
        loras=0.0,
        called="motion",
    )
    return replace(request, phases=(motion, *request.all_phases()))


def _switch(given: argparse.Namespace) -> Switch:
    if given.switch_step is not None:
        return Switch("step", given.switch_step)
    if given.switch in (None, AUTO.kind):
        return AUTO
    kind, _, value = given.switch.partition("=")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(
            f"--switch {given.switch!r} is not KIND=VALUE; write snr=0.02 or step=10, for example"
        ) from None
    return Switch(kind, number)


def describe(request: Request, pipeline: Pipeline) -> dict[str, object]:
    """All that is needed to make the clip again, for the file's metadata."""
    weights = {part: getattr(pipeline, part).path.name for part in PARTS}
    loras = {
        part: [[resolved.section.path.name, strength] for resolved, strength in used]
        for part, used in pipeline.loras.items()
    }
    told = asdict(request, dict_factory=_without_names)
    return {"version": __version__, **told, "weights": weights, "loras": loras}


def _without_names(values: list[tuple[str, object]]) -> dict[str, object]:
    """What a switch is called in sentences is no setting."""
    return {name: value for name, value in values if name != "named"}


def _show_step(bar: Bar, plan: Plan, progress: Progress) -> None:
    phase = plan.phase(progress.step)
    steps = plan.run.steps_of(phase)
    bar.show(plan.phases[phase].name, progress.step - steps.start, len(steps))
