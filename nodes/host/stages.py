"""The MODEL of one stage inside a run of ComfyUI's guider: its clone, its own options, its loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...wan.plan import RunPlan
from . import compat
from .interrupt import ATTENTION, interruptible
from .sampling import with_schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class RunInputs:
    """What processing the conditionings of a later stage needs of the run under way."""

    noise: Tensor
    latent_image: Tensor | None
    device: torch.device
    denoise_mask: Tensor | None
    seed: int | None
    sigmas: Tensor
    shapes: dict[str, Any]


class LaterStage(comfy.samplers.CFGGuider):
    """A MODEL that comes after the one a run starts with: known from the start, loaded when due.

    What wrappers and patches on this MODEL find as the guider of their run.
    """

    def __init__(self, patcher: Any, conds: dict[str, Any]) -> None:
        """``patcher`` is this run's own clone, ``conds`` the run's conditionings as set."""
        super().__init__(patcher)
        self.original_conds = conds
        self.is_loaded = False
        self.helpers: list[Any] = []
        """Models that conditionings brought along."""

    def around(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``run`` inside this MODEL's wrappers of a whole run."""
        own = get_all_wrappers(WrappersMP.OUTER_SAMPLE, self.model_options, is_model_options=True)
        return WrapperExecutor.new_class_executor(run, self, own).execute

    def prepare(self) -> None:
        """What ``CFGGuider.sample`` does for a model before a run; loads nothing."""
        patcher = self.model_patcher
        self.model_options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
        self.conds = {name: [dict(c) for c in given] for name, given in self.original_conds.items()}
        comfy.samplers.preprocess_conds_hooks(self.conds)
        comfy.sampler_helpers.prepare_model_patcher(patcher, self.conds, self.model_options)
        comfy.samplers.filter_registered_hooks_on_conds(self.conds, self.model_options)

    def load(self, run: RunInputs) -> None:
        """What ``CFGGuider.outer_sample`` and ``inner_sample`` do for a model, in a run under way."""
        # Wrappers around the run may have put their state into these.
        patcher, options = self.model_patcher, self.model_options
        self.inner_model, self.conds, self.helpers = comfy.sampler_helpers.prepare_sampling(
            patcher, run.noise.shape, self.conds, options
        )
        self.is_loaded = True
        comfy.samplers.cast_to_load_options(
            options, device=patcher.load_device, dtype=patcher.model_dtype()
        )
        patcher.pre_run()
        latent = run.latent_image
        if latent is not None and torch.count_nonzero(latent) > 0:
            latent = self.inner_model.process_latent_in(latent)
        self.conds = comfy.samplers.process_conds(
            self.inner_model, run.noise, self.conds, run.device, latent, run.denoise_mask, run.seed,
            **compat.accepted(comfy.samplers.process_conds, run.shapes),
        )  # fmt: skip
        options.setdefault("transformer_options", {})["sample_sigmas"] = run.sigmas

    def release(self) -> None:
        """What ``CFGGuider`` does for a model after a run; once is enough, twice does no harm."""
        patcher = self.model_patcher
        patcher.restore_hook_patches()
        if not self.is_loaded:
            return
        self.is_loaded = False
        patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(self.conds, self.helpers)
        comfy.samplers.cast_to_load_options(self.model_options, device=patcher.offload_device)


def check_one_format(models: Sequence[Any]) -> None:
    """Raise ValueError unless all MODELs work on the latents of the first."""
    wanted, *others = (model.get_model_object("latent_format").latent_channels for model in models)
    for number, channels in enumerate(others, start=2):
        if channels != wanted:
            raise ValueError(
                f"MODEL {number} of this run works on latents of {channels} channels, the first on "
                f"{wanted}; use models of one family"
            )


def stage_clone(model: Any, plan: RunPlan) -> Any:
    """A clone of a MODEL for a run of ``plan``: told its timesteps, and interruptible in every block."""
    clone = with_schedule(model, plan.schedule, plan.shift)
    options = clone.model_options.setdefault("transformer_options", {})
    options[ATTENTION] = interruptible(options.get(ATTENTION))
    return clone
