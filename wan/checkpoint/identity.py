"""Which model and which expert a file is, how that is known, and whether two files are a pair.

Shapes tell the architecture. Both A14B experts and the Wan2.1 14B model have the same shapes, so the
role and the release come from headers, folders and names. Weights tell one thing for certain: that
two files hold the same expert. Whatever cannot be told is said to be unknown, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TransformerConfig
from ..keys.roles import HIGH, LOW, ROLES, is_distilled, lora_role_of, release_of, role_of
from .layouts import Checkpoint
from .sizes import detect_transformer_config

OFFICIAL_FOLDERS = {"high_noise_model": HIGH, "low_noise_model": LOW}
DIFFUSERS_FOLDERS = {"transformer": HIGH, "transformer_2": LOW}
T2V_1_3B_DIM = 1536
FINGERPRINT = ("head.modulation", "blocks.0.modulation", "blocks.0.self_attn.norm_q.weight")
FINE = ("F16", "BF16", "F32")
"""Formats in which experts trained apart differ; fp8 rounds them to the same values."""
SAME_SHARE = 0.999
"""Share of equal values above which two files hold one expert; two trained experts agree on few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What is known of one expert's file.

    Attributes:
        role: ``high_noise``, ``low_noise`` or None.
        role_source: how the role is known: ``header``, ``folder`` or ``name``; empty for None.
        release: ``Wan2.1``, ``Wan2.2`` or None.
        distilled: whether its name says that it needs few steps.
    """

    role: str | None
    role_source: str
    release: str | None
    distilled: bool

    @property
    def model(self) -> str:
        """Release and kind in words, with what is not known left out."""
        parts = [self.release or "Wan", "text-to-video", "distilled" if self.distilled else ""]
        return " ".join(part for part in parts if part)


def identify(checkpoint: Checkpoint) -> Identity:
    """Read what header, folder, name and shapes say of an expert."""
    role, source = _role(checkpoint)
    name = f"{checkpoint.path.parent.name}/{checkpoint.path.name}"
    told = checkpoint.metadata.get("wan_release", "")
    release = release_of(told) or release_of(checkpoint.path.name)
    if "boundary_ratio" in checkpoint.metadata or source in ("header", "folder"):
        release = release or "Wan2.2"  # only this release has two experts
    if detect_transformer_config(checkpoint).dim == T2V_1_3B_DIM:
        release = "Wan2.1"
    return Identity(role=role, role_source=source, release=release, distilled=is_distilled(name))


def _role(checkpoint: Checkpoint) -> tuple[str | None, str]:
    told = checkpoint.metadata.get("wan_role")
    if told in ROLES:
        return told, "header"
    path = checkpoint.path
    if path.is_dir():
        place, single = path.name, False
    else:
        # The one file of a folder in the official or the diffusers layout has a name that says nothing.
        place, single = path.parent.name, not path.name.startswith("diffusion_pytorch_model")
    known = OFFICIAL_FOLDERS if single else {**OFFICIAL_FOLDERS, **DIFFUSERS_FOLDERS}
    # A folder called "transformer" is an expert only where the other one is its neighbour.
    folder = known.get(place)
    if place in DIFFUSERS_FOLDERS and "boundary_ratio" not in checkpoint.metadata:
        folder = None
    by_name = role_of(path.name)
    if by_name and not (path.is_dir() and folder):
        return by_name, "name"
    folder = folder or (None if path.is_dir() else _role_of_folder(path.parent.name))
    return (folder, "folder") if folder else (None, "")


def _role_of_folder(name: str) -> str | None:
    """The expert that any folder's name speaks of; a folder may hold a subject too, so both rules count."""
    role = role_of(name)
    return role if role == lora_role_of(name) else None


def pair_problems(high: Checkpoint, low: Checkpoint) -> list[str]:
    """Why two files may not be the two experts of one model, most certain first; empty if nothing is."""
    if high.path.resolve() == low.path.resolve():
        return [f"{high.where} was given for both experts; choose the other file for one of them"]
    found = [problem for given in (high, low) if (problem := _contradiction(given))]
    first, second = identify(high), identify(low)
    if first.role == LOW and second.role == HIGH:
        found.append(
            f"the experts are swapped: {high.name} is the low-noise expert; exchange the files"
        )
    else:
        for given, who, role in ((high, first, HIGH), (low, second, LOW)):
            if who.role not in (None, role):
                found.append(
                    f"{given.name} is the other expert by its {who.role_source}; "
                    f"choose a {role.partition('_')[0]}-noise file there"
                )
    if same_weights(high, low):
        found.append(
            f"{high.name} and {low.name} hold the same weights under two names; "
            "choose the other expert for one of them"
        )
    found += _mixed(high, low, first, second)
    return found


def _contradiction(given: Checkpoint) -> str | None:
    told, named = given.metadata.get("wan_role"), role_of(given.path.name)
    if told not in ROLES or named in (None, told):
        return None
    header, name = (role.replace("_", " ") for role in (told, named))
    return (
        f"{given.name} says {name} in its name and {header} in its header; "
        "give it the name of what it is, or choose another file"
    )


def _mixed(high: Checkpoint, low: Checkpoint, first: Identity, second: Identity) -> list[str]:
    found = []
    config, other = detect_transformer_config(high), detect_transformer_config(low)
    if config != other:
        found.append(
            f"{high.name} has {_sizes(config)}, {low.name} {_sizes(other)}; "
            "choose two experts of one model"
        )
    releases = {first.release, second.release} - {None}
    if len(releases) > 1:
        found.append(
            f"{high.name} is {first.model} and {low.name} {second.model}; "
            "choose two experts of one release"
        )
    if first.distilled != second.distilled:
        few, many = (high, low) if first.distilled else (low, high)
        found.append(
            f"{few.name} is distilled for few steps by its name and {many.name} is not; "
            "choose two experts that are both distilled or both not"
        )
    return found


def _sizes(config: TransformerConfig) -> str:
    return f"width {config.dim} (feed-forward {config.ffn_dim}) and {config.num_layers} layers"


def check_pair(high: Checkpoint, low: Checkpoint, *, allow_mismatch: bool = False) -> list[str]:
    """Refuse two files that are not one pair.

    Args:
        high: given as the high-noise expert.
        low: given as the low-noise expert.
        allow_mismatch: the user insists; what would refuse the pair is returned instead.

    Returns:
        What is odd about the pair, one sentence each; always empty unless ``allow_mismatch``.

    Raises:
        ValueError: the same file or the same weights twice, swapped, or of two models.
    """
    problems = pair_problems(high, low)
    config, other = detect_transformer_config(high), detect_transformer_config(low)
    if config.text_dim != other.text_dim:
        raise ValueError(
            f"{high.name} reads text of width {config.text_dim}, {low.name} of "
            f"{other.text_dim}; no text encoder fits both, choose two experts of one model"
        )
    if problems and not allow_mismatch:
        raise ValueError(problems[0])
    return problems


def same_weights(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two files hold one expert, whatever each is packed as.

    Small tensors that every packing keeps as numbers get compared, where both files store them in 16 bits
    or more. Only whole agreement counts: two experts trained apart from one start differ in most.
    False too where nothing is stored that finely: nothing can be told then.
    """
    if detect_transformer_config(first) != detect_transformer_config(second):
        return False
    keys = [key for key in FINGERPRINT if all(_is_fine(each, key) for each in (first, second))]
    pairs = list(zip(first.read(*keys), second.read(*keys), strict=True))
    return bool(keys) and all(agreement(one, other) >= SAME_SHARE for one, other in pairs)


def _is_fine(expert: Checkpoint, key: str) -> bool:
    packed = key.removesuffix(".weight") in expert.quants
    return key in expert.tensors and expert.tensors[key].dtype in FINE and not packed


def agreement(one: Tensor, other: Tensor) -> float:
    """Share of values that two roundings of one tensor could be, in [0, 1]; 0 for unlike shapes or no floats.

    A number may have been rounded twice on its way (float32 to float16 to bfloat16), which moves 6% of
    bfloat16 values to their neighbour; so equality in the coarser format is not what is asked, but that
    the values lie no further apart than both roundings can put them. bfloat16 is the least one assumed.
    """
    if one.shape != other.shape or not (one.is_floating_point() and other.is_floating_point()):
        return 0.0
    a, b = one.double(), other.double()
    formats = [torch.finfo(tensor.dtype) for tensor in (one, other)]
    steps = [max(info.eps, torch.finfo(torch.bfloat16).eps) for info in formats]
    least = sum(info.smallest_normal * info.eps for info in formats) / 2
    apart = torch.maximum(a.abs(), b.abs()) * sum(steps) / 2 + least
    return float(((a - b).abs() <= apart).double().mean())
