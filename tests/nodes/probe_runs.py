"""Custom nodes of the tests of kept runs: MODELs that tell which steps they ran, wait, and fail.

Copied alone into a server's ``custom_nodes``; imports nothing of this repository.
"""

from __future__ import annotations

import logging
import time

import comfy.model_management as mm
import comfy.patcher_extension
import torch
from comfy_execution.graph_utils import GraphBuilder

LEFT: dict[str, int] = {}
"""Failures that are left, by label."""


def step_of(options):
    """Which step of the run asks, from 0; between two levels counts as the earlier one."""
    levels = options["sample_sigmas"].tolist()
    level = options["sigmas"].max().item()
    return sum(other >= level - 1e-6 for other in levels) - 1


class WanProbeSteps:
    """A MODEL that logs each step it runs, and takes its time; nothing else changes."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "label": ("STRING", {"default": ""}),
                "seconds": ("FLOAT", {"default": 0.0}),
            }
        }

    def run(self, model, label, seconds):
        model = model.clone()

        def attend(func, *args, **kwargs):
            options = kwargs["transformer_options"]
            if options.get("block_index") == 0:
                logging.info("probe: %s ran step %d", label, step_of(options))
                time.sleep(seconds)
            return func(*args, **kwargs)

        model.model_options["transformer_options"]["optimized_attention_override"] = attend
        return (model,)


class WanProbeFail:
    """A MODEL that fails at one step.

    ``kernel`` fails in attention, unless another one is used. ``narrow`` fails unless the network computes
    in float32, ``always`` in any way. ``memory`` runs out as often as ``times`` says, ``batch`` whenever
    conditionings are evaluated together, ``resident`` while all weights are on the device, ``exact`` while
    keys and values are.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = ["kernel", "narrow", "always", "memory", "batch", "resident", "exact"]
        return {
            "required": {
                "model": ("MODEL",),
                "kind": (kinds,),
                "step": ("INT", {"default": 0}),
                "value": ("STRING", {"default": "nan"}),
                "times": ("INT", {"default": 1}),
                "label": ("STRING", {"default": ""}),
            }
        }

    def run(self, model, kind, step, value, times, label):
        model = model.clone()
        LEFT[label] = times

        def attend(func, *args, **kwargs):
            out = func(*args, **kwargs)
            here = step_of(kwargs["transformer_options"]) == step
            return out * float(value) if here else out

        def bad(executor, x, timestep, context, *args, **kwargs):
            options = args[2]
            logging.info("probe: step %d in %s", step_of(options), x.dtype)
            if step_of(options) != step:
                return executor(x, timestep, context, *args, **kwargs)
            if kind == "memory" and LEFT[label] > 0:
                LEFT[label] -= 1
                raise torch.cuda.OutOfMemoryError("Tried to allocate. More words.")
            if kind == "batch" and x.shape[0] > 1:
                raise torch.cuda.OutOfMemoryError("Tried to allocate a batch. More words.")
            if kind == "resident" and not any(
                getattr(module, "prev_comfy_cast_weights", None) is not None
                for module in executor.class_obj.modules()
            ):
                raise torch.cuda.OutOfMemoryError("Tried to allocate all. More words.")
            if kind == "exact" and not executor.class_obj.memory.int8:
                raise torch.cuda.OutOfMemoryError("Tried to allocate keys. More words.")
            out = executor(x, timestep, context, *args, **kwargs)
            wrong = kind == "always" or (kind == "narrow" and x.dtype != torch.float32)
            return out * float(value) if wrong else out

        if kind == "kernel":
            model.model_options["transformer_options"]["optimized_attention_override"] = attend
        else:
            where = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
            model.add_wrapper_with_key(where, "probe", bad)
        return (model,)


class WanProbeNarrow:
    """A MODEL that computes in bfloat16."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        model = model.clone()
        model.set_model_compute_dtype(torch.bfloat16)
        return (model,)


class WanProbeDraw:
    """What a NOISE draws for a LATENT."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"noise": ("NOISE",), "latent": ("LATENT",)}}

    def run(self, noise, latent):
        return ({**latent, "samples": noise.generate_noise(latent)},)


class WanProbeList:
    """Two strengths: what comes after runs twice."""

    RETURN_TYPES = ("FLOAT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return ([0.2, 0.9],)


class WanProbeExpand:
    """A node that becomes a sampler while the graph runs."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        names = {
            "model_high_noise": "MODEL",
            "model_low_noise": "MODEL",
            "positive": "CONDITIONING",
        }
        names |= {"negative": "CONDITIONING", "latent_image": "LATENT"}
        links = {name: (kind, {"rawLink": True}) for name, kind in names.items()}
        return {"required": {**links, "seed": ("INT", {"default": 0})}}

    def run(self, seed, **links):
        graph = GraphBuilder()
        sampler = graph.node(
            "WanExpertsSampler", noise_seed=seed, steps=6, cfg_high_noise=3.0, cfg_low_noise=2.0,
            sampler_name="unipc", scheduler="unipc", sigma_shift=5.0, switch="auto", boundary=0.875,
            switch_step=3, **links,
        )  # fmt: skip
        return {"result": (sampler.out(0),), "expand": graph.finalize()}


class WanProbeFails:
    """Ends a run after sampling, as a decoder that crashes."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def run(self, samples):
        raise RuntimeError("probe: decoding crashed")


class WanProbeEachTime:
    """A MODEL of a node that says it changes each time."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, model):
        return (model,)


class WanProbeRoom:
    """From now on every device has ``total`` bytes in all; 0 ends that."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"
    CATEGORY = "tests"
    TRUE = staticmethod(mm.get_total_memory)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"total": ("INT", {"default": 0})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return time.time()

    def run(self, total):
        mm.get_total_memory = (lambda *_, **__: total) if total else self.TRUE
        return {}


NODE_CLASS_MAPPINGS = {
    "WanProbeRoom": WanProbeRoom,
    "WanProbeSteps": WanProbeSteps,
    "WanProbeFail": WanProbeFail,
    "WanProbeNarrow": WanProbeNarrow,
    "WanProbeDraw": WanProbeDraw,
    "WanProbeFails": WanProbeFails,
    "WanProbeList": WanProbeList,
    "WanProbeExpand": WanProbeExpand,
    "WanProbeEachTime": WanProbeEachTime,
}
