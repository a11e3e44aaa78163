"""What a run inside ComfyUI starts from, as its guider knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...wan.plan import RunPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """All that a run starts from.

    Attributes:
        plan: stages over the sigmas.
        models: the MODEL of each stage, as it came in.
        origins: what made each, see :func:`~.graph_key.made_by`; None where that is not known.
        conds: name -> conditionings as ``CFGGuider`` keeps them.
        noise: initial noise; a sampler may write into it.
        drawn: digest of ``noise`` before that.
        latent, mask: what else goes into the run.
        sampler: the SAMPLER.
        seed: of the noise, also of what a sampler adds.
    """

    plan: RunPlan
    models: Sequence[Any]
    origins: Sequence[str | None]
    conds: Mapping[str, Sequence[Mapping[str, Any]]]
    noise: Tensor
    drawn: str
    latent: Tensor | None
    mask: Tensor | None
    sampler: Any
    seed: int | None
