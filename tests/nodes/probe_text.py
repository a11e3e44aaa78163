"""A custom node of the tests: how often an expert reads a prompt in a run, and what that changes.

Copied alone into a server's ``custom_nodes``; imports nothing of this repository.
"""

from __future__ import annotations

import contextlib
import sys

import comfy.hooks
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0])


@contextlib.contextmanager
def pytorch_attention(model, wanted):
    """As on most GPUs, where ComfyUI runs PyTorch's attention."""
    home = sys.modules[type(model.model.diffusion_model._attention).__module__]
    before = home.optimized_attention
    home.optimized_attention = attention_pytorch if wanted else before
    try:
        yield
    finally:
        home.optimized_attention = before


def close_readings(executor, *args, **kwargs):
    """A wrapper around each forward: what was kept is lost."""
    executor.class_obj.readings.close()
    return executor(*args, **kwargs)


def strong_lora(network):
    """Another key projection of the text in each block."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for index, block in enumerate(network.blocks):
        shape = block.cross_attn.k.weight.shape
        delta = torch.randn(shape, generator=generator)
        state[f"diffusion_model.blocks.{index}.cross_attn.k.diff"] = delta
    return state


def hooked(network, conditioning):
    """The conditioning with that LoRA on it, from the middle of the run on at another strength."""
    hooks = comfy.hooks.create_hook_lora(strong_lora(network), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    frames.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.5))
    hooks.set_keyframes_on_hooks(frames)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)


def sample(model, positive, negative):
    """A run of ComfyUI's own guider, and how often the keys of a text were made."""
    calls = []
    layers = [block.cross_attn.k for block in model.model.diffusion_model.blocks]
    counters = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    noise = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    try:
        out = guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), SIGMAS
        )
    finally:
        for counter in counters:
            counter.remove()
    return out, len(calls) / len(layers)


class WanProbeReading:
    """Readings a block, and the difference to reading at every forward; of two runs, or after a LoRA."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        needed = {"model": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        kinds = (["plain", "lora", "hooks", "block"],)
        return {"required": {**needed, "kind": kinds, "pytorch": ("BOOLEAN", {"default": True})}}

    def run(self, model, positive, negative, kind, pytorch):
        network = model.model.diffusion_model
        with pytorch_attention(model, pytorch):
            if kind == "lora":  # on another clone, after a run that read the same texts
                sample(model, positive, negative)
                model = model.clone()
                delta = strong_lora(network)
                model.add_patches(
                    {k.replace(".diff", ".weight"): ("diff", (v,)) for k, v in delta.items()}
                )
            if kind == "hooks":  # the same prompt with and without
                model, negative = model.clone(), positive
                positive = hooked(network, positive)
            if kind == "block":  # one that sends the text on as another tensor
                model = model.clone()
                model.set_model_patch_replace(other_text, "dit", "double_block", 1)
            kept, few = sample(model, positive, negative)
            left = len(network.readings._read)
            each = model.clone()
            where = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
            each.add_wrapper_with_key(where, "probe", close_readings)
            anew, many = sample(each, positive, negative)
        error = float((kept - anew).norm() / anew.norm())
        return (f"{few} {many} {error} {left}",)


def other_text(args, extra):
    return extra["original_block"]({**args, "txt": args["txt"] * 1.5})


NODE_CLASS_MAPPINGS = {"WanProbeReading": WanProbeReading}
