"""The reference composition: prompt -> context -> one trajectory over two experts -> frames.

Everything that settings, shapes and file headers can tell is checked before a weight is read. One
network is in memory at a time: the text encoder leaves before the high-noise expert comes, and the
low-noise expert is read at the switch, when the other one has left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import (
    PARTS,
    Checkpoint,
    check_complete,
    check_pair,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    family_defaults,
    give_tokenizer,
    load_decoder,
    load_text_encoder,
    load_transformer,
    open_checkpoint,
    place,
)
from .config import SamplingConfig
from .experts import Stage, boundary_at_step, check_boundary, count_high, route
from .files import shown
from .guidance import cfg, check_scale, needs_uncond
from .keys.roles import HIGH, LOW
from .lora import Resolved, apply_loras, coverage, parameter_shapes, read_lora, resolve
from .sampling import Callback, sample
from .schedule import Schedule, Velocity, make_schedule
from .shapes import LatentShape, latent_shape
from .solvers import Solver, get_solver
from .text import clean, encode_prompt
from .transformer import WanTransformer
from .vae import denormalize
from .video import to_uint8

log = logging.getLogger(__name__)

MAX_SEED = 2**64 - 1
ROLE_OF = {"high": HIGH, "low": LOW}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraUse:
    """A LoRA file to run with.

    Attributes:
        path: the file.
        strength: any real number; 1 is what it was trained for.
        part: ``high`` or ``low``; None lets the file say, see :attr:`~.lora.LoraFile.experts`.
    """

    path: Path
    strength: float = 1.0
    part: str | None = None


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A complete text-to-video system whose headers were read and checked; weights come per run.

    Attributes:
        high, low, vae, text: the four files.
        defaults: settings of the family.
        device: where networks run.
        dtype: compute dtype of the experts; text and VAE run in float32, as ComfyUI's text encoder
            and the official VAE do.
        loras: ``high`` or ``low`` -> its LoRAs with their strengths, in the order they act.
    """

    high: Checkpoint
    low: Checkpoint
    vae: Checkpoint
    text: Checkpoint
    defaults: SamplingConfig
    device: torch.device
    dtype: torch.dtype
    loras: Mapping[str, Sequence[tuple[Resolved, float]]] = field(
        default_factory=lambda: {"high": (), "low": ()}
    )

    @classmethod
    def load(  # noqa: PLR0913 - eight independent choices, each by its name
        cls,
        *,
        high: str | Path,
        low: str | Path,
        vae: str | Path,
        text: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        tokenizer: str | Path | None = None,
        allow_mismatch: bool = False,
    ) -> Pipeline:
        """Read and check the headers of four files or official folders, see :func:`~.checkpoint.find_parts`.

        Args:
            high: high-noise expert.
            low: low-noise expert.
            vae: VAE, or a tiny decoder for a draft.
            text: umT5 encoder; its tokenizer is in the file or beside it.
            device: None takes CUDA where there is one, else the CPU.
            dtype: None takes bfloat16 on CUDA and float32 elsewhere.
            tokenizer: ``spiece.model`` of the text encoder; None finds it in or beside its file.
            allow_mismatch: run experts that do not look like a pair; the log says what is odd.

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
        for oddity in check_pair(*experts, allow_mismatch=allow_mismatch):
            log.warning("%s", oddity)
        pipeline = cls(
            high=experts[0],
            low=experts[1],
            vae=open_checkpoint(vae, "vae"),
            text=give_tokenizer(open_checkpoint(text, "text_encoder"), tokenizer),
            defaults=family_defaults(experts[0]),
            device=device,
            dtype=dtype,
        )
        pipeline._check_parts()
        return pipeline

    def with_loras(self, uses: Sequence[LoraUse], *, allow_mismatch: bool = False) -> Pipeline:
        """The same system with these LoRAs instead of those it had; the log says what each covers.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is damaged, of another network, or, unless ``allow_mismatch``, for the
                other expert.
        """
        experts = {"high": self.high, "low": self.low}
        found = {
            part: resolve_loras(uses, part, expert, allow_mismatch=allow_mismatch)
            for part, expert in experts.items()
        }
        return replace(self, loras=found)

    def plan(self, request: Request) -> Plan:
        """Check ``request`` against this system; raises ValueError, see :func:`make_plan`."""
        return make_plan(request, detect_transformer_config(self.high).in_dim)

    def encode(self, request: Request) -> tuple[Tensor, Tensor]:
        """Contexts (1, 512, text_dim) float32 of the prompt and the negative prompt."""
        negative = request.sampling.negative_prompt
        if not clean(negative):
            negative = SamplingConfig().negative_prompt
        log.info("reading %s", self.text.path)
        encoder, tokenizer = load_text_encoder(self.text.path, tokenizer=self.text.tokenizer)
        place(encoder, self.device, torch.float32)
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
        vae = load_decoder(self.vae.path, dtype=torch.float32)
        place(vae, self.device, torch.float32)
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
                f"{self.text.name} gives text of width {text.dim}, the experts read "
                f"{expert.text_dim}; use the text encoder of the same family"
            )
        if vae.z_dim != expert.out_dim:
            raise ValueError(
                f"{self.vae.name} has {vae.z_dim} latent channels, the experts make "
                f"{expert.out_dim}; use the VAE of the same family"
            )
        for checkpoint in (self.high, self.low, self.vae, self.text):
            check_complete(checkpoint)


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
            model = load_transformer(path, dtype=pipeline.dtype)
            place(model, pipeline.device, pipeline.dtype)
            apply_loras(model, pipeline.loras[part])
            self._held = part, model
        return self._held[1]


def resolve_loras(
    uses: Sequence[LoraUse], part: str, expert: Checkpoint, *, allow_mismatch: bool
) -> list[tuple[Resolved, float]]:
    """The LoRAs that act on one expert, with their strengths; the log says what each covers.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged, of another network, or for the other expert.
    """
    role = ROLE_OF[part]
    config = detect_transformer_config(expert)
    names = parameter_shapes(WanTransformer(config, device=torch.device("meta")))
    found: list[tuple[Resolved, float]] = []
    for use in uses:
        if not isfinite(use.strength):
            raise ValueError(
                f"the strength of {shown(use.path.name)} is {use.strength}; use a number"
            )
        file, name = read_lora(use.path), shown(use.path.name)
        if use.part is None and role not in file.experts:
            why = "it is made for Wan2.1" if file.base == "Wan2.1" else "it is for the other one"
            log.warning("%s leaves the %s as it is: %s", name, PARTS[part], why)
            continue
        if use.part not in (None, part):
            continue
        section = file.section(role)
        if section is None or (file.role not in (None, role) and not allow_mismatch):
            raise ValueError(
                f"{name} is a LoRA for the other expert, not the {PARTS[part]}; "
                "give it to that one, or allow a mismatch"
            )
        if file.role not in (None, role):
            log.warning("%s is made for the other expert than the %s", name, PARTS[part])
        resolved = resolve(section, names)
        log.warning("%s on the %s: %s", name, PARTS[part], coverage(resolved))
        found.append((resolved, use.strength))
    return found


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
