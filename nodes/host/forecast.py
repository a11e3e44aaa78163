"""What a run inside ComfyUI will take, from the MODELs as they are; nothing is loaded for it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ...wan.config import TransformerConfig
from ...wan.cost import (
    Circumstances,
    Forecast,
    Measured,
    Networks,
    Weights,
    advice,
    evaluated_levels,
    forecast_lines,
    forward_flops,
    make_forecast,
    time_block,
)
from ...wan.plan import RunPlan, describe
from ...wan.shapes import LatentShape, token_grid
from ...wan.solvers import SOLVERS
from .batch import TOGETHER
from .compiled import compiled_as
from .designs import design_of_run
from .interrupt import ATTENTION
from .manifest import attention_name, patches_of
from .model import sampling_of
from .sampling import WanSampling

log = logging.getLogger(__name__)

_measured = Measured()
"""Runs since ComfyUI started."""


def forecast_run(
    guider: Any, sampler: Any, sigmas: Tensor, samples: Tensor, *, time_it: bool = False
) -> tuple[RunPlan, Forecast]:
    """The plan of a run with all that should be known of it, and what it will take.

    Args:
        guider: one of ours.
        sampler: the SAMPLER, or None for one evaluation a step.
        sigmas: (N+1,) noise levels.
        samples: (B, C, T, h, w) of the LATENT.
        time_it: time one block of random weights on the device of the MODELs, where no run of this
            kind and size was measured yet.

    Raises:
        ValueError: the guider is none of ours, or its stages do not fit the sigmas.
    """
    if not hasattr(guider, "plan_run"):
        raise ValueError(
            "this GUIDER is not one of this pack; use Wan Experts Guider or Wan Stages Guider"
        )
    plan = guider.plan_run(sigmas)
    batch, shape = samples.shape[0], LatentShape(*samples.shape[1:])
    design = design_of_run(guider.models, samples.shape)
    networks = replace(networks_of(guider.models), memory=design.memory, together=TOGETHER)
    size = _kind(guider.models, networks), batch, token_grid(*shape[1:]).tokens
    measured = _measured.nearest(*size)
    if time_it and _measured.same(*size) is None:
        device = guider.models[0].load_device
        measured = time_block(networks.transformer, shape, networks.dtype, device)
    name = getattr(sampler, "wan_solver", None)
    levels = _levels(sampler, plan)
    forecast = make_forecast(
        plan, networks, shape, solver=name if name in SOLVERS else "unipc", batch=batch,
        levels=levels, measured=measured,
    )  # fmt: skip
    own = sampling_of(guider.models[0])
    loras = {
        stage.name: len(getattr(model, "patches", ()))
        for stage, model in zip(plan.stages, guider.models, strict=True)
        if stage.name != "motion"
    }
    odd = advice(plan, Circumstances(own=own, shape=shape, loras=loras))
    return plan.noted(*filter(None, [design.note]), *odd), forecast


def plan_text(
    guider: Any, sampler: Any, sigmas: Tensor, samples: Tensor, *, time_it: bool = False
) -> str:
    """:func:`forecast_run` in words; of MODELs that nothing can be foretold of, the plan alone.

    Raises:
        ValueError: the guider is none of ours.
    """
    try:
        plan, forecast = forecast_run(guider, sampler, sigmas, samples, time_it=time_it)
    except (ValueError, RuntimeError) as error:
        if not hasattr(guider, "plan_run"):
            raise
        return f"{describe(guider.plan_run(sigmas))}\nno forecast: {error}"
    return "\n".join([describe(plan), *forecast_lines(forecast), attention_line(guider.models)])


def attention_line(models: tuple[Any, ...]) -> str:
    """Whose attention runs: ComfyUI's, or what patches on MODELs put in its place."""
    inside = [model.model_options.get("transformer_options", {}) for model in models]
    patches = [options[ATTENTION] for options in inside if options.get(ATTENTION) is not None]
    names = dict.fromkeys(getattr(p, "__qualname__", type(p).__name__) for p in patches)
    own = f"attention: ComfyUI's {attention_name()}"
    return f"{own}; on MODELs in its place {', '.join(names)}" if names else own


def remember(guider: Any, samples: Tensor, seconds_per_call: float | None) -> None:
    """Keep how long a call of the network took, for forecasts of later runs."""
    if seconds_per_call is None:
        return
    try:
        networks = networks_of(guider.models)
    except ValueError:  # nothing is foretold of such MODELs
        return
    networks = replace(networks, memory=design_of_run(guider.models, samples.shape).memory)
    batch, tokens = samples.shape[0], token_grid(*samples.shape[2:]).tokens
    flops = batch * forward_flops(networks.transformer, tokens)
    kind = _kind(guider.models, networks)
    _measured.keep(kind, batch, tokens, seconds=seconds_per_call, flops=flops)


def networks_of(models: tuple[Any, ...]) -> Networks:
    """Sizes and weights of MODELs, of whatever loader."""
    first = models[0].model
    dtype = getattr(first, "manual_cast_dtype", None) or first.get_dtype()
    distinct = {id(model.model): model for model in models}.values()
    experts = tuple(
        Weights(nbytes=model.model_size(), dtype=_stored(model.model)) for model in distinct
    )
    return Networks(
        transformer=_config(first.diffusion_model),
        dtype=dtype,
        device=models[0].load_device.type,
        experts=experts,
    )


def _config(network: Any) -> TransformerConfig:
    """Sizes of a Wan network, ours or ComfyUI's own."""
    own = getattr(network, "config", None)
    if isinstance(own, TransformerConfig):
        return own
    told = {field.name: getattr(network, field.name, None) for field in fields(TransformerConfig)}
    try:
        return TransformerConfig(
            **{name: value for name, value in told.items() if value is not None}
        )
    except TypeError as error:
        raise ValueError(
            f"a MODEL is not a Wan model ({type(network).__name__}); connect Wan experts"
        ) from error


def _stored(model: Any) -> torch.dtype:
    dtype = model.get_dtype()
    return dtype if dtype.is_floating_point else torch.float8_e4m3fn


def _kind(models: tuple[Any, ...], networks: Networks) -> Hashable:
    """What decides the seconds of a forward beside its size; patches that weights get at use are some of it."""
    try:
        how = tuple(
            (compiled_as(model), patches_of(model), bool(model.patches)) for model in models
        )
    except Exception as error:  # noqa: BLE001 - MODELs of other packs may hold anything
        log.info("what these MODELs carry is not known (%r); nothing is foretold from them", error)
        return object()
    own = networks.transformer, networks.dtype, networks.experts, networks.memory
    return own, str(models[0].load_device), attention_name(), how


def _levels(sampler: Any, plan: RunPlan) -> list[float]:
    """The noise levels at which a SAMPLER evaluates; a foreign one runs on one number to tell."""
    if (name := getattr(sampler, "wan_solver", None)) in SOLVERS:
        return evaluated_levels(name, plan.schedule.sigmas)
    sigmas, listener = plan.schedule.sigmas, _Listener(plan)
    run = getattr(sampler, "sampler_function", None)
    if run is not None:
        try:
            options = {"seed": 0, "model_options": {}}
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(listener, torch.zeros(1, 1, 1, 1, 1), sigmas, extra_args=options, callback=None,
                    disable=True, **getattr(sampler, "extra_options", {}))  # fmt: skip
        except Exception as error:  # noqa: BLE001 - it is not ours, and only its count is at stake
            log.info("the calls of this SAMPLER are not known (%s); taken as one a step", error)
        else:
            return listener.levels
    return sigmas[:-1].tolist()


class _Listener:
    """Stands for a network that samplers ask: it predicts nothing and remembers the noise levels."""

    def __init__(self, plan: RunPlan) -> None:
        self.levels: list[float] = []
        self.model_sampling = WanSampling(plan.schedule, plan.shift)
        # Where samplers look for the properties of a model.
        self.inner_model = self.model_patcher = self

    def get_model_object(self, name: str) -> Any:
        """As a patcher's."""
        return getattr(self, name)

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        """Zeros, shaped like ``x``."""
        self.levels.append(float(sigma.max()))
        return torch.zeros_like(x)
