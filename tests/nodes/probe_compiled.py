"""A custom node of the tests: how many graphs runs of compiled MODELs make, and what that changes.

Copied alone into a server's ``custom_nodes``; imports nothing of this repository.
"""

from __future__ import annotations

import sys
from functools import partial

import comfy.model_management as mm
import comfy.samplers
import torch

SIGMAS = torch.tensor([1.0, 0.6, 0.0])


def sample(model, positive, negative):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    noise = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), euler, SIGMAS)


class WanProbeCompiled:
    """Graphs after each of several runs, and the largest relative difference to runs of the plain MODELs.

    Of the node's MODELs (``blocks``) or of what ComfyUI's compiling node makes of them (``whole``).
    """

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        models = {"high": ("MODEL",), "low": ("MODEL",), "lora": ("MODEL",), "node": ("MODEL",)}
        texts = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        kind = (["blocks", "whole"],)
        return {"required": {**models, **texts, "kind": kind}}

    def run(self, high, low, lora, node, positive, negative, kind):
        graphs, load = [], mm.LoadedModel.model_load

        def load_nothing(loaded, lowvram_model_memory=0, *more, **named):
            return load(loaded, 0.1, *more, **named)

        def count(graph, _):
            graphs.append(graph)
            return graph.forward

        wrapper = node.wrappers["apply_model"]["torch.compile"][0]
        home = sys.modules[wrapper.__module__]
        told, worst, before = [], 0.0, home.THROUGH
        home.THROUGH = partial(torch.compile, backend=count, dynamic=True)
        torch._dynamo.reset()
        try:
            for model, part in ((high, 1), (low, 1), (lora, 1), (lora, 0), (high, 0)):
                mm.unload_all_models()
                mm.LoadedModel.model_load = load if part else load_nothing
                plain = sample(model, positive, negative)
                clone = model.clone()
                if kind == "blocks":
                    clone.add_wrapper_with_key("apply_model", "torch.compile", wrapper)
                else:
                    from comfy_api.torch_helpers import set_torch_compile_wrapper

                    set_torch_compile_wrapper(model=clone, backend=count)
                got = sample(clone, positive, negative)
                worst = max(worst, float((got - plain).norm() / plain.norm()))
                told.append(len(graphs))
        finally:
            home.THROUGH, mm.LoadedModel.model_load = before, load
            torch._dynamo.reset()
        return (" ".join(map(str, [worst, *told])),)


class WanProbeThrough:
    """The node's MODELs as they are, but what they go through compiles nothing; without ``idle`` it does again."""

    RETURN_TYPES = ("MODEL",)
    OUTPUT_NODE = True
    FUNCTION = "run"
    CATEGORY = "tests"
    TRUE = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "idle": ("BOOLEAN", {"default": True})}}

    def run(self, model, idle):
        home = sys.modules[model.wrappers["apply_model"]["torch.compile"][0].__module__]
        kind = type(self)
        kind.TRUE = kind.TRUE or home.THROUGH
        home.THROUGH = (lambda branch: branch) if idle else kind.TRUE
        return (model,)


NODE_CLASS_MAPPINGS = {"WanProbeCompiled": WanProbeCompiled, "WanProbeThrough": WanProbeThrough}
