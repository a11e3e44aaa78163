"""Apply LoRA: one or two files on both experts, with an account of what they change."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..wan.files import shown
from ..wan.keys.roles import HIGH, LOW
from ..wan.lora import Resolved, coverage, scaling
from .checks import ALLOW_MISMATCH, RARE, CheckedNode, check_limits, unless_linked, widget
from .host import compat, files, lora
from .host.lora_files import AUTO, EXPERTS, NONE, Choice, choose

log = logging.getLogger(__name__)

CATEGORY = "WanExperts/loaders"
ENOUGH = 0.5
"""Share of a file's modules below which it probably is for something else."""
ROUNDED = "stored in fp8: ComfyUI rounds the patched weights back to it, by about 1 to 4 %"
INPUTS = {HIGH: "model_high_noise", LOW: "model_low_noise"}


def _file(expert: str, other: str, names: list[str]) -> Any:
    return io.Combo.Input(
        f"lora_{expert}_noise",
        options=names,
        tooltip=f"LoRA for the {expert}-noise expert. auto: what belongs to the file chosen for {other} "
        "noise, that is the same file if it is for both experts, else its partner by name; a Wan2.1 "
        "LoRA acts on low noise only.",
    )


def _strength(expert: str) -> Any:
    name = f"strength_{expert}_noise"
    return io.Float.Input(
        name, default=1.0, **widget(name),
        tooltip=f"How much of the LoRA the {expert}-noise expert gets, -100 to 100; 1 is what it was "
        "trained for, 0 leaves the expert as it is, below 0 does the opposite.",
    )  # fmt: skip


class WanExpertsLora(CheckedNode):
    """A LoRA on both experts, every dialect, nothing dropped in silence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        names = [AUTO, NONE, *files.list_files(files.LORAS)]
        return compat.schema(
            node_id="WanExpertsLora",
            display_name="Apply LoRA to Wan Experts",
            category=CATEGORY,
            description="Applies a LoRA to both experts: a pair of files, one file for both, or one for "
            "one of them. Finds the partner, refuses swapped files and says what was used. Chain "
            "several for several LoRAs.",
            search_aliases=["wan", "lora loader", "lightning", "lightx2v", "lokr", "dora", "万相"],
            inputs=[
                io.Model.Input("model_high_noise", tooltip="High-noise expert; any Wan MODEL."),
                io.Model.Input("model_low_noise", tooltip="Low-noise expert; any Wan MODEL."),
                _file("high", "low", names),
                _file("low", "high", names),
                _strength("high"),
                _strength("low"),
                io.Boolean.Input(
                    "strict", default=False, **RARE,
                    tooltip="Stop if anything in a file is not used, instead of saying so.",
                ),
                io.Boolean.Input(
                    "allow_mismatch", default=False, tooltip=ALLOW_MISMATCH, **RARE
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model_high_noise", tooltip="High-noise expert with its LoRA."
                ),
                io.Model.Output(
                    display_name="model_low_noise", tooltip="Low-noise expert with its LoRA."
                ),
                io.String.Output(
                    display_name="report", tooltip="What of the files acts on which expert, and how much."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def check_inputs(
        cls,
        lora_high_noise: str | None = None,
        lora_low_noise: str | None = None,
        allow_mismatch: bool | None = None,
        **_: Any,
    ) -> None:
        """Check names, headers and roles of the files."""
        unless_linked(_choose, lora_high_noise, lora_low_noise, allow_mismatch)

    @classmethod
    def fingerprint_inputs(
        cls,
        lora_high_noise: str | None = None,
        lora_low_noise: str | None = None,
        allow_mismatch: bool | None = None,
        **_: Any,
    ) -> str:
        """Apply again when a file was replaced or a partner has come."""
        if lora_high_noise is None or lora_low_noise is None:
            return ""
        chosen = choose(lora_high_noise, lora_low_noise, allow_mismatch=bool(allow_mismatch))
        names = {role: choice.name for role, choice in chosen.by_role.items()}
        return f"{names} {files.stamps(files.LORAS, *names.values())}"

    @classmethod
    def execute(
        cls,
        model_high_noise: Any,
        model_low_noise: Any,
        lora_high_noise: str,
        lora_low_noise: str,
        strength_high_noise: float,
        strength_low_noise: float,
        strict: bool,
        allow_mismatch: bool,
    ) -> io.NodeOutput:
        """Clone both MODELs with the patches; no weight is changed before sampling."""
        check_limits(strength_high_noise=strength_high_noise, strength_low_noise=strength_low_noise)
        models = {HIGH: model_high_noise, LOW: model_low_noise}
        strengths = {HIGH: strength_high_noise, LOW: strength_low_noise}
        chosen = _choose(lora_high_noise, lora_low_noise, allow_mismatch)
        found = {
            role: lora.find_on(models[role], choice.section, INPUTS[role])
            for role, choice in chosen.by_role.items()
        }
        warnings = [
            told
            for role, resolved in found.items()
            if (told := _judge(chosen.by_role[role], EXPERTS[role], resolved, strict))
        ]
        lines = list(chosen.notes)
        for role, resolved in found.items():
            lines += _account(models[role], chosen.by_role[role], role, resolved, strengths[role])
            if strengths[role]:
                models[role] = lora.add_lora(models[role], resolved, strengths[role])
        for told in (*warnings, *chosen.notes):
            log.warning("%s", told)
        report = "\n".join([*warnings, *lines])
        return io.NodeOutput(models[HIGH], models[LOW], report, ui=ui.PreviewText(report))


def _choose(high: str, low: str, allow_mismatch: bool) -> Any:
    return choose(high, low, allow_mismatch=allow_mismatch)


def _judge(choice: Choice, expert: str, resolved: Resolved, strict: bool) -> str:
    """What is alarming about the coverage; empty if nothing is."""
    told = f"{shown(choice.name)} on the {expert}: {coverage(resolved)}"
    if strict and resolved.left:
        raise ValueError(f"{told}; choose another file or turn off strict")
    if resolved.used < ENOUGH * resolved.modules:
        return f"WARNING: most of a LoRA is not used, it may be for another model: {told}"
    return ""


def _account(
    model: Any, choice: Choice, role: str, resolved: Resolved, strength: float
) -> list[str]:
    lines = [
        f"{EXPERTS[role]}: {shown(choice.name)}, strength {strength:g}",
        f"  {coverage(resolved)}",
    ]
    if not strength:
        return [*lines, f"  {scaling(resolved)}"]
    size = lora.size_on(model, choice.section, resolved)
    lines.append(f"  {scaling(resolved)}, at strength 1 {size}")
    if lora.is_rounded(model, resolved):
        lines.append(f"  {ROUNDED}")
    return lines
