"""A custom node of the tests: both experts on a device that takes weights and never gives one back.

Tensors of PyTorch's meta device have no numbers: sending one to the CPU is an error. To ComfyUI it is
a GPU whose free memory the probe tells. Copied alone into a server's ``custom_nodes``; imports nothing
of this repository.
"""

from __future__ import annotations

import contextlib
import logging
import os

import comfy.model_management as mm
import comfy.sampler_helpers
import torch

META = torch.device("meta")
_advise = os.posix_fadvise


def logged_advice(fd, begin, nbytes, advice):
    """The system's advice, with a line in the log."""
    name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
    logging.info("probe: advised %s from %d, %d bytes, %d", name, begin, nbytes, advice)
    return _advise(fd, begin, nbytes, advice)


os.posix_fadvise = logged_advice
SHAPE = [1, 16, 3, 6, 8]


@contextlib.contextmanager
def gpu(total, models):
    """The device has ``total`` bytes, less those of ``models`` on it; none are for anything else."""

    def free(device=None, torch_free_too=False):
        if device != META:
            return true["get_free_memory"](device, torch_free_too)
        left = total - sum(map(on_device, models))
        return (left, left) if torch_free_too else left

    fakes = {
        "get_free_memory": free,
        "minimum_inference_memory": lambda: 0,
        "extra_reserved_memory": lambda: 0,
        "vram_state": mm.VRAMState.NORMAL_VRAM,
    }
    true = {name: getattr(mm, name) for name in fakes}
    try:
        for name, fake in fakes.items():
            setattr(mm, name, fake)
        yield
    finally:
        for name, before in true.items():
            setattr(mm, name, before)


def on_device(model):
    """Bytes of the weights that are there, counted on the weights themselves."""
    network = model.model.diffusion_model
    weights = [*network.parameters(), *network.buffers()]
    return sum(w.nbytes for w in weights if w.device == META)


class WanProbeSwitch:
    """High, low, high again and both unloaded, on a device with room for ``room`` experts besides a step.

    How many experts the room for a second clip is worth, which may go without; then for each of the
    three loads: the share of the high and of the low expert on the device.
    """

    RETURN_TYPES = ("MODEL", "MODEL", "STRING")
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        models = {"high": ("MODEL",), "low": ("MODEL",)}
        return {"required": {**models, "room": ("FLOAT", {"default": 1.5})}}

    def run(self, high, low, room):
        mm.unload_all_models()
        models = [high.clone(), low.clone()]
        size = models[0].model_size()
        for model in models:
            model.load_device = META
        most, least = comfy.sampler_helpers.estimate_memory(models[0], SHAPE, {})
        seen = [(most - least) / size]
        # ComfyUI wants a tenth more than the weights.
        with gpu(most + 1.1 * room * size, models):
            for model in (models[0], models[1], models[0]):
                comfy.sampler_helpers.prepare_sampling(model, SHAPE, {}, model.model_options)
                seen += [on_device(model) / size for model in models]
            for model in models:
                mm.free_memory(1e30, META)
                model.detach()
        told = " ".join(f"{share:.3f}" for share in seen)
        assert sum(map(on_device, models)) == 0
        return (high, low, told)


NODE_CLASS_MAPPINGS = {"WanProbeSwitch": WanProbeSwitch}
