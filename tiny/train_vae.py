"""Train the VAE on procedural clips of the training scenes, then refine its decoder alone.

An autoencoder with noise of a fixed share of each latent channel's deviation: latents come out smooth
and the decoder forgives the experts' small errors. Time is the schedule: the run takes ``--minutes``.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..wan.config import TINY
from ..wan.vae import WanVAE
from .captions import HELD_OUT_SCENES, TRAINING_SCENES
from .clips import FRAMES, draw_motion, render
from .judge import look
from .optim import Optimiser

WORK = Path(__file__).parent / "work"
CURRICULUM = ((0.0, 1, 16), (0.15, 5, 6), (0.55, 17, 3))
"""(share of the run from which it holds, frames, clips per batch)."""
SQUARED_ONLY = 0.1
"""Share of the run with plain squared error: absolute error stalls on lightness at first."""
DECODER_ONLY = 0.85
"""Share of the run after which the encoder rests and latent noise grows."""
NOISE, FINAL_NOISE = 0.08, 0.2
FOREGROUND = 4.0


def initialise(vae: WanVAE) -> None:
    """Start as a per-frame network: time enters only through small weights on past frames."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            weight = module.weight
            now = weight[:, :, -1] if weight.ndim == 5 else weight
            deviation = now[0].numel() ** -0.5
            nn.init.zeros_(module.bias)
            nn.init.normal_(weight, std=0.1 * deviation)
            if "time_conv" in name:
                copies = weight.shape[0] // weight.shape[1]
                now.data += torch.eye(weight.shape[1]).repeat(copies, 1)[:, :, None, None]
            elif name.endswith("proj"):
                nn.init.zeros_(weight)
            else:
                scale = 0.2 if name.endswith("residual.6") else 1.0
                nn.init.normal_(now.data, std=scale * deviation)
    nn.init.normal_(vae.encoder.conv1.bias, std=0.5)


def channels_last(vae: WanVAE) -> None:
    """Lay convolution weights out the way the CPU kernels want them."""
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def batch(rng: random.Random, generator: torch.Generator, frames: int, count: int) -> Tensor:
    """Random windows of training clips, (count, 3, frames, 64, 64) in [-1, 1]."""
    clips = []
    for _ in range(count):
        clip = render(rng.choice(TRAINING_SCENES), draw_motion(generator))
        start = rng.randrange(FRAMES - frames + 1)
        clips.append(clip[:, start : start + frames])
    return torch.stack(clips).contiguous(memory_format=torch.channels_last_3d)


def pixel_weight(video: Tensor) -> Tensor:
    """1 on the plain background, 1 + FOREGROUND on the shape and a rim round it."""
    shape = (video - video[:, :, :1, :1, :1]).abs().amax(dim=1) > 0.02
    near = nn.functional.max_pool2d(shape.float(), 7, stride=1, padding=3)
    return 1 + FOREGROUND * near[:, None]


def reconstruction_loss(decoded: Tensor, video: Tensor, progress: float) -> Tensor:
    """Weighted squared error, joined by absolute error after the first part of the run."""
    error = (decoded.float() - video) ** 2
    if progress >= SQUARED_ONLY:
        error = 2 * error + (decoded.float() - video).abs()
    return (error * pixel_weight(video)).mean()


def learning_factor(progress: float, step: int) -> float:
    """Warm-up by steps, flat, then straight down to nothing; once more for the decoder alone."""
    warm = min(1.0, (step + 1) / 30)
    if progress < DECODER_ONLY:
        return warm * min(1.0, max(0.0, (DECODER_ONLY - progress) / (DECODER_ONLY * 0.6)) + 0.02)
    return 0.3 * max(0.0, (1 - progress) / (1 - DECODER_ONLY))


def step_loss(vae: WanVAE, video: Tensor, progress: float) -> tuple[Tensor, float]:
    """Loss of one batch and its plain PSNR in dB (range 2)."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(progress < DECODER_ONLY):
            mean = vae.encode_whole(video).float()
        deviation = mean.detach().std(dim=(0, 2, 3, 4), keepdim=True) + 1e-4
        share = NOISE
        if progress >= DECODER_ONLY:
            share = FINAL_NOISE * torch.rand(video.shape[0], 1, 1, 1, 1)
        decoded = vae.decode_whole(mean + share * deviation * torch.randn_like(mean))
    loss = reconstruction_loss(decoded, video, progress) + 1e-4 * mean.square().mean()
    psnr = 10 * torch.log10(4 / (decoded.detach().float() - video).square().mean())
    return loss, psnr.item()


def train(minutes: float, out: Path, report: Callable[[str], None]) -> WanVAE:
    """Train for ``minutes``, resuming from ``out`` when it exists; returns the trained VAE."""
    torch.manual_seed(0)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    vae = WanVAE(TINY.vae)
    initialise(vae)
    optimiser = Optimiser(vae, matrix_lr=4e-3, lr=2e-3, plain={"encoder.conv1", "decoder.head"})
    step, elapsed = 0, 0.0
    if out.exists():
        state = torch.load(out)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed = state["step"], state["elapsed"]
        rng.seed(step)
        generator.manual_seed(step)
    channels_last(vae)
    begun, saved, trace = time.monotonic() - elapsed, time.monotonic(), []
    while (progress := (time.monotonic() - begun) / (60 * minutes)) < 1:
        _, frames, count = [row for row in CURRICULUM if row[0] <= progress][-1]
        video = batch(rng, generator, frames, count)
        loss, psnr = step_loss(vae, video, progress)
        loss.backward()
        optimiser.step(learning_factor(progress, step))
        step += 1
        trace.append((loss.item(), psnr))
        if step % 25 == 0:
            mean_loss, mean_psnr = (sum(column) / len(trace) for column in zip(*trace, strict=True))
            spent = time.monotonic() - begun
            report(f"{spent:6.0f} s step {step} T={frames} {mean_loss:.4f} {mean_psnr:.2f} dB")
            trace.clear()
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            _save(out, vae, optimiser, step, saved - begun)
    _save(out, vae, optimiser, step, time.monotonic() - begun)
    return vae


def _save(out: Path, vae: WanVAE, optimiser: Optimiser, step: int, elapsed: float) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    state = {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    torch.save(state | {"elapsed": elapsed}, part)
    part.replace(out)


@torch.no_grad()
def gate(vae: WanVAE, *, noise: float = 0.0) -> tuple[dict[str, float], float, Tensor]:
    """Reconstruct one clip per held-out scene: share right per attribute, PSNR, clips beside results.

    ``noise`` is added to the latents, as a share of each channel's deviation.
    """
    generator = torch.Generator().manual_seed(1)
    right: dict[str, int] = {}
    pairs, errors = [], []
    for scene in HELD_OUT_SCENES:
        video = render(scene, draw_motion(generator))[None]
        latents = vae.encode_whole(video)
        deviation = latents.std(dim=(2, 3, 4), keepdim=True)
        latents = latents + noise * deviation * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode_whole(latents).clamp(-1, 1)
        pixels = ((decoded[0] + 1) * 127.5).round().permute(1, 2, 3, 0)
        for name, hit in look(pixels).verdict(scene).items():
            right[name] = right.get(name, 0) + hit
        errors.append((decoded - video).square().mean())
        pairs.append(torch.cat([video, decoded]))
    psnr = 10 * torch.log10(4 / torch.stack(errors).mean())
    shares = {name: hits / len(HELD_OUT_SCENES) for name, hits in right.items()}
    return shares, psnr.item(), torch.stack(pairs)


def main() -> int:
    """Train the VAE and print the gate; exit status 1 when too few shapes survive."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--require-shape", type=float, default=0.98)
    parser.add_argument("--out", type=Path, default=WORK / "vae.pt")
    arguments = parser.parse_args()
    vae = train(arguments.minutes, arguments.out, lambda line: print(line, flush=True))
    shape = 0.0
    for noise in (0.2, 0.0):
        right, psnr, _ = gate(vae, noise=noise)
        shape = right["shape"]
        print(f"latent noise {noise}: {psnr:.2f} dB", right, flush=True)
    return 0 if shape >= arguments.require_shape else 1
