"""Memory of a run beside its weights, traced from the code that runs; see :mod:`.live`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from ..config import TextConfig, TransformerConfig
from ..guidance import cfg
from ..schedule import make_schedule
from ..shapes import LatentShape, token_grid
from ..solvers import START, SolverState, get_solver
from ..text import UMT5Encoder
from ..transformer import EXACT, Memory, WanTransformer
from .live import META, LiveBytes

_STEPS = 4
"""Enough for every solver to remember all it ever remembers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBytes:
    """Memory of sampling.

    Attributes:
        peak: bytes on the device beside the weights, at the widest moment of a step.
        state: bytes of what a run needs to go on: latents and the solver's memory, all float32.
        away: bytes of the hidden state where it is kept in main memory and the device is another.
    """

    peak: int
    state: int
    away: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Expert:
    """An expert as it will run.

    Attributes:
        config: its sizes; its number of blocks does not matter, one is in use at a time.
        dtype: of the computation.
        device: its kind, such as ``cpu`` or ``cuda``.
        stored: dtype of the weights, None for ``dtype``; a layer stored in another one is converted
            while it is used.
        memory: what its forwards hold how.
    """

    config: TransformerConfig
    dtype: torch.dtype
    device: str
    stored: torch.dtype | None = None
    memory: Memory = EXACT


@lru_cache(maxsize=64)
def step_bytes(
    expert: Expert,
    shape: LatentShape,
    *,
    solver: str = "unipc",
    guided: bool = True,
    batch: int = 1,
) -> StepBytes:
    """Memory of a step of ``solver`` over latents (batch, \\*shape).

    Attention is taken as a kernel without a table of all pairs, as FlashAttention's are; on a CPU as
    PyTorch's own.

    Args:
        expert: what runs, and where.
        shape: latents of one clip.
        solver: a key of ``SOLVERS``.
        guided: whether any step needs the negative prompt too, which runs after the positive one.
        batch: clips at a time.
    """
    config, dtype = replace(expert.config, num_layers=1), expert.dtype
    attention = _cpu_attention if expert.device == "cpu" else _attention
    model = WanTransformer(config, attention=attention, device=META, dtype=expert.stored or dtype)
    away = expert.memory.hidden_on is not None and expert.device != expert.memory.hidden_on.type
    model.memory = replace(expert.memory, hidden_on=META if expert.memory.hidden_on else None)
    contexts = torch.empty(2, 1, config.text_len, config.text_dim, device=META)
    noise = torch.empty(batch, *shape, device=META)
    # What an expert reads beside the latents, such as an image.
    beside = torch.empty(batch, config.in_dim - shape.channels, *shape[1:], device=META)
    sigmas = make_schedule("shifted", steps=_STEPS, shift=5.0).sigmas

    def velocity(x: Tensor, sigma: float) -> Tensor:
        del sigma
        if step < _STEPS - 2:  # a solver holds most, and evaluates twice, in the last steps
            return torch.empty_like(x)
        seen, timestep = x.to(dtype), torch.empty(batch, device=META)
        if beside.numel():
            seen = torch.cat([seen, beside.to(dtype)], dim=1)
        cond = torch.empty_like(x) if guided else None  # of the forward with the other prompt
        out: Tensor = model(seen, timestep, contexts[0].expand(batch, -1, -1))
        return out if cond is None else cfg(cond, out, 2.0)

    with torch.no_grad(), LiveBytes([noise, contexts], device=expert.device) as live:
        x, state = noise.clone(), START
        for step in range(_STEPS):
            if step == _STEPS - 1:
                held = x.nbytes + sum(t.nbytes for t in _tensors(state))
            x, state = get_solver(solver)(velocity, x, sigmas, step, state)
    # A hidden state on another device was traced here too; it is there whenever most is.
    hidden = batch * token_grid(*shape[1:]).tokens * config.dim * dtype.itemsize if away else 0
    return StepBytes(peak=live.peak - hidden, state=held, away=hidden)


def text_bytes(config: TextConfig, stored: torch.dtype) -> int:
    """Bytes beside its weights for the text encoder to read the longest prompt in float32."""
    encoder = UMT5Encoder(replace(config, num_layers=1), device=META, dtype=stored)
    ids = torch.empty(1, config.text_len, dtype=torch.int64, device=META)
    with torch.no_grad(), LiveBytes([ids]) as live:
        encoder(ids, dtype=torch.float32)
    return int(live.peak)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The memory of attention: its result, and one number per query and head to normalise it."""
    result, _ = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    return result.flatten(2)


def _cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As :func:`_attention`, with what each thread of PyTorch's kernel for CPUs keeps for itself.

    Scores, their largest and their sum, and results of some queries, in float32; in a narrower dtype
    the scores once more. Where products are of tiles, keys and values once more in their order.
    """
    (batch, length, heads, head), keys = q.shape, k.shape[1]
    rows = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    columns = min(keys, 512)
    wide = rows * (columns + 2 + head)
    narrow = 0 if q.dtype == torch.float32 else rows * columns
    threads = torch.get_num_threads()
    tiled = 0
    if _in_tiles(q.dtype) and min(length, keys) >= _FEWEST_IN_TILES:
        work = -(-batch * heads * -(-length // rows) // threads) * rows
        if work >= _LEAST_WORK * batch * heads:  # of each thread, to be worth the new order
            even = keys + keys % 2
            tiled = batch * heads * (keys + even) * head + threads * columns * head
            narrow = rows * (columns + columns % 2)
    _ = (
        q.new_empty(threads, wide, dtype=torch.float32),
        q.new_empty(threads, narrow),
        q.new_empty(tiled),
    )
    return _attention(q, k, v)


_FEWEST_IN_TILES, _LEAST_WORK = 64, 4
"""Queries and keys, and queries of a thread by all heads, from which PyTorch's kernel goes in tiles."""


@lru_cache
def _in_tiles(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies ``dtype`` in tiles (AMX); False where PyTorch cannot tell."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    name = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}.get(dtype)
    return name is not None and bool(told.get(name))


def _tensors(state: SolverState) -> list[Tensor]:
    """All tensors a solver's memory holds, each once."""
    values = tree_iter([getattr(state, field.name) for field in fields(state)])
    found = [value for value in values if isinstance(value, Tensor)]
    return list({id(tensor.untyped_storage()): tensor for tensor in found}.values())
