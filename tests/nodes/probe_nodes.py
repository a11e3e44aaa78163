"""Custom nodes of the tests: what other packs do to a MODEL, and what a forward really takes.

Copied alone into a server's ``custom_nodes``; imports nothing of this repository.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import weakref

import comfy.latent_formats
import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import torch
from comfy import sd1_clip
from comfy.ldm.modules.attention import attention_pytorch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakStorage(TorchDispatchMode):
    """Peak bytes of storages that operations return and that are alive."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return out

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return
        self.live[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.now -= self.live.pop(key, 0)


def wrapper(executor, x, timestep, context, *args, **kwargs):
    return executor(x, timestep, context, *args, **kwargs) * 0.5


def predict_wrapper(executor, x, timestep, model_options, seed):
    return executor(x, timestep, model_options, seed) * 0.9


def sampler_wrapper(executor, *args, **kwargs):
    return executor(*args, **kwargs) * 0.5


def run_wrapper(executor, noise, *args, **kwargs):
    guider = executor.class_obj
    own = guider.model_options["transformer_options"]["probe"] == guider.model_patcher.patches_uuid
    logging.info("probe: run wrapper, own expert %s", own)
    return executor(noise * 2, *args, **kwargs) * 0.5


def skip_block(args, extra):
    assert extra["original_block"](args)["img"].shape == args["img"].shape
    return {"img": args["img"]}


def no_attention(func, *args, **kwargs):
    return func(*args, **kwargs) * 0


def interrupting_attention(func, *args, **kwargs):
    logging.info("probe: attention")
    comfy.model_management.interrupt_current_processing()
    return func(*args, **kwargs)


class WanProbePatch:
    """Patch a MODEL the way other packs do."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = ["wrapper", "predict", "block", "attention", "weight", "sampler", "run"]
        kinds += ["interrupt", "latents"]
        return {"required": {"model": ("MODEL",), "kind": (kinds,)}}

    def run(self, model, kind):
        model = model.clone()
        if kind == "wrapper":
            where = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
            model.add_wrapper_with_key(where, "probe", wrapper)
        elif kind == "predict":
            where = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
            model.add_wrapper_with_key(where, "probe", predict_wrapper)
        elif kind == "sampler":
            where = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
            model.add_wrapper_with_key(where, "probe", sampler_wrapper)
        elif kind == "run":
            where = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
            model.model_options["transformer_options"]["probe"] = model.patches_uuid
            model.add_wrapper_with_key(where, "probe", run_wrapper)
        elif kind == "block":
            model.set_model_patch_replace(skip_block, "dit", "double_block", 1)
        elif kind == "latents":
            model.add_object_patch("latent_format", comfy.latent_formats.Wan22())
        elif kind in ("attention", "interrupt"):
            options = model.model_options["transformer_options"]
            own = no_attention if kind == "attention" else interrupting_attention
            options["optimized_attention_override"] = own
        else:
            key = "diffusion_model.blocks.0.self_attn.v.weight"
            delta = torch.ones_like(model.model_state_dict()[key]) * 0.01
            assert model.add_patches({key: ("diff", (delta,))}, 1.0) == [key]
        return (model,)


def network_growth(model, dtype):
    """Growth of the estimate over growth of the peak, between two sizes of a wider network."""
    network = type(model.model.diffusion_model)
    home = sys.modules[type(model.model).__module__]
    config = model.model.diffusion_model.config
    config = dataclasses.replace(config, dim=640, ffn_dim=1728, num_heads=5, num_layers=1)
    wide = network(config=config, operations=comfy.ops.manual_cast, dtype=dtype)
    # As on a GPU: attention without a table of all pairs.
    flash = {"optimized_attention_override": lambda _, *a, **k: attention_pytorch(*a, **k)}
    seen, told = [], []
    for grid in ((9, 32, 32), (17, 32, 32)):  # large enough for the blocks to be the peak
        x = torch.zeros(1, 16, *grid, dtype=dtype)
        context = torch.zeros(1, 512, config.text_dim, dtype=dtype)
        with PeakStorage() as peak:
            # What sampling holds around a forward: noise, latents, the sampler's two, and two
            # predictions with their weights.
            latents = [torch.zeros(1, 16, *grid) for _ in range(8)]
            wide(x, torch.zeros(1), context, transformer_options=flash)
            del latents
        seen.append(peak.peak)
        told.append(home.activation_bytes(config, tuple(x.shape), dtype, "cuda"))
    return (told[1] - told[0]) / (seen[1] - seen[0])


def vae_growth(vae):
    """The same for streamed decoding; weights seen by the first pass cancel out."""
    seen, told = [], []
    for shape in ([1, 16, 3, 8, 8], [1, 16, 3, 24, 24]):
        with PeakStorage() as peak:
            for _ in vae.decode_stream(torch.zeros(shape)):
                pass
        seen.append(peak.peak)
        told.append(vae.memory_used_decode(shape, vae.vae_dtype))
    return (told[1] - told[0]) / (seen[1] - seen[0])


def look_back(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Evaluate at a high, a low and a high noise level; the answer is the last prediction."""
    for level in (0.95, 0.5, 0.95):
        out = model(x, level * x.new_ones(x.shape[0]), **extra_args)
    return out


class WanProbeSampler:
    """A SAMPLER that returns to a noise level it has left."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (comfy.samplers.KSAMPLER(look_back),)


class WanProbeMemory:
    """Estimates over measured peaks: network in bfloat16 and float32, streamed decoding."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "vae": ("VAE",)}}

    def run(self, model, vae):
        ratios = [network_growth(model, dtype) for dtype in (torch.bfloat16, torch.float32)]
        ratios.append(vae_growth(vae))
        return (" ".join(f"{ratio:.3f}" for ratio in ratios),)


def batch_growth(model):
    """Peak and estimate of two samples over those of one, where each is a long clip; without numbers."""
    home = sys.modules[type(model.model).__module__]
    network, config = type(model.model.diffusion_model), model.model.diffusion_model.config
    config = dataclasses.replace(config, dim=5120, ffn_dim=13824, num_heads=40, num_layers=1)
    device, dtype = torch.device("meta"), torch.bfloat16
    wide = network(config=config, operations=comfy.ops.manual_cast, dtype=dtype, device=device)
    flash = {"optimized_attention_override": lambda _, *a, **k: attention_pytorch(*a, **k)}
    seen, told = [], []
    for samples in (1, 2):
        x = torch.zeros(samples, 16, 9, 96, 96, dtype=dtype, device=device)
        context = torch.zeros(samples, 512, config.text_dim, dtype=dtype, device=device)
        with PeakStorage() as peak:
            wide(x, torch.zeros(samples, device=device), context, transformer_options=flash)
        seen.append(peak.peak)
        told.append(home.activation_bytes(config, tuple(x.shape), dtype, "cuda"))
    return seen[1] / seen[0], told[1] / told[0]


def one_by_one(model):
    """What a patch of a block sees of four samples of two conditionings that go one after the other,
    each of which comes out as it does alone, and how far that is from all side by side."""
    network = model.model.diffusion_model
    batch = sys.modules[type(network).__module__.rpartition(".")[0] + ".batch"]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 16, 2, 4, 4, generator=generator)
    context = torch.randn(4, 7, network.config.text_dim, generator=generator)
    timestep, seen = torch.tensor([900.0, 800.0, 700.0, 600.0]), []

    def look(args, extra):
        seen.append((len(args["img"]), *args["transformer_options"]["cond_or_uncond"]))
        return extra["original_block"](args)

    def run(where, chunks):
        options = {
            "cond_or_uncond": chunks,
            "patches_replace": {"dit": {("double_block", 0): look}},
        }
        return network(x[where], timestep[where], context[where], transformer_options=options)

    with torch.inference_mode():
        beside = run(slice(None), [1, 0])
        seen.clear()
        before, batch.TOGETHER = batch.TOGETHER, 0
        try:
            after = run(slice(None), [1, 0])
        finally:
            batch.TOGETHER = before
        told = " ".join(f"{count}:{chunk}" for count, chunk in seen)
        alone = torch.cat([run(slice(i, i + 1), [0]) for i in range(4)])
    assert torch.equal(after, alone)
    return told, float((after - beside).norm() / beside.norm())


class WanProbeBatch:
    """:func:`batch_growth` and :func:`one_by_one`."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        seen, told = batch_growth(model)
        patch, off = one_by_one(model)
        return (f"{seen:.3f} {told:.3f} {off:.2e} {patch}",)


class WanProbeUnpacking:
    """What a packed MODEL asks for beyond its unpacked twin, over the peak of using its largest weight.

    Both grow with that weight; the peak is measured on a large one, where slabs hardly count.
    """

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"packed": ("MODEL",), "numbers": ("MODEL",)}}

    def run(self, packed, numbers):
        shape = [1, 16, 3, 8, 8]
        asked, without = (m.model.memory_required(shape) for m in (packed, numbers))
        layers = [m for m in packed.model.diffusion_model.modules() if hasattr(m, "quant")]
        largest = max(math.prod(layer.quant.shape) for layer in layers)
        size = (2048, 4096)
        big = type(layers[0])(dataclasses.replace(layers[0].quant, shape=size))
        big.weight.zero_()
        home = sys.modules[type(packed.model).__module__]
        set_patches = sys.modules[home.patch_at_use.__module__].set_patches
        down = torch.zeros(4, size[1])
        ratios = []
        for count in range(3):
            lora = [lambda w: torch.add(w, torch.zeros(len(w), 4) @ down)] * count
            set_patches(big, "weight", lora)
            with PeakStorage() as peak:
                big.numbers(torch.device("cpu"), torch.bfloat16)
            ratios.append((asked - without) / largest / (peak.peak / math.prod(size)))
        return (" ".join(f"{ratio:.3f}" for ratio in ratios),)


class WanProbeLatent:
    """A LATENT filled with one value."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",), "value": ("FLOAT", {"default": 1.0})}}

    def run(self, latent, value):
        return ({**latent, "samples": torch.full_like(latent["samples"], value)},)


class WanProbeImageConditioning:
    """Everything that nodes for image conditioning of Wan models may set."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning):
        vision = type("Vision", (), {"penultimate_hidden_states": torch.zeros(1, 257, 1280)})
        frame = torch.zeros(1, 16, 1, 6, 8)
        extra = {
            "clip_vision_output": vision,
            "time_dim_concat": frame,
            "reference_latents": [frame],
            "concat_latent_image": frame.repeat(1, 1, 3, 1, 1),
            "concat_mask": torch.zeros(1, 1, 3, 6, 8),
        }
        return ([[text, {**options, **extra}] for text, options in conditioning],)


SMALL_UMT5 = {
    "d_ff": 64,
    "d_kv": 32,
    "d_model": 64,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "umt5",
    "num_heads": 2,
    "num_layers": 1,
    "relative_attention_num_buckets": 32,
    "vocab_size": 64,
}


class SmallUMT5(sd1_clip.SDClipModel):
    """ComfyUI's UMT5XXlModel, which only knows one size, in another."""

    def __init__(self, device="cpu", layer="last", layer_idx=None, dtype=None, model_options=None):
        super().__init__(
            device=device,
            layer=layer,
            layer_idx=layer_idx,
            textmodel_json_config=dict(SMALL_UMT5),
            dtype=dtype,
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=True,
            zero_out_masked=True,
            model_options=model_options or {},
        )


class SmallWanText(sd1_clip.SD1ClipModel):
    """ComfyUI's WanT5Model around it."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            name="umt5xxl",
            clip_model=SmallUMT5,
        )


class WanProbeClip:
    """A CLIP of ComfyUI's own classes, as CLIPLoader of type wan makes it."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        names = folder_paths.get_filename_list("text_encoders")
        return {"required": {"weights": (names,), "tokenizer": (names,)}}

    def run(self, weights, tokenizer):
        state, other = (
            comfy.utils.load_torch_file(folder_paths.get_full_path("text_encoders", name))
            for name in (weights, tokenizer)
        )
        target = type("Target", (), {})()
        target.params, target.clip = {}, SmallWanText
        target.tokenizer = comfy.text_encoders.wan.WanT5Tokenizer
        data = {"spiece_model": other["spiece_model"]}
        clip = comfy.sd.CLIP(target, tokenizer_data=data, model_options={"dtype": torch.float32})
        missing, _ = clip.load_sd(state)
        assert not [key for key in missing if "embed_tokens" not in key], missing
        return (clip,)


class AnyType(str):
    """Fits every input."""

    def __ne__(self, other):
        return False


class WanProbeName:
    """A file name over a link."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": ""})}}

    def run(self, name):
        return (name,)


class WanProbeSigmas:
    """Noise levels from text (ManualSigmas came after ComfyUI 0.3)."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sigmas": ("STRING", {"default": "1, 0"})}}

    def run(self, sigmas):
        return (torch.tensor([float(level) for level in sigmas.split(",")]),)


NODE_CLASS_MAPPINGS = {
    "WanProbeSigmas": WanProbeSigmas,
    "WanProbeLatent": WanProbeLatent,
    "WanProbeImageConditioning": WanProbeImageConditioning,
    "WanProbeClip": WanProbeClip,
    "WanProbeName": WanProbeName,
    "WanProbePatch": WanProbePatch,
    "WanProbeSampler": WanProbeSampler,
    "WanProbeMemory": WanProbeMemory,
    "WanProbeUnpacking": WanProbeUnpacking,
    "WanProbeBatch": WanProbeBatch,
}
