"""The four files of a system, found in a folder by what their headers say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..files import SUFFIXES, shown
from ..keys.roles import HIGH, LOW
from .identity import identify
from .layouts import Checkpoint, open_checkpoint

BUNDLED = Path(__file__).resolve().parents[2] / "tiny" / "weights"
"""Weights of the miniature family that comes with the repository."""

PARTS = {
    "high": "high-noise expert",
    "low": "low-noise expert",
    "vae": "VAE",
    "text": "text encoder",
}
"""The four files of a system, by the names of :meth:`Pipeline.load`'s arguments."""


def find_parts(
    folder: str | Path = BUNDLED, given: Mapping[str, str | Path] | None = None
) -> dict[str, Path]:
    """The four files of a system in ``folder`` and its direct subfolders, told apart by headers.

    Args:
        folder: official layout (``high_noise_model/`` ...), a diffusers repository, or weight files.
        given: parts named one by one, by the names of ``PARTS``; they are not looked for.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a part is not there, or two files could be it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {shown(folder)} does not exist; check the name")
    parts = {part: Path(path) for part, path in (given or {}).items()}
    skipped = ""
    found: dict[str, Path] = {}
    for path in _candidates(folder):
        try:
            part = _part(open_checkpoint(path))
        except (ValueError, OSError) as error:
            skipped = skipped or f"; not usable: {error}"
            continue
        if part is None or part in parts:
            continue
        if part in found:
            raise ValueError(
                f"{shown(folder)} holds two files for the {PARTS[part]}, {shown(found[part].name)} and "
                f"{shown(path.name)}; name the one you want"
            )
        found[part] = path
    parts |= found
    missing = [name for part, name in PARTS.items() if part not in parts]
    if missing:
        raise ValueError(
            f"{shown(folder)} has no {' and no '.join(missing)}; put the weight files there "
            f"(an expert's name says high or low noise) or name them one by one{skipped}"
        )
    return parts


def _candidates(folder: Path) -> Iterator[Path]:
    """Weights in and directly below ``folder``; a folder of shards counts as one."""
    for place in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        if any(place.glob("*.safetensors.index.json")):
            yield place
        else:
            yield from sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)


def _part(checkpoint: Checkpoint) -> str | None:
    if checkpoint.kind == "vae":
        return None if checkpoint.is_tiny else "vae"  # an approximation is asked for by its name
    if checkpoint.kind == "text_encoder":
        return "text"
    return {HIGH: "high", LOW: "low"}.get(identify(checkpoint).role or "")
