"""How a model wants to be sampled, as far as its files say."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields, replace

from ..config import FAMILIES, T2V_A14B, SamplingConfig
from ..experts import check_boundary
from ..files import shown
from .layouts import Checkpoint
from .sizes import detect_transformer_config

log = logging.getLogger(__name__)


def family_defaults(expert: Checkpoint) -> SamplingConfig:
    """How this expert wants to be sampled: by its header, else by its sizes, else as T2V-A14B."""
    try:
        header = json.loads(expert.metadata.get("wan_config", "{}"))
    except (ValueError, RecursionError):
        log.warning("%s: its wan_config is not JSON and is ignored", expert.where)
        header = {}
    config = detect_transformer_config(expert)
    families = (f.sampling for f in FAMILIES.values() if f.transformer == config)
    sampling = next(families, T2V_A14B.sampling)
    if "boundary_ratio" in expert.metadata:  # of the diffusers repository around it
        sampling = replace(sampling, boundary=_boundary(expert))
    told = header.get("sampling") if isinstance(header, Mapping) else None
    if not isinstance(told, Mapping):
        return sampling
    known = {field.name: getattr(sampling, field.name) for field in fields(SamplingConfig)}
    told = {key: value for key, value in told.items() if key in known}
    for key, value in told.items():
        if type(value) is not type(known[key]):
            raise ValueError(
                f"{expert.where}: its header has {key}={shown(repr(value))}; download it again"
            )
    sampling = replace(sampling, **told)
    _check(expert, sampling.boundary)
    return sampling


def _boundary(expert: Checkpoint) -> float:
    told = expert.metadata["boundary_ratio"]
    try:
        boundary = float(told)
    except ValueError as error:
        raise ValueError(
            f"{expert.where}: its header has boundary_ratio={shown(repr(told))}; download it again"
        ) from error
    _check(expert, boundary)
    return boundary


def _check(expert: Checkpoint, boundary: float) -> None:
    try:
        check_boundary(boundary)
    except ValueError as error:
        raise ValueError(f"{expert.where}: {error}") from error
