"""Published weight files: headers first, then lazily mapped tensors under official keys.

Read today: safetensors in official keys (bare or prefixed), official sharded expert folders, and the
umT5 encoder under official or transformers names. Nothing but headers is read before everything
that headers can tell has been checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .attention import Attention, sdpa
from .config import TextConfig, TransformerConfig, VAEConfig
from .ops import Ops, TorchOps
from .text import Tokenizer, UMT5Encoder, official_key
from .transformer import WanTransformer
from .vae import WanVAE

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "text_encoders.umt5xxl.transformer.",
    "model.",
)
SPIECE_KEY = "spiece_model"
HEADER_LIMIT = 100 * 1024 * 1024
HEAD_DIM = 128
OFFICIAL_FOLDERS = ("high_noise_model", "low_noise_model")
KINDS = {
    "transformer": "an expert (diffusion model)",
    "vae": "a VAE",
    "text_encoder": "an umT5 text encoder",
}
MARKERS = {
    "transformer": "head.modulation",
    "vae": "decoder.middle.0.residual.0.gamma",
    "text_encoder": "blocks.0.pos_embedding.embedding.weight",
}
OTHER_VARIANTS = {
    "vace_patch_embedding.weight": "a VACE model",
    "control_adapter.conv.weight": "a camera-control model",
    "img_emb.proj.0.bias": "a Wan2.1 image-to-video model",
    "casual_audio_encoder.encoder.final_linear.weight": "a speech-to-video model",
    "face_adapter.fuser_blocks.0.k_norm.weight": "an Animate model",
}
QUANTISED = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scale|comfy_quant)$")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and how it is stored."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A file or sharded folder whose headers were read: official key -> :class:`TensorInfo`."""

    path: Path
    kind: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes on disk of all files of this checkpoint."""
        return sum(file.stat().st_size for file in {info.file for info in self.tensors.values()})

    @property
    def role(self) -> str | None:
        """``high_noise``, ``low_noise`` or None: from the header, else from file and folder names."""
        if "wan_role" in self.metadata:
            return self.metadata["wan_role"]
        folder = self.path.parent.name
        names = [self.path.name, folder if folder in OFFICIAL_FOLDERS else ""]
        for name in names:
            words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
            high, low = ({w, f"{w}noise"} & set(words) for w in ("high", "low"))
            if bool(high) != bool(low):
                return "high_noise" if high else "low_noise"
        return None

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        """Shape of one tensor of ``axes`` axes; ValueError names the file when it has not got it."""
        if key not in self.tensors:
            raise ValueError(
                f"{self.path} has no tensor {key!r}; it is incomplete, download it again"
            )
        shape = self.tensors[key].shape
        if len(shape) != axes:
            raise ValueError(
                f"{self.path} holds {key!r} with {len(shape)} axes, not {axes}; choose another file"
            )
        return shape

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, mapped from disk: pages are read when they are first used."""
        out: dict[str, Tensor] = {}
        for file in sorted({info.file for info in self.tensors.values()}):
            with safe_open(str(file), framework="pt") as handle:
                for key, info in self.tensors.items():
                    if info.file == file:
                        out[key] = handle.get_tensor(info.name)
        return out


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensor infos by stored name, and the metadata, of one safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or shorter than its header says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the name or download the file")
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(size, HEADER_LIMIT):
            raise ValueError(f"{path} is not a safetensors file; use a .safetensors download")
        raw = handle.read(length)
    try:
        infos, metadata, payload = _parse_header(path, json.loads(raw))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is not a safetensors file; use a .safetensors download"
        ) from error
    end = 8 + length + payload
    if size < end:
        raise ValueError(f"{path} is truncated: {size} of {end} bytes; download it again")
    return infos, metadata


def _parse_header(
    path: Path, header: dict[str, Any]
) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """Infos, metadata and bytes of tensor data; any wrong structure raises what Python raises."""
    metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    infos = {
        name: TensorInfo(path, name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
        for name, entry in header.items()
    }
    ends = (int(entry["data_offsets"][1]) for entry in header.values())
    return infos, metadata, max(ends, default=0)


def _read_folder(folder: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The headers of an official expert folder: shards listed by an index, or a single file."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(
                f"{folder} holds {len(files)} .safetensors files and no index; "
                "choose one expert's folder (high_noise_model or low_noise_model) or a file"
            )
        return read_header(files[0])
    try:
        weight_map = json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{indexes[0]} is not an index of shards; download the folder again"
        ) from error
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for name in names:
        shard, shard_metadata = read_header(folder / name)
        infos.update(shard)
        metadata.update(shard_metadata)
    missing = sorted(set(weight_map) - set(infos))
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors its index lists (first: {missing[0]}); "
            "download the folder again"
        )
    return infos, metadata


def _strip(names: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Official keys: a common prefix removed, transformers' umT5 names translated."""
    for prefix in PREFIXES:
        if sum(name.startswith(prefix) for name in names) * 2 > len(names):
            names = {name.removeprefix(prefix): info for name, info in names.items()}
            break
    if any(name.startswith("encoder.block.") for name in names):
        names = {official_key(name) or name: info for name, info in names.items()}
    return dict(names)


def open_checkpoint(path: str | Path, expected: str | None = None) -> Checkpoint:
    """Read the headers of a file or folder and say what it is.

    Args:
        path: a .safetensors file or an official expert folder.
        expected: ``transformer``, ``vae`` or ``text_encoder``; None accepts any.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not safetensors, truncated, unknown, or not what was expected.
    """
    path = Path(path)
    names, metadata = _read_folder(path) if path.is_dir() else read_header(path)
    tensors = _strip(names)
    kind = next((kind for kind, marker in MARKERS.items() if marker in tensors), None)
    want = KINDS[expected] if expected else "Wan weights"
    if kind is None:
        first = next(iter(names), "nothing")
        raise ValueError(f"{path} is not {want} (it holds {first!r}, ...); choose another file")
    if expected and kind != expected:
        raise ValueError(f"{path} is {KINDS[kind]}, not {want}; choose another file")
    quantised = next((name for name in tensors if QUANTISED.search(name)), None)
    if quantised:
        raise ValueError(
            f"{path} is quantised with scales ({quantised}), which is not read yet; "
            "use the fp16 or bf16 file of the same model"
        )
    return Checkpoint(path=path, kind=kind, tensors=tensors, metadata=metadata)


def _count(checkpoint: Checkpoint, pattern: str) -> int:
    found = (re.match(pattern, key) for key in checkpoint.tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def detect_transformer_config(checkpoint: Checkpoint) -> TransformerConfig:
    """Sizes of a text-to-video expert, from its shapes; ValueError names other variants."""
    path = checkpoint.path
    for key, variant in OTHER_VARIANTS.items():
        if key in checkpoint.tensors:
            raise ValueError(f"{path} is {variant}; choose a Wan2.2 text-to-video expert")
    dim = checkpoint.shape("head.modulation", 3)[-1]
    in_dim = checkpoint.shape("patch_embedding.weight", 5)[1]
    out_dim = checkpoint.shape("head.head.weight", 2)[0] // 4
    if (in_dim, out_dim) != (16, 16):
        raise ValueError(
            f"{path} maps {in_dim} to {out_dim} channels, text-to-video experts map 16 to 16; "
            "choose a Wan2.2 T2V-A14B expert (image-to-video and 5B files are other models)"
        )
    if dim % HEAD_DIM:
        raise ValueError(
            f"{path} has width {dim}, not a multiple of {HEAD_DIM}; choose another file"
        )
    return TransformerConfig(
        dim=dim,
        ffn_dim=checkpoint.shape("blocks.0.ffn.0.weight", 2)[0],
        num_heads=dim // HEAD_DIM,
        num_layers=_count(checkpoint, r"blocks\.(\d+)\."),
        text_dim=checkpoint.shape("text_embedding.0.weight", 2)[1],
        freq_dim=checkpoint.shape("time_embedding.0.weight", 2)[1],
    )


def detect_vae_config(checkpoint: Checkpoint) -> VAEConfig:
    """Sizes of a Wan2.1-architecture VAE; ValueError for the 48-channel Wan2.2 VAE."""
    z_dim = checkpoint.shape("conv2.weight", 5)[0]
    if z_dim != VAEConfig().z_dim:
        raise ValueError(
            f"{checkpoint.path} is a VAE of {z_dim} latent channels; T2V-A14B needs the Wan2.1 VAE "
            f"({VAEConfig().z_dim} channels), for example wan_2.1_vae.safetensors"
        )
    return VAEConfig(dim=checkpoint.shape("encoder.conv1.weight", 5)[0])


def detect_text_config(checkpoint: Checkpoint) -> TextConfig:
    """Sizes of an umT5 encoder."""
    vocab_size, dim = checkpoint.shape("token_embedding.weight", 2)
    num_buckets, num_heads = checkpoint.shape("blocks.0.pos_embedding.embedding.weight", 2)
    return TextConfig(
        vocab_size=vocab_size,
        dim=dim,
        attn_dim=checkpoint.shape("blocks.0.attn.q.weight", 2)[0],
        num_heads=num_heads,
        ffn_dim=checkpoint.shape("blocks.0.ffn.fc1.weight", 2)[0],
        num_layers=_count(checkpoint, r"blocks\.(\d+)\."),
        num_buckets=num_buckets,
    )


def check_pair(high: Checkpoint, low: Checkpoint) -> None:
    """Raise ValueError unless two files can be one pair: different, of one shape, not swapped."""
    if high.path.resolve() == low.path.resolve():
        raise ValueError(
            f"{high.path} was given for both experts; choose the other file for one of them"
        )
    if high.role == "low_noise" and low.role == "high_noise":
        raise ValueError(
            f"the experts are swapped: {high.path.name} is the low-noise expert; exchange the files"
        )
    for given, role in ((high, "high_noise"), (low, "low_noise")):
        if given.role not in (None, role):
            word = role.partition("_")[0]
            raise ValueError(
                f"{given.path.name} is the other expert by its name or header; "
                f"choose a {word}-noise file there"
            )
    config, other = detect_transformer_config(high), detect_transformer_config(low)
    if config != other:
        raise ValueError(
            f"{high.path.name} has width {config.dim} and {config.num_layers} layers, "
            f"{low.path.name} {other.dim} and {other.num_layers}; choose two experts of one model"
        )


def fill(module: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
    """Load mapped tensors into a module built on the meta device; ValueError lists what differs."""
    wanted = module.state_dict()
    check_keys(wanted, checkpoint)
    state = {key: t for key, t in checkpoint.state_dict().items() if key in wanted}
    if dtype is not None:
        state = {key: tensor.to(dtype) for key, tensor in state.items()}
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)


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
    problems = {"missing": missing, "unknown": extra, "misshapen": wrong}
    told = [f"{len(v)} {k} (first: {v[0]})" for k, v in problems.items() if v]
    if told:
        raise ValueError(
            f"{checkpoint.path} does not fit: {', '.join(told)}; choose a complete file of this model"
        )


def load_transformer(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    ops: Ops = TorchOps,
    attention: Attention = sdpa,
) -> WanTransformer:
    """One expert on the CPU in eval mode; weights stay mapped in their stored dtype unless given."""
    checkpoint = open_checkpoint(path, "transformer")
    config = detect_transformer_config(checkpoint)
    meta = torch.device("meta")
    model = WanTransformer(config, ops=ops, attention=attention, device=meta, dtype=dtype)
    fill(model, checkpoint, dtype)
    return model


def load_vae(path: str | Path, *, dtype: torch.dtype | None = None, ops: Ops = TorchOps) -> WanVAE:
    """The VAE on the CPU in eval mode."""
    checkpoint = open_checkpoint(path, "vae")
    vae = WanVAE(detect_vae_config(checkpoint), ops=ops, device=torch.device("meta"), dtype=dtype)
    fill(vae, checkpoint, dtype)
    return vae


def load_text_encoder(
    path: str | Path, *, dtype: torch.dtype | None = None, ops: Ops = TorchOps
) -> tuple[UMT5Encoder, Tokenizer]:
    """The umT5 encoder on the CPU in eval mode, and its tokenizer."""
    checkpoint = open_checkpoint(path, "text_encoder")
    config = detect_text_config(checkpoint)
    tokenizer = find_tokenizer(checkpoint)
    encoder = UMT5Encoder(config, ops=ops, device=torch.device("meta"), dtype=dtype)
    fill(encoder, checkpoint, dtype)
    return encoder, tokenizer


def find_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The sentencepiece model inside the file, or ``spiece.model`` beside it."""
    if SPIECE_KEY in checkpoint.tensors:
        info = checkpoint.tensors[SPIECE_KEY]
        with safe_open(str(info.file), framework="pt") as handle:
            return Tokenizer(bytes(handle.get_tensor(info.name).tolist()))
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    for candidate in (folder / "spiece.model", folder / "google" / "umt5-xxl" / "spiece.model"):
        if candidate.is_file():
            return Tokenizer.from_file(candidate)
    raise ValueError(
        f"{checkpoint.path} holds no tokenizer; put umT5's spiece.model beside it, "
        "or use umt5_xxl_fp16.safetensors, which carries it"
    )
