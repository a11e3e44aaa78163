"""Custom nodes of the tests: which forwards a run really makes, at which noise levels.

Copied alone into a server's ``custom_nodes``; imports nothing of this repository.
"""

from __future__ import annotations

import comfy.patcher_extension

CALLS: list[str] = []


class WanProbeCalls:
    """A MODEL whose forwards are written down under a name."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "name": ("STRING", {"default": ""})}}

    def run(self, model, name):
        def wrapper(executor, x, timestep, context, *args, **kwargs):
            options = args[2] if len(args) > 2 else kwargs["transformer_options"]
            sigma = float(options["sigmas"].max())
            CALLS.extend(f"{name} {sigma:.6f}" for _ in options["cond_or_uncond"])
            return executor(x, timestep, context, *args, **kwargs)

        model = model.clone()
        where = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        model.add_wrapper_with_key(where, "calls", wrapper)
        return (model,)


class WanProbeCallsMade:
    """What was written down until this LATENT was there; then it is forgotten."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def run(self, latent):
        told = "\n".join(CALLS)
        CALLS.clear()
        return (told,)


NODE_CLASS_MAPPINGS = {"WanProbeCalls": WanProbeCalls, "WanProbeCallsMade": WanProbeCallsMade}
