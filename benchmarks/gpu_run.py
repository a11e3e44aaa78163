"""What the sections of the GPU script share: its sizes, its clock and budget, its networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks import block
from benchmarks.checkout import enter
from benchmarks.lines import Way
from wan.config import T2V_A14B, TransformerConfig, VAEConfig
from wan.transformer import WanTransformer

BLOCKS = 2
"""Blocks that have weights; a forward goes through them in turns."""
Grid = tuple[int, int, int]
Result = TypeVar("Result")
ROUNDS = 5
"""At most."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is.

    Attributes:
        uses: blocks that a forward goes through.
        grids: latent frames, height and width by name, for seconds of a forward.
        held: the same for memory, and the line in GB that a run must stay under.
        streamed: for streaming, where copies take long beside the computation, and where not.
        latents: of the clip that the VAE decodes.
    """

    config: TransformerConfig
    uses: int
    grids: Mapping[str, Grid]
    held: Mapping[str, tuple[Grid, float]]
    streamed: Mapping[str, Grid]
    vae: VAEConfig
    latents: Grid


FULL = Scale(
    config=replace(T2V_A14B.transformer, num_layers=BLOCKS),
    uses=T2V_A14B.transformer.num_layers,
    grids={"480p/81": (21, 60, 104), "720p/81": (21, 90, 160)},
    held={"720p/81": ((21, 90, 160), 3.2), "720p/129": ((33, 90, 160), 4.5)},
    streamed={"480p/17": (5, 60, 104), "480p/81": (21, 60, 104)},
    vae=T2V_A14B.vae,
    latents=(21, 90, 160),
)
SMALL = Scale(
    config=replace(FULL.config, dim=256, ffn_dim=704, num_heads=2, text_dim=64),
    uses=4,
    grids={"tiny": (2, 8, 8)},
    held={"tiny": ((2, 8, 8), 3.2)},
    streamed={"tiny": (2, 8, 8)},
    vae=VAEConfig(dim=8),
    latents=(2, 4, 4),
)
"""For the self-test: the same code on a CPU, in seconds."""


class Budget:
    """Seconds that are left for the whole script."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the script on one device.

    Attributes:
        comfyui: a ComfyUI folder to compare with.
        failed: sentences of ways that could not be measured.
    """

    scale: Scale
    device: torch.device
    budget: Budget
    comfyui: Path | None
    failed: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether there is anything to learn here."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, way: Way) -> float:
        """Wall seconds of one call, all its work done."""
        self.wait()
        start = time.perf_counter()
        way()
        self.wait()
        return time.perf_counter() - start

    def turns(self, ways: Mapping[str, Way], share: float) -> dict[str, float]:
        """Median seconds of ways that take turns, as many rounds as fit ``share`` of what is left.

        At least one round is measured, so make them ready before.
        """
        found: dict[str, list[float]] = {name: [] for name in ways}
        end = time.monotonic() + share * self.budget.left
        for _ in range(ROUNDS):
            start = time.monotonic()
            for name, way in ways.items():
                found[name].append(self.seconds(way))
            if 2 * time.monotonic() - start > end:  # the next would end too late
                break
        return {name: round(median(values), 5) for name, values in found.items()}

    def peak(self, way: Way) -> int | None:
        """Most bytes that PyTorch had allocated at once during a call; None on a CPU, which does not tell."""
        if not self.on_gpu:
            way()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        way()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def allocated(self) -> int:
        """Bytes that PyTorch has allocated now; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else 0

    def attempt(self, name: str, way: Callable[[], Result]) -> Result | None:
        """What ``way`` returns, or None with a sentence in :attr:`failed`: no way loses the others."""
        try:
            return way()
        except Exception as error:  # noqa: BLE001 - not installed, of another version, out of memory
            self.failed.append(f"{name}: {type(error).__name__}: {error}"[:300])
            self.forget()
            return None

    def working(self, ways: Mapping[str, Way]) -> dict[str, Way]:
        """Those that run once without an error, which makes kernels ready."""
        ran = {name: self.attempt(name, partial(self.seconds, way)) for name, way in ways.items()}
        return {name: ways[name] for name, seconds in ran.items() if seconds is not None}

    def forget(self) -> None:
        """Give back what nobody holds."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Makers of the networks that are compared, by name; all share one set of random weights."""
        config = self.scale.config
        state = block.weights(config, block.DTYPE, self.device.type)

        def comfyui() -> nn.Module:
            flags = () if self.on_gpu else ("--cpu",)
            enter(self.comfyui, *flags, "--use-pytorch-cross-attention")
            assert self.comfyui is not None
            return block.comfy_model(self.comfyui, config, state)

        makers: dict[str, Callable[[], nn.Module]] = {
            "ours": lambda: block.our_model(config, state),
            "diffusers": lambda: block.diffusers_model(config, state),
        }
        if self.comfyui is not None:
            makers["comfyui"] = comfyui
        return makers

    def made(self) -> dict[str, nn.Module]:
        """Those of the networks that can be made here."""
        made = {name: self.attempt(name, make) for name, make in self.networks().items()}
        return {name: network.to(self.device) for name, network in made.items() if network}

    def ours(self) -> WanTransformer:
        """Our network alone."""
        model = self.networks()["ours"]()
        assert isinstance(model, WanTransformer)
        return model

    def inputs(self, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, timestep and a text of 40 rows in 512."""
        config = self.scale.config
        x = torch.randn(1, config.in_dim, *grid, device=self.device).to(block.DTYPE)
        context = torch.zeros(1, config.text_len, config.text_dim, device=self.device)
        context[:, :40] = torch.randn(1, 40, config.text_dim, device=self.device)
        return x, torch.tensor([613.0], device=self.device), context.to(block.DTYPE)


def forward(network: nn.Module, x: Tensor, at: Tensor, context: Tensor) -> Way:
    """A forward of any of the networks; ours has read its text before, as it does in a run."""
    if isinstance(network, WanTransformer):
        text = network.read(context, x.dtype)
        return lambda: network(x, at, text)
    return lambda: network(x, at, context)


def repeat(network: nn.Module, uses: int) -> None:
    """Let a network of few blocks go through them ``uses`` times in turns."""
    single: Iterable[nn.Module] = list(network.blocks)[:BLOCKS]  # type: ignore[arg-type]
    kept = list(single)
    network.blocks = nn.ModuleList([kept[index % len(kept)] for index in range(uses)])


def gb(count: float | None) -> float | None:
    """Bytes in GB of 1e9."""
    return None if count is None else round(count / 1e9, 3)
