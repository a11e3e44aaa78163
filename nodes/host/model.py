"""Our transformer as a real ComfyUI MODEL: patched, streamed and sampled like any other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import comfy.model_base
import comfy.model_management as mm
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...wan.compiled import Apart
from ...wan.config import (
    I2V_A14B_SAMPLING,
    T2V_A14B,
    SamplingConfig,
    TransformerConfig,
)
from ...wan.cost import Expert, step_bytes
from ...wan.quant import Quant
from ...wan.shapes import LatentShape, token_grid
from ...wan.transformer import EXACT, Memory, SelfAttention, Text, Tokens, WanTransformer
from ...wan.transformer.blocks import Branch
from . import compat
from .attention import HostAttention, adds_bias
from .batch import of_sample, samples_at_once
from .held import held
from .mapped import settle
from .patches import changed_at_use, patch_at_use
from .quant import (
    META,
    count_parameters,
    has_packed_layers,
    load_weights,
    unpacking_bytes,
)
from .readings import PROMPTS, Readings, keep_readings, kept_rows

log = logging.getLogger(__name__)

IGNORED = {
    "clip_fea": "clip_vision_output",
    "time_dim_concat": "time_dim_concat",
    "reference_latent": "reference_latents",
}
"""Arguments of ComfyUI's own Wan network that a text-to-video expert has no use for, and the names
under which conditioning nodes set them."""
I2V_IN_DIM = 36
SUMMED = 4
"""Latents in float32 that ComfyUI holds around a forward: a prediction and its weights, for two prompts."""
TEXT_ROWS = "wan_text_rows"
"""Under this name ComfyUI asks for memory with the rows of each conditioning."""


class HostTransformer(WanTransformer):
    """:class:`WanTransformer` with ComfyUI's call, layers, attention, wrappers and block patches."""

    def __init__(
        self,
        *,
        config: TransformerConfig,
        operations: Any,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        """Called by ``BaseModel``, which passes its whole ``unet_config``."""
        attention = HostAttention()
        super().__init__(
            config, ops=operations, attention=attention, make=held, device=device, dtype=dtype
        )
        self._attention, self._apart = attention, Apart(attention)
        self.readings = Readings()

    @contextmanager
    def going(self, through: Callable[[Branch], Branch]) -> Iterator[None]:
        """While branches go through a compiler, which attention stays out of."""
        before, self.through = self.through, through
        layers = [layer for layer in self.modules() if isinstance(layer, SelfAttention)]
        for layer in layers:
            layer.attention = self._apart
        try:
            yield
        finally:
            self.through = before
            for layer in layers:
                layer.attention = self._attention

    def read_whole(self, context: Tensor, dtype: torch.dtype) -> Text:
        """A prompt with all its rows, which every attention backend can do; see :meth:`read`."""
        return self._plain_text(context, dtype)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor | None = None, **options: Any
    ) -> Tensor:
        """ComfyUI's call; returns the velocity ``(B, C, T, h, w)`` float32."""
        transformer_options = options.pop("transformer_options", {})
        # They have positions below; a second value for one would be a TypeError.
        options = {name: value for name, value in options.items() if name not in IGNORED}
        executor = WrapperExecutor.new_class_executor(
            self._forward,
            self,
            get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options),
        )
        return executor.execute(x, timestep, context, None, None, transformer_options, **options)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        # Positions as in ComfyUI's own Wan model: wrappers of other packs count on them.
        if context is None:
            raise ValueError("the expert got no text; connect a conditioning from a text encoder")
        options = transformer_options or {}
        context = self._cut(context)
        self._check(x)
        if samples_at_once(tuple(x.shape)) == len(x):
            return self._samples(x, timestep, context, options)
        each = zip(x.split(1), timestep.expand(len(x)).split(1), context.split(1), strict=True)
        return torch.cat(
            [self._samples(*one, of_sample(options, i, len(x))) for i, one in enumerate(each)]
        )

    def _samples(
        self, x: Tensor, timestep: Tensor, context: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """All samples of ``x`` side by side."""
        grid = token_grid(*x.shape[2:])
        text = self.readings.of(self, context, x.dtype, few=adds_bias(options))
        hidden, time, tokens = self.embed(x, timestep, text, grid)
        self._attention.options = options
        try:
            hidden = self._run_blocks(hidden, tokens, options)
        finally:
            self._attention.options = {}
        return self.unembed(hidden, time, grid)

    def _run_blocks(self, hidden: Tensor, tokens: Tokens, options: dict[str, Any]) -> Tensor:
        patches = options.get("patches_replace", {}).get("dit", {})
        options |= {"total_blocks": len(self.blocks), "block_type": "double"}
        for index, block in enumerate(self.blocks):
            options["block_index"] = index
            patch = patches.get(("double_block", index))
            if patch is None:
                hidden = block(hidden, tokens)
                continue

            def original(args: dict[str, Any], block: Any = block) -> dict[str, Tensor]:
                same = args["txt"] is tokens.text.rows
                text = tokens.text if same else Text(args["txt"])
                # What a patch sees is on the device.
                here = replace(tokens.memory, hidden_on=None)
                seen = tokens._replace(time=args["vec"], text=text, rope=args["pe"], memory=here)
                # A block writes into what it gets; a patch may keep that and look at it later.
                return {"img": block(args["img"].clone(), seen)}

            args = {
                "img": hidden.to(tokens.time.device),
                "txt": tokens.text.rows,
                "vec": tokens.time,
                "pe": tokens.rope,
                "transformer_options": options,
            }
            hidden = patch(args, {"original_block": original})["img"].to(hidden.device)
        return hidden

    def _cut(self, context: Tensor) -> Tensor:
        limit = self.config.text_len
        if context.shape[1] > limit:
            log.warning("text of %d rows cut to the %d the model reads", context.shape[1], limit)
        return context[:, :limit]


class HostModel(comfy.model_base.WAN21):
    """ComfyUI's model shell around :class:`HostTransformer`."""

    def __init__(self, model_config: Any, device: torch.device | None = None) -> None:
        """Build the shell; ``WAN21.__init__`` is skipped because it builds ComfyUI's own network."""
        comfy.model_base.BaseModel.__init__(
            self,
            model_config,
            comfy.model_base.ModelType.FLOW,
            device=device,
            unet_model=HostTransformer,
        )
        self.image_to_video = False

    def concat_cond(self, **conds: Any) -> Tensor | None:
        """Text to video adds no channels."""
        if self.diffusion_model.config.in_dim == conds["noise"].shape[1]:
            return None
        return super().concat_cond(**conds)

    def extra_conds(self, **conds: Any) -> dict[str, Any]:
        """Text only; what image nodes added is left out, and the log says so once per run."""
        found = super().extra_conds(**conds)
        given = [IGNORED[name] for name in IGNORED if found.pop(name, None) is not None]
        if conds.get("concat_latent_image") is not None:
            given.append("concat_latent_image")
        # Image nodes set both conditionings alike.
        if given and conds.get("prompt_type") != "negative":
            log.warning(
                "this text-to-video expert ignores %s of the conditioning", ", ".join(given)
            )
        return found

    def state_dict_for_saving(self, *given: Any, **options: Any) -> dict[str, Tensor]:
        """As every model's; packed weights are refused, because no file of ours would say how.

        ComfyUI saves the weights it patched itself; those changed at use are changed here.
        """
        if has_packed_layers(self.diffusion_model):
            raise ValueError(
                "this MODEL has packed weights (GGUF, int8 or fp8 per channel), which cannot be "
                "saved; load the fp16, bf16 or scaled fp8 file to save a model"
            )
        saved = super().state_dict_for_saving(*given, **options)
        changed = changed_at_use(self.diffusion_model)
        return {**saved, **self.model_config.process_unet_state_dict_for_saving(changed)}

    def extra_conds_shapes(self, **conds: Any) -> dict[str, Any]:
        """As every model's, and the rows whose keys and values may be kept of a text (:mod:`.readings`)."""
        shapes: dict[str, Any] = super().extra_conds_shapes(**conds)
        text = conds.get("cross_attn")
        if text is not None and adds_bias({}):
            shapes[TEXT_ROWS] = [kept_rows(text, self.diffusion_model.config.text_len)]
        return shapes

    def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
        """Bytes for latents ``(B, C, T, h, w)``: a step as it is traced, texts kept, weights unpacked.

        An attention backend that builds tables of pairs needs more: ComfyUI's own figure is for it.
        """
        config, shapes = self.diffusion_model.config, dict(cond_shapes or {})
        rows = max((shape[0] for shape in shapes.get(TEXT_ROWS, [])), default=0)
        texts = min(PROMPTS, len(shapes.pop(TEXT_ROWS, [])))
        dtype = self.manual_cast_dtype or self.get_dtype()
        device = mm.get_torch_device().type
        memory = self.diffusion_model.memory
        needed: float = activation_bytes(config, tuple(input_shape), dtype, device, memory)
        if not (mm.xformers_enabled() or mm.pytorch_attention_flash_attention()):
            seen = [samples_at_once(tuple(input_shape)), *input_shape[1:]]
            needed = max(needed, super().memory_required(seen, shapes))
        kept = 2 * texts * rows * config.dim * config.num_layers * mm.dtype_size(dtype)
        return needed + kept + unpacking_bytes(self.diffusion_model)


def activation_bytes(
    config: TransformerConfig,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    memory: Memory = EXACT,
) -> int:
    """Peak bytes of a step over latents ``(B, C, T, h, w)`` beside the weights, computed in ``dtype``.

    Traced as if each layer's weight were fetched when it is used: how much of the weights will lie on
    the device, of a kind such as ``cuda``, is decided by this very number.
    """
    expert = Expert(
        config=config, dtype=dtype, device=device, stored=torch.float8_e4m3fn, memory=memory
    )
    beside = SUMMED * prod(shape) * torch.float32.itemsize
    return step_bytes(expert, LatentShape(*shape[1:]), batch=samples_at_once(shape)).peak + beside


class ModelConfig(comfy.supported_models.WAN21_T2V):
    """What ComfyUI asks a model family; weights always follow their input's dtype."""

    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]
    scaled_fp8 = None
    # The network mixes float32 islands with its compute dtype, so layers must cast.
    custom_operations = comfy.ops.manual_cast

    def get_model(
        self, state_dict: Any, prefix: str = "", device: torch.device | None = None
    ) -> HostModel:
        """The empty model; the weights are loaded after the patcher exists."""
        return HostModel(self, device=device)


def build_model(
    config: TransformerConfig,
    weights: dict[str, Tensor],
    sampling: SamplingConfig,
    quants: Mapping[str, Quant] | None = None,
) -> Any:
    """A MODEL of one expert.

    Args:
        config: sizes of the expert.
        weights: official keys to tensors, packed ones with their scales.
        sampling: how this model wants to be sampled; KSampler takes its shift.
        quants: layer -> how its weight is packed.

    Returns:
        A ModelPatcher. Its weights stay mapped from their file and packed, unless they are stored
        wider than the dtype ComfyUI chose.
    """
    quants = quants or {}
    device, offload = mm.get_torch_device(), mm.unet_offload_device()
    shell = ModelConfig({"image_model": "wan2.1", "dim": config.dim, "config": config})
    shell.sampling_settings["shift"] = sampling.shift
    stored = None if quants else comfy.utils.weight_dtype(weights)
    dtype = mm.unet_dtype(
        device=device,
        model_params=count_parameters(weights, quants),
        supported_dtypes=shell.supported_inference_dtypes,
        weight_dtype=stored,
    )
    # As for ComfyUI's own quantised models: what is packed has no dtype that could be computed in.
    cast = mm.unet_manual_cast(None if quants else dtype, device, shell.supported_inference_dtypes)
    shell.set_inference_dtype(dtype, cast)
    model = shell.get_model({}, device=META)
    model.device = offload
    model.wan_sampling = sampling
    patcher = compat.patcher_class()(model, load_device=device, offload_device=offload)
    wide = stored is not None and stored.itemsize > dtype.itemsize
    if wide and not compat.is_dynamic(patcher):  # which pages in and converts what it pages
        _narrow(weights, dtype)
    load_weights(model.diffusion_model, weights, quants, compute=cast or dtype)
    if not wide:
        compat.keep_stored_dtypes(model.diffusion_model)
    if not mm.is_device_cpu(offload):
        model.to(offload)
    patcher = settle(patcher, packed=has_packed_layers(model.diffusion_model), mapped=not wide)
    patch_at_use(patcher)
    keep_readings(patcher)
    return patcher


def _narrow(weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Round what is stored wider than ``dtype``, one tensor at a time."""
    wide = {
        key: tensor
        for key, tensor in weights.items()
        if tensor.is_floating_point() and tensor.dtype.itemsize > dtype.itemsize
    }
    nbytes = dtype.itemsize * sum(tensor.numel() for tensor in wide.values())
    log.info("rounding weights to %s, which takes %.1f GiB of memory", dtype, nbytes / 2**30)
    weights |= {key: tensor.to(dtype) for key, tensor in wide.items()}


def same_model(first: Any, second: Any) -> bool:
    """Whether two MODELs are one model with the same patches."""
    same_patches = first.patches_uuid == second.patches_uuid
    return first is second or (first.is_clone(second) and same_patches)


def sampling_of(patcher: Any) -> SamplingConfig:
    """How a MODEL wants to be sampled; one of another loader counts as one of the 14B pairs.

    Only shapes tell there: an expert that takes an image is of the image-to-video pair.
    """
    if own := getattr(patcher.model, "wan_sampling", None):
        return own
    takes_image = getattr(patcher.model, "image_to_video", False) or (
        getattr(patcher.model.diffusion_model, "in_dim", None) == I2V_IN_DIM
    )
    return I2V_A14B_SAMPLING if takes_image else T2V_A14B.sampling


def check_text_width(patcher: Any, conditioning: list[Any]) -> None:
    """Raise ValueError if an expert cannot read ``conditioning``, before anything is loaded."""
    network = patcher.model.diffusion_model
    wanted = getattr(getattr(network, "config", network), "text_dim", None)
    for text, *_ in conditioning:
        if wanted is not None and text.shape[-1] != wanted:
            raise ValueError(
                f"text of width {text.shape[-1]} does not fit these experts, which read {wanted}; "
                "use the text encoder of the same family"
            )
