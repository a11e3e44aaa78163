"""Train one expert: flow matching on cached latents, on its own range of noise and on no other.

Clean latents x0 and noise e make x_t = (1 - t) x0 + t e; the expert predicts e - x0. The high-noise
expert sees only t >= boundary and the low-noise expert only t below it, both from nothing, so neither
can do the other's work. They do not depend on each other: train them side by side.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..wan.config import NEGATIVE_PROMPT, TINY
from ..wan.schedule import shift_sigma, unshift_sigma
from ..wan.text import Tokenizer, UMT5Encoder
from ..wan.transformer import WanTransformer
from ..wan.vae import WanVAE
from .captions import LANGUAGES, TRAINING_SCENES, caption
from .clips import draw_motion, render
from .optim import Optimiser

WORK = Path(__file__).parent / "work"
ROLES = ("high_noise", "low_noise")
CAPTIONS = 40
"""Captions per training scene, half of them Chinese."""
BATCH = 64
UNCONDITIONAL_EVERY = 10
"""Every so many steps the batch has no prompt: half of it the empty text, half the negative prompt."""
EMA = 0.998


def attend_rows(model: WanTransformer, rows: int) -> None:
    """Let ``model`` pad contexts to ``rows`` rows only; :class:`TextAttention` makes up for the rest."""
    model.config = replace(model.config, text_len=rows)


class TextAttention:
    """Plain attention in which one zero text row stands for the many that the model attends to.

    A row that occurs n times equals one row whose logit is raised by ln(n): exact, and 12 times
    cheaper than 512 rows. Products and softmax written out are faster to differentiate on a CPU than
    the fused kernel.
    """

    def __init__(self) -> None:
        """No rows counted yet."""
        self.bias = torch.zeros(0)

    def count(self, lengths: Tensor, rows: int, ramp: float) -> None:
        """Set the text lengths (B,) of the next batch, whose contexts have ``rows`` rows.

        ``ramp`` in [0, 1] eases the zero rows' weight in, so that they do not drown the text at first.
        """
        position = torch.arange(rows)
        spare = (rows - lengths).clamp(min=1)[:, None]
        raised = ramp * torch.log((TINY.text.text_len - lengths)[:, None] / spare)
        self.bias = torch.where(position >= lengths[:, None], raised, torch.zeros(()))[:, None]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one head: (B, L, 1, D) and twice (B, S, 1, D) to (B, L, D)."""
        q, k, v = q[:, :, 0], k[:, :, 0], v[:, :, 0]
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
        if k.shape[1] == self.bias.shape[-1]:
            logits = logits + self.bias
        return logits.float().softmax(dim=-1).to(v.dtype) @ v


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """What the experts learn from: latents with zero mean and unit deviation, and encoded captions."""

    latents: Tensor
    """(scenes, clips, 16, 5, 8, 8)."""
    mean: Tensor
    std: Tensor
    contexts: Tensor
    """(scenes, CAPTIONS, rows, dim); rows past a caption's length are zero."""
    lengths: Tensor
    unconditional: Tensor
    """(2, rows, dim): the empty text and the negative prompt."""
    unconditional_lengths: Tensor


@torch.no_grad()
def encode_clips(vae: WanVAE, clips: int, report: Callable[[str], None]) -> Tensor:
    """Raw latents (scenes, clips, 16, 5, 8, 8) of ``clips`` random clips of every training scene."""
    generator = torch.Generator().manual_seed(7)
    latents = []
    for index, scene in enumerate(TRAINING_SCENES):
        video = torch.stack([render(scene, draw_motion(generator)) for _ in range(clips)])
        video = video.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode_whole(video).float())
        if index % 40 == 39:
            report(f"latents of {index + 1} scenes")
    return torch.stack(latents)


@torch.no_grad()
def encode_texts(
    encoder: UMT5Encoder, tokenizer: Tokenizer, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """Contexts (N, longest + 1, dim), zero after the text, and lengths (N,)."""
    hidden = [encoder(torch.tensor([tokenizer.encode(text)]))[0] for text in texts]
    lengths = torch.tensor([len(rows) for rows in hidden])
    contexts = torch.zeros(len(texts), int(lengths.max()) + 1, encoder.config.dim)
    for context, rows in zip(contexts, hidden, strict=True):
        context[: len(rows)] = rows
    return contexts, lengths


def make_corpus(work: Path, clips: int, report: Callable[[str], None]) -> None:
    """Encode clips and captions of all training scenes into ``work/corpus.pt``."""
    vae = WanVAE(TINY.vae)
    vae.load_state_dict(torch.load(work / "vae.pt")["vae"])
    saved = torch.load(work / "text.pt")
    encoder = UMT5Encoder(TINY.text)
    encoder.load_state_dict(saved["encoder"])
    tokenizer = Tokenizer(saved["spiece"], TINY.text.text_len)
    rng = random.Random(3)
    texts = [
        caption(scene, LANGUAGES[index % 2], rng)
        for scene in TRAINING_SCENES
        for index in range(CAPTIONS)
    ]
    contexts, lengths = encode_texts(encoder, tokenizer, texts)
    empty, empty_lengths = encode_texts(encoder, tokenizer, ["", NEGATIVE_PROMPT])
    latents = encode_clips(vae, clips, report)
    mean = latents.mean(dim=(0, 1, 3, 4, 5)).view(1, -1, 1, 1, 1)
    std = latents.std(dim=(0, 1, 3, 4, 5)).view(1, -1, 1, 1, 1)
    scenes = len(TRAINING_SCENES)
    corpus = {
        "latents": (latents - mean) / std,
        "mean": mean,
        "std": std,
        "contexts": contexts.unflatten(0, (scenes, CAPTIONS)),
        "lengths": lengths.view(scenes, CAPTIONS),
        "unconditional": empty,
        "unconditional_lengths": empty_lengths,
    }
    torch.save(corpus, work / "corpus.pt")
    report(f"latents: std {std.flatten().tolist()}")


def initialise(model: WanTransformer) -> None:
    """Xavier matrices, zero output, small modulation."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=model.config.dim**-0.5)
    nn.init.zeros_(model.head.head.weight)


def draw_levels(role: str, count: int) -> Tensor:
    """Noise levels (count,) of one expert's range, spread like the sampler's steps, stratified."""
    shift, boundary = TINY.sampling.shift, TINY.sampling.boundary
    split = unshift_sigma(boundary, shift)
    low, high = (split, 1.0) if role == "high_noise" else (0.0, split)
    grid = (torch.randperm(count) + torch.rand(count)) / count
    return shift_sigma(low + (high - low) * grid, shift)


class Trainer:
    """One expert with its data, optimiser and running average."""

    def __init__(self, role: str, corpus: Corpus, seed: int) -> None:
        """``role`` is one of ROLES."""
        torch.manual_seed(seed)
        self.role, self.corpus = role, corpus
        self.attention = TextAttention()
        self.model = WanTransformer(TINY.transformer, attention=self.attention)
        initialise(self.model)
        plain = {"patch_embedding", "text_embedding", "time_", "head"}
        self.optimiser = Optimiser(self.model, matrix_lr=3e-3, lr=2e-3, plain=plain)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step = 0

    def loss(self) -> Tensor:
        """Flow-matching loss of one batch."""
        corpus = self.corpus
        scene = torch.randint(corpus.latents.shape[0], (BATCH,))
        clean = corpus.latents[scene, torch.randint(corpus.latents.shape[1], (BATCH,))]
        if self.step % UNCONDITIONAL_EVERY == UNCONDITIONAL_EVERY - 1:
            which = torch.arange(BATCH) % 2
            context, lengths = corpus.unconditional[which], corpus.unconditional_lengths[which]
        else:
            which = torch.randint(CAPTIONS, (BATCH,))
            context, lengths = corpus.contexts[scene, which], corpus.lengths[scene, which]
        attend_rows(self.model, context.shape[1])
        self.attention.count(lengths, context.shape[1], min(1.0, self.step / 400))
        level = draw_levels(self.role, BATCH)
        t = level.view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(clean)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.model((1 - t) * clean + t * noise, 1000 * level, context)
        return (velocity.float() - (noise - clean)).square().mean()

    def update(self, factor: float) -> float:
        """One step at ``factor`` of the learning rate; returns the loss."""
        loss = self.loss()
        loss.backward()
        self.optimiser.step(factor)
        self.step += 1
        keep = min(EMA, self.step / (self.step + 10))
        for name, parameter in self.model.state_dict().items():
            self.average[name].lerp_(parameter, 1 - keep)
        return loss.item()

    def state(self, elapsed: float) -> dict[str, object]:
        """Everything needed to go on."""
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed": elapsed,
        }

    def restore(self, state: dict[str, object]) -> float:
        """Go on from :meth:`state`; returns the seconds spent so far."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.step = state["step"]
        return state["elapsed"]


def learning_factor(progress: float, step: int) -> float:
    """Warm-up by steps, flat, then straight down over the second half of the run."""
    return min(1.0, (step + 1) / 100) * min(1.0, 2 * (1 - progress) + 0.01)


def load_corpus(path: Path) -> Corpus:
    """Read what :func:`make_corpus` wrote, with a text length the batch fits in."""
    return Corpus(**torch.load(path))


def train(role: str, minutes: float, work: Path, report: Callable[[str], None]) -> None:
    """Train one expert for ``minutes`` (less what ``work/ROLE.pt`` has spent) and save it there."""
    trainer = Trainer(role, load_corpus(work / "corpus.pt"), seed=ROLES.index(role))
    if shutil.which("g++"):  # fused elementwise work makes a step a third cheaper
        for block in trainer.model.blocks:
            block.compile(dynamic=False)
    out, elapsed = work / f"{role}.pt", 0.0
    if out.exists():
        elapsed = trainer.restore(torch.load(out))
        torch.manual_seed(1000 * trainer.step + ROLES.index(role))
    begun, saved, trace = time.monotonic() - elapsed, time.monotonic(), []
    while (progress := (time.monotonic() - begun) / (60 * minutes)) < 1:
        trace.append(trainer.update(learning_factor(progress, trainer.step)))
        if trainer.step % 50 == 0:
            spent = time.monotonic() - begun
            report(f"{role} {spent:6.0f} s step {trainer.step} {sum(trace) / len(trace):.4f}")
            trace.clear()
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            _save(out, trainer.state(saved - begun))
    _save(out, trainer.state(time.monotonic() - begun))


def _save(out: Path, state: dict[str, object]) -> None:
    part = out.with_suffix(".part")
    torch.save(state, part)
    part.replace(out)


def main() -> int:
    """Encode the corpus if there is none, then train one expert on one thread."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("role", choices=(*ROLES, "corpus"))
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--clips", type=int, default=12, help="clips per training scene")
    parser.add_argument("--work", type=Path, default=WORK)
    arguments = parser.parse_args()
    if arguments.role == "corpus":
        make_corpus(arguments.work, arguments.clips, lambda line: print(line, flush=True))
    else:
        torch.set_num_threads(1)
        train(arguments.role, arguments.minutes, arguments.work, lambda s: print(s, flush=True))
    return 0
