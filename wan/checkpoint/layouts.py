"""Published layouts as one view: official key -> where the tensor lies. Nothing but headers is read.

Read: single files (safetensors, .pth, GGUF) in official, diffusers or transformers names, bare or
prefixed; folders of shards with an index; diffusers component folders.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..files import Header, TensorInfo, is_folder, read_header, read_tensors, shown
from ..files.documents import read_json
from ..keys import text as text_keys
from ..keys import transformer as transformer_keys
from ..keys import vae as vae_keys
from ..quant import Quant
from .foreign import name_foreign
from .packing import Packing, find_packing

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "text_encoders.umt5xxl.transformer.",
    "text_encoder.transformer.",
    "first_stage_model.",
    "vae.",
    "model.",
)
ALL_IN_ONE = (
    ("model.diffusion_model.", "diffusion_model."),
    ("first_stage_model.", "vae."),
    ("text_encoders.", "text_encoder."),
)
"""Prefixes of an expert, a VAE and a text encoder that share a file."""
SPIECE_KEY = "spiece_model"
KINDS = {
    "transformer": "an expert (diffusion model)",
    "vae": "a VAE",
    "text_encoder": "an umT5 text encoder",
}
ANYTHING = "Wan weights"
TINY_DECODER = "decoder.22.bias"
"""A tensor that only tiny decoders have; they are VAEs that cannot encode."""
MARKERS = {
    "transformer": ("head.modulation",),
    "vae": ("decoder.middle.0.residual.0.gamma", TINY_DECODER),
    "text_encoder": ("blocks.0.pos_embedding.embedding.weight",),
}
"""Tensors, by their official keys, that only one kind of network has; one of them is enough."""
COMPONENTS = ("transformer", "transformer_2", "vae", "text_encoder")
"""Folders of a diffusers repository that hold weights."""
MOST = 1 << 24
"""Beyond the sizes of any network, and small enough that their products are still numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A file or folder whose headers were read.

    Attributes:
        path: the file or folder.
        kind: a key of ``KINDS``.
        layout: how its tensors are named and spread, in words.
        container: ``safetensors``, ``gguf`` or ``pickle``.
        tensors: official key -> where the tensor lies; scales and markers are not among them.
        quants: layer (official key without ``.weight``) -> how its weight is packed.
        scales: ``<layer>.weight_scale`` (and ``<layer>.input_scale``) -> where the scale lies.
        metadata: of the headers, and ``boundary_ratio`` of the diffusers repository around it.
        tokenizer: a ``spiece.model`` for a text encoder; None: the one in the file or beside it.
    """

    path: Path
    kind: str
    layout: str
    container: str
    tensors: Mapping[str, TensorInfo]
    quants: Mapping[str, Quant]
    scales: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    tokenizer: Path | None = None

    @property
    def where(self) -> str:
        """The path on one printable line."""
        return shown(self.path)

    @property
    def name(self) -> str:
        """The name of the file or folder on one printable line."""
        return shown(self.path.name)

    @property
    def files(self) -> list[Path]:
        """The files that hold its tensors."""
        return sorted({info.file for info in [*self.tensors.values(), *self.scales.values()]})

    @property
    def nbytes(self) -> int:
        """Bytes on disk of all its files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def is_tiny(self) -> bool:
        """Whether it is a tiny decoder: a stand-in for a VAE, which only decodes."""
        return TINY_DECODER in self.tensors

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        """Shape of one tensor of ``axes`` axes; ValueError names the file when it has not got it."""
        if key not in self.tensors:
            raise ValueError(
                f"{self.where} has no tensor '{key}'; it is incomplete, download it again"
            )
        shape = self.tensors[key].shape
        if len(shape) != axes:
            raise ValueError(
                f"{self.where} holds '{key}' with {len(shape)} axes, not {axes}; choose another file"
            )
        if not all(0 < size <= MOST for size in shape):
            raise ValueError(
                f"{self.where} holds '{key}' of shape {shape}, which no network has; download it again"
            )
        return shape

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors and weight scales, mapped from disk: pages are read when they are first used."""
        return _mapped({**self.tensors, **self.scales})

    def read(self, *keys: str) -> list[Tensor]:
        """Some of the tensors, mapped from disk."""
        found = _mapped({key: self.tensors[key] for key in keys})
        return [found[key] for key in keys]

    def read_scales(self) -> dict[str, Tensor]:
        """The scales alone, mapped from disk."""
        return _mapped(self.scales)


def _mapped(wanted: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for file in sorted({info.file for info in wanted.values()}):
        names = {key: info.name for key, info in wanted.items() if info.file == file}
        found = read_tensors(file, set(names.values()))
        out |= {key: found[name] for key, name in names.items()}
    return out


def open_checkpoint(path: str | Path, expected: str | None = None) -> Checkpoint:
    """Read the headers of a file or folder and say what it is.

    Args:
        path: a weight file, an official expert folder or a diffusers component folder.
        expected: ``transformer``, ``vae`` or ``text_encoder``; None accepts any.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no weight file, truncated, unknown, packed in an unknown way, or not what was
            expected.
    """
    path = Path(path)
    header, sharded = _read_folder(path) if is_folder(path) else (_read_file(path), False)
    if all(any(name.startswith(part) for name in header.tensors) for part in ALL_IN_ONE):
        raise ValueError(
            f"{shown(path)} is an all-in-one checkpoint (expert, VAE and text encoder in one file), which "
            "is not read; use separate files"
        )
    tensors, spelling = _official(_strip(header.tensors))
    kind = next((kind for kind, marks in MARKERS.items() if any(m in tensors for m in marks)), None)
    want = KINDS[expected] if expected else ANYTHING
    if kind is None:
        raise _foreign(path, want, header)
    if expected and kind != expected:
        raise ValueError(f"{shown(path)} is {KINDS[kind]}, not {want}; choose another file")
    packing: Packing = find_packing(path, tensors, header.metadata)
    spread = "shards" if sharded else "one file"
    return Checkpoint(
        path=path,
        kind=kind,
        layout=f"{spelling} names, {spread}",
        container=header.container,
        tensors=packing.tensors,
        quants=packing.quants,
        scales=packing.scales,
        metadata=header.metadata,
    )


def _foreign(path: Path, want: str, header: Header) -> ValueError:
    known = name_foreign(header.tensors)
    if known:
        whose = "" if want == ANYTHING else " of Wan"
        return ValueError(f"{shown(path)} is {known}, not {want}{whose}; choose another file")
    first = shown(next(iter(header.tensors), "nothing"))
    return ValueError(f"{shown(path)} is not {want} (it holds '{first}', ...); choose another file")


def _read_file(path: Path) -> Header:
    header = read_header(path)
    if path.name.startswith("diffusion_pytorch_model"):  # one component of a diffusers repository
        return _with_config(path.parent, header)
    return header


def _read_folder(folder: Path) -> tuple[Header, bool]:
    """The headers of a folder as one, and whether they are shards listed by an index."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise ValueError(
            f"{shown(folder)} holds {len(indexes)} indexes of shards ({shown(indexes[0].name)}, "
            f"{shown(indexes[1].name)}); put each model into a folder of its own"
        )
    if indexes:
        return _read_shards(folder, indexes[0]), True
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(
            f"{shown(folder)} holds {len(files)} .safetensors files and no index; "
            "choose one expert's folder (high_noise_model or low_noise_model) or a file"
        )
    header = read_header(files[0])
    return _with_config(folder, header), False


def _read_shards(folder: Path, index: Path) -> Header:
    weight_map = _read_index(index)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(weight_map.values())):
        shard = read_header(folder / name)
        for key in shard.tensors:
            if weight_map.get(key) != name:
                raise ValueError(
                    f"{shown(folder / name)} holds '{shown(key)}', which {shown(index.name)} does not "
                    "list there; download the folder again"
                )
        tensors |= shard.tensors
        metadata |= shard.metadata
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise ValueError(
            f"{shown(folder)} lacks {len(missing)} tensors its index lists (first: {shown(missing[0])}); "
            "download the folder again"
        )
    header = Header(container="safetensors", tensors=tensors, metadata=metadata)
    return _with_config(folder, header)


def _read_index(index: Path) -> dict[str, str]:
    """Tensor -> name of its shard, which lies beside the index."""
    told = read_json(index, "an index of shards")
    weight_map = told.get("weight_map") if isinstance(told, dict) else None
    if not (
        isinstance(weight_map, dict)
        and weight_map
        and all(isinstance(name, str) for name in weight_map.values())
    ):
        raise ValueError(f"{shown(index)} is not an index of shards; download it again")
    for name in weight_map.values():
        if name in ("", ".", "..") or _ELSEWHERE.search(name):
            raise ValueError(
                f"{shown(index)} names '{shown(name)}', which is not in its folder; download it again"
            )
    return weight_map


def _with_config(folder: Path, header: Header) -> Header:
    """The header with the boundary that the diffusers repository around ``folder`` states."""
    if folder.absolute().name not in COMPONENTS:
        return header  # what lies beside any other folder is none of our business
    path = folder.absolute().parent / "model_index.json"
    if not os.path.lexists(path):
        return header
    index = read_json(path, "a list of components")
    if not isinstance(index, dict):
        raise ValueError(f"{shown(path)} is not a list of components; download it again")
    ratio = index.get("boundary_ratio")
    if ratio is None:
        return header
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise ValueError(
            f"{shown(path)} has boundary_ratio {shown(json.dumps(ratio))}, which is not a number above 0 "
            "and up to 1; download it again"
        )
    metadata = {"boundary_ratio": repr(float(ratio)), **header.metadata}
    return Header(container=header.container, tensors=header.tensors, metadata=metadata)


def _strip(names: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Names without the prefix that most of them share."""
    for prefix in PREFIXES:
        if sum(name.startswith(prefix) for name in names) * 2 > len(names):
            return {name.removeprefix(prefix): info for name, info in names.items()}
    return dict(names)


def _official(names: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], str]:
    """Official keys, and whose names the file used; a name that no table knows stays as it is."""
    if TINY_DECODER in names:  # the encoder beside it is not used
        return {name: info for name, info in names.items() if name.startswith("decoder.")}, "TAEHV"
    for spelling, belongs, translate in _SPELLINGS:
        if any(belongs.match(name) for name in names):
            return {translate(name) or name: info for name, info in names.items()}, spelling
    return dict(names), "official"


_ELSEWHERE = re.compile(r"[/\\\\:\0]")
_SPELLINGS = (
    ("diffusers", re.compile(r"blocks\.\d+\.attn1\."), transformer_keys.official_key),
    ("diffusers", re.compile(r"(encoder|decoder)\.conv_in\."), vae_keys.official_key),
    ("transformers", re.compile(r"encoder\.block\.\d+\."), text_keys.official_key),
    ("GGUF", re.compile(r"enc\.blk\.\d+\."), text_keys.gguf_key),
)
"""Whose names, a name only they have, and the way to the official one."""
