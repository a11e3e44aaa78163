"""Torch's own files (.pth, .pt): a zip archive of one pickle and the bytes of its tensors.

The pickle is read by torch's restricted unpickler, after a look at what it names: nothing but tensors,
their storages and ordered dictionaries. The file is mapped for that already, not opened on the ``meta``
device: torch then checks each tensor against bytes that are there, and ``meta`` takes any size on trust.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .archive import damaged, read_member, torch_members
from .header import DTYPES, NAMES, Header, TensorInfo, asked
from .paths import shown

WRAPPERS = ("model_state", "state_dict", "model")
_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch Size",
    "torch.storage UntypedStorage",
    *(f"torch {str(dtype).removeprefix('torch.')}" for dtype in DTYPES.values()),
    *(f"torch {kind}Storage" for kind in (
        "Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double",
        "ComplexFloat",
    )),
}  # fmt: skip


def read_header(path: Path) -> Header:
    """Tensors of one torch file; there is no metadata.

    Raises:
        ValueError: not written by ``torch.save``, damaged, or holding more than tensors.
    """
    infos = {
        name: TensorInfo(path, name, NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in _load(path).items()
    }
    return Header(container="pickle", tensors=infos, metadata={})


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by stored name, mapped from disk; only one of unusual strides is copied, in order."""
    tensors = _load(path)
    return {name: tensors[name].contiguous() for name in asked(path, names, tensors)}


def legacy(path: Path) -> ValueError:
    """The refusal of a pickle that is no zip archive: it cannot be mapped, nor looked into first."""
    return ValueError(
        f"{shown(path)} is a bare pickle, as torch wrote before 1.6 or another program writes, which "
        "is not loaded; use the .safetensors file of the same model"
    )


def _load(path: Path) -> dict[str, Tensor]:
    """All tensors, mapped and checked."""
    members = torch_members(path)
    _scan(path, read_member(path, members.pickle))
    if path.suffix.lower() == ".safetensors":  # torch.load goes by this ending
        raise ValueError(f"{shown(path)} is a torch file by its content; rename it to .pth")
    if members.byteorder is not None:
        order = read_member(path, members.byteorder)
        if order not in (b"little", b"big"):
            raise damaged(path, "it tells no byte order")
        if order.decode() != sys.byteorder:
            raise ValueError(
                f"{shown(path)} was written in {order.decode()}-endian byte order; "
                "use the .safetensors file of the same model"
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:
        raise damaged(path, "its pickle does not fit its parts") from error
    tensors = _tensors(path, content)
    for name, tensor in tensors.items():
        _check(path, name, tensor, members.sizes)
    return tensors


def _scan(path: Path, pickle: bytes) -> None:
    """Raise ValueError if the pickle names anything but tensors; nothing is run or imported."""
    protocol, names, strings = 0, list[str](), ("", "")
    try:
        for code, argument, _ in pickletools.genops(pickle):
            if code.name in ("GLOBAL", "INST"):
                names.append(str(argument))
            elif code.name == "STACK_GLOBAL":
                names.append(" ".join(strings))
            elif code.name == "PROTO":
                protocol = int(argument or 0)
            elif isinstance(argument, str):
                strings = (strings[1], argument)
    except ValueError as error:
        raise damaged(path, "its pickle cannot be read") from error
    if foreign := [name for name in names if name not in _ALLOWED]:
        raise ValueError(
            f"{shown(path)} holds code or objects ({shown(foreign[0].replace(' ', '.'))}) beside its "
            "tensors and is not loaded; use the .safetensors file of the same model"
        )
    if protocol != 2:
        raise ValueError(
            f"{shown(path)} is of pickle protocol {protocol}, torch's safe reader takes 2; "
            "use the .safetensors file of the same model"
        )


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors by name, out of one wrapper if there is one; whatever lies beside them is left."""
    if isinstance(content, Mapping):
        for table in (content, *(content.get(wrapper) for wrapper in WRAPPERS)):
            tensors = _named(table)
            if tensors:
                return tensors
    raise ValueError(f"{shown(path)} holds no named tensors; use a file of model weights")


def _named(table: object) -> dict[str, Tensor]:
    if not isinstance(table, Mapping):
        return {}
    return {
        name: value.detach()
        for name, value in table.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _check(path: Path, name: str, tensor: Tensor, sizes: frozenset[int]) -> None:
    """Raise ValueError unless a tensor has its own bytes in the file."""
    if tensor.dtype not in NAMES or tensor.layout is not torch.strided:
        raise ValueError(
            f"{shown(path)} stores '{shown(name)}' as {tensor.dtype}, which is not read; "
            "use a file in another precision"
        )
    stored = tensor.untyped_storage().nbytes()
    # A mapped slice that would pass the end of the file is silently shorter.
    if stored not in sizes and stored:
        raise damaged(path, f"'{shown(name)}' is not of the size of its part")
    if tensor.numel() * tensor.itemsize > stored:
        raise ValueError(
            f"{shown(path)} stores '{shown(name)}' as a repeated view; "
            "use the .safetensors file of the same model"
        )
