"""Checked headers to networks: tensors stay mapped from disk and packed, layers unpack at use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attention import Attention, sdpa
from ..files import shown
from ..files.documents import DOCUMENT_LIMIT, read_small
from ..files.gguf import read_tokenizer
from ..ops import Ops, TorchOps
from ..quant import replace_layers
from ..text import Tokenizer, UMT5Encoder, check_vocabulary
from ..transformer import WanTransformer
from ..vae import TinyVAE, WanVAE
from .layouts import SPIECE_KEY, Checkpoint, open_checkpoint
from .packing import WAY_OUT
from .sizes import (
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    takes_normalized,
)

SPIECE_FILE = "spiece.model"
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Dtypes of weights that are not packed."""
DIFFUSERS_TEXT = "text_encoder"
"""Folder of the encoder in a diffusers repository; its tokenizer lies in one beside it."""


def check_keys(wanted: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the file has every wanted tensor in its shape and nothing else."""
    stored = checkpoint.tensors
    missing = [key for key in wanted if key not in stored]
    extra = [key for key in stored if key not in wanted and key != SPIECE_KEY]
    wrong = [
        f"{key} {stored[key].shape} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in stored and stored[key].shape != tuple(tensor.shape)
    ]
    unread = [
        f"{key} as {stored[key].dtype}"
        for key in wanted
        if key in stored and not _is_read(checkpoint, key)
    ]
    problems = {"missing": missing, "unknown": extra, "misshapen": wrong, "not readable": unread}
    told = [f"{len(v)} {k} (first: {shown(v[0])})" for k, v in problems.items() if v]
    if told:
        way_out = WAY_OUT if unread else "choose a complete file of this model"
        raise ValueError(f"{checkpoint.where} does not fit: {', '.join(told)}; {way_out}")


def check_complete(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless a file holds one whole network of its kind, and a text encoder its tokenizer."""
    meta = torch.device("meta")
    network: nn.Module
    if checkpoint.kind == "transformer":
        network = WanTransformer(detect_transformer_config(checkpoint), device=meta)
    elif checkpoint.kind == "vae":
        network = build_decoder(checkpoint)
    else:
        config = detect_text_config(checkpoint)
        check_vocabulary(find_tokenizer(checkpoint).vocab_size, config.vocab_size, checkpoint.name)
        network = UMT5Encoder(config, device=meta)
    check_keys(network.state_dict(), checkpoint)
    try:
        replace_layers(network, checkpoint.quants)
    except ValueError as error:
        raise ValueError(f"{checkpoint.where}: {error}") from error
    check_scales(checkpoint, checkpoint.read_scales())


def check_scales(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a weight scale among ``tensors`` that makes its weights worthless."""
    for key, scale in tensors.items():
        if not key.endswith(".weight_scale"):
            continue
        # One row may be all zeros, a whole matrix is not.
        if not scale.isfinite().all() or (scale.numel() == 1 and not scale.any()):
            raise ValueError(
                f"{checkpoint.where}: the scale {shown(key)} is zero or not finite; download it again"
            )


def _is_read(checkpoint: Checkpoint, key: str) -> bool:
    """Whether a weight is stored as floats, or as a matrix in a packing that is read."""
    quant = checkpoint.quants.get(key.removesuffix(".weight"))
    return checkpoint.tensors[key].dtype in FLOATS if quant is None else len(quant.shape) == 2


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors a network wants, mapped and in the dtype they are stored in: layers cast at use."""
    state = checkpoint.state_dict()
    state.pop(SPIECE_KEY, None)
    # The networks have no place for activation scales: they never multiply in low precision.
    return {key: tensor for key, tensor in state.items() if not key.endswith(".input_scale")}


def fill(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Load mapped tensors into a module built on the meta device; ValueError lists what differs."""
    check_keys(module.state_dict(), checkpoint)
    replace_layers(module, checkpoint.quants)
    state = weights(checkpoint)
    check_scales(checkpoint, state)
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a loaded network to the device it runs on; on the CPU its weights stay mapped.

    Tensor by tensor, so that no more than one is ever copied on the CPU. A parameter stored wider
    than ``dtype``, or as wide in another format, arrives as ``dtype``; packed weights as they are.
    """
    if device.type == "cpu":
        return
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            moved = weight.detach().to(device, arriving(weight, device, dtype))
            setattr(part, name, nn.Parameter(moved, requires_grad=False))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


def arriving(weight: Tensor, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype a parameter has on ``device`` where ``dtype`` is computed in, see :func:`place`."""
    kept = device.type == "cpu" or weight.dtype.itemsize < dtype.itemsize
    return weight.dtype if kept else dtype


def load_transformer(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    ops: Ops = TorchOps,
    attention: Attention = sdpa,
) -> WanTransformer:
    """One expert on the CPU in eval mode, computing in ``dtype``; weights stay mapped as stored."""
    checkpoint = open_checkpoint(path, "transformer")
    config = detect_transformer_config(checkpoint)
    meta = torch.device("meta")
    model = WanTransformer(config, ops=ops, attention=attention, device=meta, dtype=dtype)
    fill(model, checkpoint)
    return model


def load_vae(path: str | Path, *, dtype: torch.dtype | None = None, ops: Ops = TorchOps) -> WanVAE:
    """The VAE on the CPU in eval mode; raises ValueError for a tiny decoder."""
    checkpoint = open_checkpoint(path, "vae")
    if checkpoint.is_tiny:
        raise ValueError(
            f"{checkpoint.where} is a tiny decoder, which is not a whole VAE and cannot encode; use "
            "wan_2.1_vae"
        )
    vae = WanVAE(detect_vae_config(checkpoint), ops=ops, device=torch.device("meta"), dtype=dtype)
    fill(vae, checkpoint)
    return vae


def build_decoder(
    checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, ops: Ops = TorchOps
) -> WanVAE | TinyVAE:
    """The network of a VAE file or a tiny decoder, without its weights."""
    config, meta = detect_vae_config(checkpoint), torch.device("meta")
    if checkpoint.is_tiny:
        normalized = takes_normalized(checkpoint)
        return TinyVAE(config, normalized=normalized, ops=ops, device=meta, dtype=dtype)
    return WanVAE(config, ops=ops, device=meta, dtype=dtype)


def load_decoder(
    path: str | Path, *, dtype: torch.dtype | None = None, ops: Ops = TorchOps
) -> WanVAE | TinyVAE:
    """What decodes latents, a VAE or a tiny decoder, on the CPU in eval mode."""
    checkpoint = open_checkpoint(path, "vae")
    decoder = build_decoder(checkpoint, dtype=dtype, ops=ops)
    fill(decoder, checkpoint)
    return decoder


def load_text_encoder(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    ops: Ops = TorchOps,
    tokenizer: str | Path | None = None,
) -> tuple[UMT5Encoder, Tokenizer]:
    """The umT5 encoder on the CPU in eval mode, and its tokenizer: ``tokenizer`` or its own."""
    checkpoint = give_tokenizer(open_checkpoint(path, "text_encoder"), tokenizer)
    found = find_tokenizer(checkpoint)
    config = detect_text_config(checkpoint)
    encoder = UMT5Encoder(config, ops=ops, device=torch.device("meta"), dtype=dtype)
    fill(encoder, checkpoint)
    return encoder, found


def give_tokenizer(checkpoint: Checkpoint, tokenizer: str | Path | None) -> Checkpoint:
    """The text encoder with a ``spiece.model`` instead of its own; None changes nothing."""
    return checkpoint if tokenizer is None else replace(checkpoint, tokenizer=Path(tokenizer))


def find_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a text encoder, see :func:`find_pieces`."""
    pieces = find_pieces(checkpoint)
    try:
        return Tokenizer(pieces)
    except ValueError as error:
        raise ValueError(f"{checkpoint.where}: {error}") from error


def find_pieces(checkpoint: Checkpoint) -> bytes:
    """The sentencepiece model of a text encoder: the one it was given, inside its file, or beside it.

    Raises:
        OSError: the given one cannot be read.
        ValueError: there is none.
    """
    if checkpoint.tokenizer is not None:
        return read_small(checkpoint.tokenizer)
    if SPIECE_KEY in checkpoint.tensors:
        return _pieces_inside(checkpoint)
    if checkpoint.container == "gguf" and (pieces := read_tokenizer(checkpoint.path)):
        return pieces
    for folder in _tokenizer_folders(checkpoint.path):
        if (folder / SPIECE_FILE).is_file():
            return read_small(folder / SPIECE_FILE)
    raise ValueError(
        f"{checkpoint.where} holds no tokenizer; put umT5's spiece.model beside it, "
        "or use umt5_xxl_fp16.safetensors, which carries it"
    )


def _pieces_inside(checkpoint: Checkpoint) -> bytes:
    info = checkpoint.tensors[SPIECE_KEY]
    if info.dtype not in ("U8", "I8") or len(info.shape) != 1 or info.shape[0] > DOCUMENT_LIMIT:
        raise ValueError(
            f"{checkpoint.where} holds a {SPIECE_KEY} that is no tokenizer ({info.dtype} {info.shape}); "
            "download it again"
        )
    return bytes(checkpoint.read(SPIECE_KEY)[0].numpy().tobytes())


def _tokenizer_folders(path: Path) -> list[Path]:
    """Where a tokenizer may lie: beside the file, as in the official repository, as in diffusers'."""
    folder = path if path.is_dir() else path.parent
    places = [folder, folder / "google" / "umt5-xxl"]
    return [*places, folder.parent / "tokenizer"] if folder.name == DIFFUSERS_TEXT else places
