"""The reference composition: prompt -> context -> one trajectory over two experts -> frames.

Everything that settings, shapes and file headers can tell is checked before a weight is read. One
network is in memory at a time: the text encoder leaves before the high-noise expert comes, and the
low-noise expert is read at the switch, when the other one has left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import (
    Checkpoint,
    check_keys,
    check_pair,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    find_tokenizer,
    load_text_encoder,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from .config import FAMILIES, T2V_A14B, SamplingConfig
from .experts import Stage, boundary_at_step, check_boundary, count_high, route
from .guidance import cfg, check_scale, needs_uncond
from .sampling import Callback, sample
from .schedule import Schedule, Velocity, make_schedule
from .shapes import LatentShape, latent_shape
from .solvers import Solver, get_solver
from .text import UMT5Encoder, check_vocabulary, clean, encode_prompt
from .transformer import WanTransformer
from .vae import WanVAE, denormalize
from .video import to_uint8

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).resolve().parents[1] / "tiny" / "weights"
"""Weights of the miniature family that comes with the repository."""

MAX_SEED = 2**64 - 1
PARTS = {
    "high": "high-noise expert",
    "low": "low-noise expert",
    "vae": "VAE",
    "text": "text encoder",
}
"""The four files of a system, by the names of :meth:`Pipeline.load`'s arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One clip to make.

    Attributes:
        prompt: what the clip shows; never empty.
        sampling: how; start from :attr:`Pipeline.defaults` and ``dataclasses.replace``. An empty
            ``negative_prompt`` stands for the official one, as in the official pipeline.
        seed: of the initial noise, 0 to 2**64 - 1.
        switch_step: how many steps the high-noise expert runs; None lets ``sampling.boundary``
            decide.
    """

    prompt: str
    sampling: SamplingConfig
    seed: int = 0
    switch_step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """A checked request: what will run, known before any weight is read."""

    schedule: Schedule
    solver: Solver
    boundary: float
    shape: LatentShape

    @property
    def high_steps(self) -> int:
        """Steps on the high-noise expert; the others run on the low-noise one."""
        return count_high(self.schedule, self.boundary)

    def expert(self, step: int) -> str:
        """Name of the expert that ran when ``step`` steps are done (1..N)."""
        return PARTS["high" if step <= self.high_steps else "low"]


def make_plan(request: Request, channels: int) -> Plan:
    """Check a request for a model of ``channels`` latent channels.

    Raises:
        ValueError: an empty prompt, or any setting the model cannot run; one sentence says which.
    """
    given = request.sampling
    if not clean(request.prompt):
        raise ValueError(
            "the prompt is empty; say what the clip shows, "
            "such as 'a red circle moves left on a white background'"
        )
    if not 0 <= request.seed <= MAX_SEED:
        raise ValueError(f"seed={request.seed} is not within 0 to 2**64 - 1; use one that is")
    shape = latent_shape(given.num_frames, given.height, given.width, channels=channels)
    schedule = make_schedule(given.schedule, steps=given.steps, shift=given.shift)
    if request.switch_step is None:
        check_boundary(given.boundary)
        boundary = given.boundary
    else:
        boundary = boundary_at_step(schedule, request.switch_step)
    for scale in (given.guidance_high, given.guidance_low):
        check_scale(scale)
    solver = get_solver(given.solver)
    return Plan(schedule=schedule, solver=solver, boundary=boundary, shape=shape)


def make_noise(shape: LatentShape, seed: int) -> Tensor:
    """Initial noise (1, C, T, h, w) float32, drawn on the CPU exactly as ComfyUI draws it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)


def find_parts(
    folder: str | Path = BUNDLED, given: Mapping[str, str | Path] | None = None
) -> dict[str, Path]:
    """The four files of a system in ``folder`` and its direct subfolders, told apart by headers.

    Args:
        folder: official layout (``high_noise_model/`` ...) or any .safetensors files.
        given: parts named one by one, by the names of ``PARTS``; they are not looked for.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a part is not there, or two files could be it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; check the name")
    parts = {part: Path(path) for part, path in (given or {}).items()}
    skipped = ""
    found: dict[str, Path] = {}
    for path in _candidates(folder):
        try:
            part = _part(open_checkpoint(path))
        except ValueError as error:
            skipped = skipped or f"; not usable: {error}"
            continue
        if part is None or part in parts:
            continue
        if part in found:
            raise ValueError(
                f"{folder} holds two files for the {PARTS[part]}, {found[part].name} and "
                f"{path.name}; name the one you want"
            )
        found[part] = path
    parts |= found
    missing = [name for part, name in PARTS.items() if part not in parts]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}; put the .safetensors files there "
            f"(an expert's name says high or low noise) or name them one by one{skipped}"
        )
    return parts


def _candidates(folder: Path) -> Iterator[Path]:
    """Checkpoints in and directly below ``folder``; an official expert's shards count as one."""
    for place in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        if any(place.glob("*.safetensors.index.json")):
            yield place
        else:
            yield from sorted(place.glob("*.safetensors"))


def _part(checkpoint: Checkpoint) -> str | None:
    if checkpoint.kind == "vae":
        return "vae"
    if checkpoint.kind == "text_encoder":
        return "text"
    return {"high_noise": "high", "low_noise": "low"}.get(checkpoint.role or "")


def family_defaults(expert: Checkpoint) -> SamplingConfig:
    """How this expert wants to be sampled: by its header, else by its sizes, else as T2V-A14B."""
    try:
        header = json.loads(expert.metadata.get("wan_config", "{}"))
    except ValueError:
        log.warning("%s: its wan_config is not JSON and is ignored", expert.path)
        header = {}
    config = detect_transformer_config(expert)
    families = (f.sampling for f in FAMILIES.values() if f.transformer == config)
    sampling = next(families, T2V_A14B.sampling)
    told = header.get("sampling") if isinstance(header, Mapping) else None
    if not isinstance(told, Mapping):
        return sampling
    known = {field.name: getattr(sampling, field.name) for field in fields(SamplingConfig)}
    told = {key: value for key, value in told.items() if key in known}
    for key, value in told.items():
        if type(value) is not type(known[key]):
            raise ValueError(f"{expert.path}: its header has {key}={value!r}; download it again")
    sampling = replace(sampling, **told)
    check_boundary(sampling.boundary)
    return sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A complete text-to-video system whose headers were read and checked; weights come per run.

    Attributes:
        high, low, vae, text: the four files.
        defaults: settings of the family.
        device: where networks run.
        dtype: compute dtype of the experts; text and VAE run in float32, as ComfyUI's text encoder
            and the official VAE do.
    """

    high: Checkpoint
    low: Checkpoint
    vae: Checkpoint
    text: Checkpoint
    defaults: SamplingConfig
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        *,
        high: str | Path,
        low: str | Path,
        vae: str | Path,
        text: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """Read and check the headers of four files or official folders, see :func:`find_parts`.

        Args:
            high: high-noise expert.
            low: low-noise expert.
            vae: VAE.
            text: umT5 encoder; its tokenizer is in the file or beside it.
            device: None takes CUDA where there is one, else the CPU.
            dtype: None takes bfloat16 on CUDA and float32 elsewhere.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is damaged or of another model, or the four do not belong together.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        experts = open_checkpoint(high, "transformer"), open_checkpoint(low, "transformer")
        check_pair(*experts)
        pipeline = cls(
            high=experts[0],
            low=experts[1],
            vae=open_checkpoint(vae, "vae"),
            text=open_checkpoint(text, "text_encoder"),
            defaults=family_defaults(experts[0]),
            device=device,
            dtype=dtype,
        )
        pipeline._check_parts()
        return pipeline

    def plan(self, request: Request) -> Plan:
        """Check ``request`` against this system; raises ValueError, see :func:`make_plan`."""
        return make_plan(request, detect_transformer_config(self.high).in_dim)

    def encode(self, request: Request) -> tuple[Tensor, Tensor]:
        """Contexts (1, 512, text_dim) float32 of the prompt and the negative prompt."""
        negative = request.sampling.negative_prompt
        if not clean(negative):
            negative = SamplingConfig().negative_prompt
        log.info("reading %s", self.text.path)
        encoder, tokenizer = load_text_encoder(self.text.path)
        encoder.to(self.device)
        positive, other = (
            encode_prompt(encoder, tokenizer, text, dtype=torch.float32)
            for text in (request.prompt, negative)
        )
        return positive, other

    def sample(self, request: Request, callback: Callback | None = None) -> Tensor:
        """Latents (1, 16, T, h, w) float32 of a request: raw, as on a ComfyUI LATENT socket.

        Args:
            request: checked first, see :meth:`plan`.
            callback: called after each step with its :class:`~.sampling.Progress`.
        """
        plan = self.plan(request)
        contexts = self.encode(request)
        scales = {"high": request.sampling.guidance_high, "low": request.sampling.guidance_low}
        expert = _Expert(self)
        boundaries = {"high": plan.boundary, "low": 0.0}
        stages = [
            Stage(
                name=PARTS[part],
                boundary=boundary,
                velocity=_guided(partial(expert, part), plan.schedule, contexts, scales[part]),
            )
            for part, boundary in boundaries.items()
        ]
        noise = make_noise(plan.shape, request.seed).to(self.device)
        velocity = route(stages, plan.schedule)
        x = sample(velocity, noise, plan.schedule, plan.solver, callback=callback)
        return denormalize(x, detect_vae_config(self.vae))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames of raw latents (1, 16, T, h, w), as they come: (n, H, W, 3) uint8, n = 1, 4, 4, ..."""
        log.info("reading %s", self.vae.path)
        vae = load_vae(self.vae.path, dtype=torch.float32).to(self.device)
        for video in vae.decode_stream(latents.to(self.device, torch.float32)):
            yield to_uint8(video[0]).cpu()

    def generate(self, request: Request, callback: Callback | None = None) -> Iterator[Tensor]:
        """Frames of a request, streamed as :meth:`decode` gives them; sampling runs at the call."""
        return self.decode(self.sample(request, callback))

    def _check_parts(self) -> None:
        """Every file is complete and the four fit together: keys, shapes, widths, channels."""
        expert, vae = detect_transformer_config(self.high), detect_vae_config(self.vae)
        text = detect_text_config(self.text)
        if text.dim != expert.text_dim:
            raise ValueError(
                f"{self.text.path.name} gives text of width {text.dim}, the experts read "
                f"{expert.text_dim}; use the text encoder of the same family"
            )
        if vae.z_dim != expert.out_dim:
            raise ValueError(
                f"{self.vae.path.name} has {vae.z_dim} latent channels, the experts make "
                f"{expert.out_dim}; use the VAE of the same family"
            )
        built: list[tuple[nn.Module, Checkpoint]] = [
            (WanTransformer(expert, device=torch.device("meta")), self.high),
            (WanTransformer(expert, device=torch.device("meta")), self.low),
            (WanVAE(vae, device=torch.device("meta")), self.vae),
            (UMT5Encoder(text, device=torch.device("meta")), self.text),
        ]
        for module, checkpoint in built:
            check_keys(module.state_dict(), checkpoint)
        pieces = find_tokenizer(self.text).vocab_size
        check_vocabulary(pieces, text.vocab_size, self.text.path.name)


class _Expert:
    """The one expert in memory; asking for the other one lets it go first."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._held: tuple[str, WanTransformer] | None = None

    def __call__(self, part: str) -> WanTransformer:
        if self._held is None or self._held[0] != part:
            self._held = None
            pipeline = self._pipeline
            path = {"high": pipeline.high, "low": pipeline.low}[part].path
            log.info("reading %s", path)
            model = load_transformer(path, dtype=pipeline.dtype).to(pipeline.device)
            self._held = part, model
        return self._held[1]


def _guided(
    expert: Callable[[], WanTransformer],
    schedule: Schedule,
    contexts: tuple[Tensor, Tensor],
    scale: float,
) -> Velocity:
    """Velocity of one expert under classifier-free guidance of its own scale."""
    positive, negative = contexts

    def velocity(x: Tensor, sigma: float) -> Tensor:
        model = expert()
        timestep = torch.full((x.shape[0],), schedule.timestep(sigma), device=x.device)
        seen = x.to(model.dtype)
        cond: Tensor = model(seen, timestep, positive)
        if not needs_uncond(scale):
            return cond
        return cfg(cond, model(seen, timestep, negative), scale)

    return velocity
