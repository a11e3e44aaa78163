"""A complete system: prompt -> context -> one trajectory over the experts -> frames."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import (
    Checkpoint,
    check_complete,
    check_pair,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    family_defaults,
    give_tokenizer,
    load_text_encoder,
    open_checkpoint,
    place,
)
from ..config import SamplingConfig
from ..lora import Resolved
from ..noise import draw_noise
from ..sampling import Callback, Progress, sample
from ..sentinel import Watch
from ..solvers import SolverState, get_solver
from ..state import Keeper, RunKeys, RunState, Store
from ..state.store import LATENT
from ..text import encode_prompt
from ..transformer import EXACT, Memory
from ..vae import denormalize
from .decoding import decode_frames
from .experts import Compute, Networks, Weights
from .kernels import USUAL, Kernels
from .keys import branch_points, name_run
from .loras import LoraUse, resolve_loras
from .request import Plan, Request, make_plan
from .source import STREAM, check_stream

log = logging.getLogger(__name__)

RESCUED = ".rescued.latent"
"""Ending of the latents of a run that could not go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Where a run is kept, so that the same request goes on from there after whatever ended it.

    Attributes:
        store: the folder.
        fresh: forget what is kept of the run, and start anew.
        manifest: plain JSON that goes into the files, for people and for the clip made of them.
    """

    store: Store
    fresh: bool = False
    manifest: Mapping[str, object] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, str]:
        """The manifest as a latents' file holds it."""
        return {"wan": json.dumps(self.manifest, ensure_ascii=False)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A complete text-to-video system whose headers were read and checked; weights come per run.

    Attributes:
        high, low, vae, text: the four files.
        defaults: settings of the family.
        device: where networks run.
        dtype: compute dtype of the experts; text runs in float32, as ComfyUI's encoder does, the VAE in
            what :func:`~.vae.decode_dtype` says.
        loras: ``high`` or ``low`` -> its LoRAs with their strengths, in the order they act.
        stream: when blocks of experts are read from disk as they run, see ``source.py``; the numbers
            are the same.
        kernels: whose attention runs the experts, and whether their blocks are compiled.
        memory: what a forward holds how; see ``wan.cost.choose_design`` for one that fits.
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
    stream: str = STREAM[0]
    memory: Memory = EXACT
    kernels: Kernels = USUAL

    @classmethod
    def load(  # noqa: PLR0913 - nine independent choices, each by its name
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
        stream: str = STREAM[0],
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
            stream: ``auto``, ``always`` or ``never``: when blocks of experts are read from disk as they
                run, see ``source.py``.

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
            stream=stream,
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
        found = {
            part: resolve_loras(uses, part, expert, allow_mismatch=allow_mismatch)
            for part, expert in self.experts.items()
        }
        return replace(self, loras=found)

    def plan(self, request: Request) -> Plan:
        """Check ``request`` against this system; raises ValueError, see :func:`make_plan`."""
        return make_plan(request, detect_transformer_config(self.high).in_dim)

    @property
    def experts(self) -> dict[str, Checkpoint]:
        """The two experts by ``high`` and ``low``."""
        return {"high": self.high, "low": self.low}

    def encode(self, request: Request) -> tuple[Tensor, Tensor]:
        """Contexts (1, 512, text_dim) float32 of the prompt and the negative prompt."""
        log.info("reading %s", self.text.path)
        encoder, tokenizer = load_text_encoder(self.text.path, tokenizer=self.text.tokenizer)
        place(encoder, self.device, torch.float32)
        positive, negative = (
            encode_prompt(encoder, tokenizer, text, dtype=torch.float32)
            for text in (request.prompt, request.negative_prompt)
        )
        return positive, negative

    def sample(
        self, request: Request, callback: Callback | None = None, *, keep: Keep | None = None
    ) -> Tensor:
        """Latents (1, 16, T, h, w) float32 of a request: raw, as on a ComfyUI LATENT socket.

        A step that fails is done again in safer or smaller ways, see ``wan/sentinel.py``.

        Args:
            request: checked first, see :meth:`plan`.
            callback: called after each step with its :class:`~.sampling.Progress`.
            keep: where the run is kept; the same request goes on from there, see :class:`Keep`.

        Raises:
            ValueError: see :meth:`plan`.
            OSError: a file is not there any more.
            FloatingPointError: a step failed in every way; it names the step and what was kept.
            torch.cuda.OutOfMemoryError: memory ran out in every way.
        """
        plan = self.plan(request)
        if keep is None:
            x = self._run(request, plan, None, _each(callback), rescue=None)
            return denormalize(x, detect_vae_config(self.vae))
        keys = name_run(self, request, plan)
        if keep.fresh:
            keep.store.forget(keys)
        done = keep.store.latents(keys.run)
        if done is not None:
            keep.store.forget_states(keys.run)
            log.warning("this run was finished before; its latents are in %s", keep.store.folder)
            return done
        begun = _begun(keep.store, keys, plan)
        with Keeper(keep.store, keys, plan.schedule.steps, keep.manifest) as keeper:
            x = self._run(request, plan, begun, _each(callback, keeper), self._rescue(keeper, keep))
            latents = denormalize(x, detect_vae_config(self.vae))
            keeper.finish(latents, keep.metadata)
        return latents

    def _run(
        self,
        request: Request,
        plan: Plan,
        begun: RunState | None,
        callback: Callback,
        rescue: Callable[[int, Tensor, Tensor | None], str] | None,
    ) -> Tensor:
        """Normalised clean latents (1, 16, T, h, w), from noise or from where ``begun`` ends."""
        weights = Weights(
            experts=self.experts, loras=self.loras, device=self.device, stream=self.stream
        )
        attention, through = self.kernels.open(self.device, self.dtype)
        compute = Compute(
            dtype=self.dtype, attention=attention, memory=self.memory, through=through
        )
        point = (begun or _start(request, plan)).to(self.device)
        with Networks(weights, plan, self.encode(request)) as networks:
            return sample(
                networks.velocity(compute),
                point.x,
                plan.schedule,
                get_solver(plan.solver),
                callback=callback,
                start=point.step,
                state=point.solver,
                watch=Watch(
                    ladder=networks.ladder(compute),
                    relief=networks.relief(compute),
                    rescue=rescue,
                    waits=branch_points(plan.run, plan.solver),
                ),
            )

    def _rescue(self, keeper: Keeper, keep: Keep) -> Callable[[int, Tensor, Tensor | None], str]:
        """What keeps the latest clean prediction of a run that cannot go on, for :class:`Watch`."""

        def rescue(step: int, x: Tensor, denoised: Tensor | None) -> str:
            if denoised is None:
                return ""
            latents = denormalize(denoised, detect_vae_config(self.vae))
            path = keeper.save(latents, RESCUED, keep.metadata)
            return f"the latents of step {step}, the last good one, are in {path}" if path else ""

        return rescue

    def kept_latents(self, request: Request, keep: Keep) -> Path | None:
        """The file that a finished run of ``request`` has left its latents in, if it is there."""
        path = keep.store.path(name_run(self, request, self.plan(request)).run, LATENT)
        return path if path.exists() else None

    def decode(self, latents: Tensor, *, kept: Path | None = None) -> Iterator[Tensor]:
        """Frames of raw latents (1, 16, T, h, w) as they come: (n, H, W, 3) uint8, n = 1, 4, 4, ...

        If memory runs out the error names ``kept``, a file that holds them; see :func:`.decode_frames`.
        """
        return decode_frames(self.vae.path, latents, self.device, kept=kept)

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
        check_stream(self.stream, self.experts, self.device)


def _each(callback: Callback | None, keeper: Keeper | None = None) -> Callback:
    """Keep the run after each step, then tell the caller, who may end it."""

    def after(progress: Progress) -> None:
        if keeper is not None:
            keeper.keep(progress.step, progress.x, progress.state, progress.verdict)
        if callback is not None:
            callback(progress)

    return after


def _start(request: Request, plan: Plan) -> RunState:
    noise = draw_noise((1, *plan.shape), request.seed, request.noise)
    solver = SolverState(seed=request.seed)
    return RunState(key="", run="", step=0, total=plan.schedule.steps, x=noise, solver=solver)


def _begun(store: Store, keys: RunKeys, plan: Plan) -> RunState | None:
    """What is done of this run already; the log says how much."""
    begun = store.find(keys)
    if begun is not None:
        whose = "" if begun.run == keys.run else ", of a run with the same beginning"
        log.warning("going on after step %d of %d%s", begun.step, plan.schedule.steps, whose)
    return begun
