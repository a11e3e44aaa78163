"""Model files and output folders by ComfyUI's own rules."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...wan.checkpoint import named_latents
from ...wan.files import shown
from ...wan.video import check_writable

DIFFUSION_MODELS = "diffusion_models"
TEXT_ENCODERS = "text_encoders"
VAE = "vae"
VAE_APPROX = "vae_approx"
LORAS = "loras"
GGUF = ".gguf"

_WEIGHTS = Path(__file__).resolve().parents[2] / "tiny" / "weights"
_walked: dict[str, tuple[list[str], dict[str, float]]] = {}
"""Root -> its GGUF files, and when each folder below it changed: ComfyUI's own rule for its lists."""
_SHARD = re.compile(r"^(?P<folder>.+)[/\\][^/\\]+-\d+-of-\d+\.safetensors$")


def offer_bundled_weights() -> None:
    """Let the loaders list the bundled miniature family, after the user's own files."""
    for kind in (DIFFUSION_MODELS, TEXT_ENCODERS, VAE):
        folder_paths.add_model_folder_path(kind, str(_WEIGHTS / kind))


def list_files(kind: str) -> list[str]:
    """Names for a loader's list; a folder of shards is one name, ending in ``/``.

    Experts and text encoders may be GGUF files, which ComfyUI itself does not list; among the VAEs are
    the tiny decoders of Wan2.1 in ``vae_approx``.
    """
    found = folder_paths.get_filename_list(kind)
    if kind == VAE:
        found = [*found, *_tiny_decoders()]
    if kind in (DIFFUSION_MODELS, TEXT_ENCODERS):
        found = [*found, *_gguf_files(kind)]
    names: dict[str, None] = {}
    for name in found:
        shard = _SHARD.match(name)
        names[f"{shard['folder']}/" if shard else name] = None
    return list(names)


def preview_decoder() -> str | None:
    """The tiny decoder of Wan2.1 for previews: of raw latents, which ComfyUI names, before normalised."""
    found = sorted(_tiny_decoders())
    return min(found, key=lambda name: bool(named_latents(os.path.basename(name))), default=None)


def _tiny_decoders() -> list[str]:
    found = folder_paths.get_filename_list(VAE_APPROX)
    return [name for name in found if named_latents(os.path.basename(name)) is not None]


def _gguf_files(kind: str) -> list[str]:
    found: set[str] = set()
    for root in folder_paths.get_folder_paths(kind):
        if root not in _walked or _mtimes(_walked[root][1]) != _walked[root][1]:
            names, folders = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
            gguf = [name for name in names if name.lower().endswith(GGUF)]
            # Without a folder there is nothing that would tell when it comes.
            _walked[root] = gguf, folders or {root: 0.0}
        found.update(_walked[root][0])
    return sorted(found)


def _mtimes(folders: Iterable[str]) -> dict[str, float]:
    """When each folder changed; 0 for one that is gone."""
    return {path: os.path.getmtime(path) if os.path.isdir(path) else 0.0 for path in folders}


def find(kind: str, name: str) -> Path:
    """Path of a file or shard folder that :func:`list_files` lists; no other name is looked up.

    Raises:
        ValueError: it is not in the list.
    """
    if name in list_files(kind):
        path = None if name.endswith("/") else folder_paths.get_full_path(kind, name)
        if path is None and kind == VAE:
            path = folder_paths.get_full_path(VAE_APPROX, name)
        if path is not None:
            return Path(path)
        # A folder of shards; or a broken link or a pipe, of which the reader has more to say.
        for root in folder_paths.get_folder_paths(kind):
            if os.path.lexists(os.path.join(root, name)):
                return Path(root) / name
    raise ValueError(
        f"{shown(name) or 'an empty name'} is not in the {kind} folders; put it into models/{kind} or choose another file"
    )


def stamps(kind: str, *names: str | None) -> str:
    """:func:`stamp` of each file; a name that comes over a link is not known and counts as none."""
    return "|".join("" if name is None else stamp(find(kind, name)) for name in names)


def stamp(path: Path) -> str:
    """Changes when the file (or a shard of the folder) is replaced.

    A digest, because ComfyUI writes it into the workflow inside saved files: no path may leak there.
    """
    parts = sorted([*path.glob("*.safetensors"), *path.glob("*.json")]) if path.is_dir() else [path]
    stats = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def output_slot(prefix: str, *, width: int, height: int, ending: str = "_.mp4") -> tuple[Path, str]:
    """A new path below the output folder for ``prefix``, and its subfolder for previews.

    The name is numbered by ComfyUI's rule; ``ending`` follows the number.

    Raises:
        ValueError: the prefix names no file, leaves the output folder or cannot be written to.
    """
    # A name that begins with a dot would be hidden in file managers and in the browser.
    if not prefix.strip() or os.path.basename(os.path.normpath(prefix)).startswith("."):
        raise ValueError(f"filename_prefix {prefix!r} names no file; use a name such as video/wan")
    root = folder_paths.get_output_directory()
    # Not resolved: a link inside the output folder may well lead to another disk.
    folder = Path(os.path.abspath(os.path.join(root, os.path.dirname(os.path.normpath(prefix)))))
    if not folder.is_relative_to(os.path.abspath(root)):
        raise ValueError(
            f"filename_prefix {prefix!r} leaves the output folder; use a name such as video/wan"
        )
    try:
        full, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, root, width, height
        )
        path = Path(full) / f"{name}_{counter:05}{ending}"
        check_writable(path)
    except OSError as error:
        raise ValueError(
            f"cannot write filename_prefix {prefix!r} below {root} ({error}); "
            "choose another prefix or make the folder writable"
        ) from error
    return path, subfolder
