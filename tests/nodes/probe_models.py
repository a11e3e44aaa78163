"""Custom nodes of the tests: how a MODEL is loaded and stored, and what one forward of it gives.

Copied alone into a server's ``custom_nodes``; imports nothing of this repository.
"""

from __future__ import annotations

import contextlib
import sys

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch


class WanProbeForward:
    """One forward of a MODEL, of which ``share`` is loaded; -1 leaves loading to ComfyUI."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        after = ("LATENT",)  # an order between several forwards
        share = ("FLOAT", {"default": -1.0, "min": -1.0})
        return {"required": {"model": ("MODEL",), "share": share}, "optional": {"after": after}}

    def run(self, model, share, after=None):
        if share < 0:
            comfy.model_management.load_models_gpu([model])
            return (self._forward(model),)
        comfy.model_management.unload_all_models()
        # As ComfyUI's own loading does it; 0.1 bytes is what --novram leaves for weights.
        budget = 1e32 if share == 1 else max(0.1, share * model.model_size())
        model.partially_load(model.load_device, budget)
        assert model.model.model_lowvram == (share < 1)
        try:
            return (self._forward(model),)
        finally:
            model.detach()

    @staticmethod
    def _forward(model):
        shell = model.model
        width = getattr(shell.diffusion_model, "config", shell.diffusion_model).text_dim
        dtype = shell.manual_cast_dtype or shell.get_dtype()
        generator = torch.Generator().manual_seed(11)
        x = torch.randn(1, 16, 3, 6, 8, generator=generator)
        context = torch.zeros(1, 512, width)  # ComfyUI's own network does not add the empty rows
        context[:, :7] = torch.randn(1, 7, width, generator=generator)
        given = (t.to(model.load_device, dtype) for t in (x, context))
        x, context = given
        timestep = torch.tensor([500.0], device=model.load_device)
        out = shell.diffusion_model(x, timestep, context=context, transformer_options={})
        return {"samples": out.cpu().float()}


@contextlib.contextmanager
def pinning():
    """What a CUDA machine does to pin host memory, as far as ComfyUI is concerned."""
    host, pinned = comfy.model_management, {}

    def pin(tensor):
        pinned[tensor.data_ptr()] = tensor.nbytes
        return True

    def unpin(tensor):
        del pinned[tensor.data_ptr()]
        return True

    before = host.MAX_PINNED_MEMORY, host.pin_memory, host.unpin_memory
    host.MAX_PINNED_MEMORY, host.pin_memory, host.unpin_memory = 1 << 40, pin, unpin
    try:
        yield pinned
    finally:
        host.MAX_PINNED_MEMORY, host.pin_memory, host.unpin_memory = before


class WanProbePinned:
    """A MODEL that was half loaded, once more half loaded and unloaded on a host that pins."""

    RETURN_TYPES = ("MODEL", "STRING")
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        if not hasattr(comfy.model_management, "MAX_PINNED_MEMORY"):
            return (model, "never pins")
        comfy.model_management.unload_all_models()
        with pinning() as pinned:
            model.partially_load(model.load_device, model.model_size() / 2)
            first = len(pinned)
            storage = WanProbeStorage().run(model)[0]
            model.partially_load(model.load_device, model.model_size() / 4)
            model.detach()
        return (model, f"{first} {len(pinned)}\n{storage}")


class WanProbeStorage:
    """Each weight of a MODEL: key, stored dtype, and whether its bytes are those of a file (Linux)."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        with open("/proc/self/maps") as maps:
            fields = [line.split() for line in maps]
        spans = [
            [int(end, 16) for end in line[0].split("-")]
            for line in fields
            if line[-1].endswith((".safetensors", ".gguf", ".pth"))
        ]
        lines = []
        for key, value in model.model.diffusion_model.state_dict().items():
            data = getattr(value, "_qdata", value)
            place = data.data_ptr()
            mapped = any(start <= place < end for start, end in spans)
            lines.append(f"{key} {data.dtype} {'mapped' if mapped else 'memory'}")
        return ("\n".join(lines),)


class BytesTensor(torch.Tensor):
    """float32 numbers as bytes, which tells the shape of the numbers, as packs for GGUF do."""

    numbers_shape = None

    @property
    def shape(self):
        return self.numbers_shape

    def detach(self):
        return self


class BytesLinear(torch.nn.Module):
    """A linear layer of such a pack: its state dict tells the shape of the bytes."""

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        data = layer.weight.detach().float().contiguous().view(torch.uint8)
        weight = data.as_subclass(BytesTensor)
        weight.numbers_shape = layer.weight.shape
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias, self.patches, self.key = layer.bias, (), None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        size = self.weight.size()
        destination[f"{prefix}weight"] = torch.empty(size, dtype=torch.uint8, device="meta")
        destination[f"{prefix}bias"] = self.bias

    def forward(self, x):
        weight = self.weight.as_subclass(torch.Tensor).clone().view(torch.float32)
        weight = comfy.lora.calculate_weight(self.patches, weight, self.key)
        return torch.nn.functional.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))


class BytesPatcher(comfy.model_patcher.ModelPatcher):
    """Its patcher: patches act when the weight is unpacked."""

    def patch_weight_to_device(self, key, *args, **options):
        layer = self.model.get_submodule(key.rpartition(".")[0])
        if not isinstance(layer, BytesLinear) or not key.endswith(".weight"):
            return super().patch_weight_to_device(key, *args, **options)
        layer.key, layer.patches = key, self.patches.get(key, ())
        return None


class WanProbeBytes:
    """A MODEL of another pack: every matrix of the blocks is packed."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        network = model.model.diffusion_model
        for path, module in list(network.named_modules()):
            if path.startswith("blocks.") and hasattr(module, "in_features"):
                network.set_submodule(path, BytesLinear(module))
        return (BytesPatcher(model.model, model.load_device, model.offload_device),)


class WanProbeWalks:
    """How often listing the experts three times walks their folders."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        files = sys.modules[f"{sys.modules[type(model.model).__module__].__package__}.files"]
        calls, walk = [], folder_paths.recursive_search

        def counted(*args, **kwargs):
            calls.append(args)
            return walk(*args, **kwargs)

        lists = [files.list_files("diffusion_models")]
        folder_paths.recursive_search = counted
        try:
            lists += [files.list_files("diffusion_models") for _ in range(3)]
        finally:
            folder_paths.recursive_search = walk
        assert all(each == lists[0] for each in lists)
        return (str(len(calls)),)


class WanProbeText:
    """A CONDITIONING's tensor as samples."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning):
        return ({"samples": conditioning[0][0].clone()},)


NODE_CLASS_MAPPINGS = {
    "WanProbeBytes": WanProbeBytes,
    "WanProbeWalks": WanProbeWalks,
    "WanProbeForward": WanProbeForward,
    "WanProbePinned": WanProbePinned,
    "WanProbeStorage": WanProbeStorage,
    "WanProbeText": WanProbeText,
}
