"""LoRA files that are damaged, empty or for something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from wanexperts.tests.wan import zoo_files
from wanexperts.tests.wan.zoo_base import (
    ADAPTED,
    LORA,
    MISPLACED,
    Kind,
    expert,
    text,
    vae,
    write,
)

Make = Callable[[Path], Path]
NAME = "style.safetensors"
TARGETS = [f"blocks.0.{name}" for name in ("self_attn.q", "self_attn.v", "cross_attn.k")]


def lora(
    modules: list[str] = TARGETS, prefix: str = "diffusion_model.", dim: int = 128, rank: int = 4
) -> dict[str, Tensor]:
    """A LoRA of square layers in ComfyUI's dialect."""
    shapes = {"lora_down": (rank, dim), "lora_up": (dim, rank)}
    return {
        f"{prefix}{name}.{side}.weight": torch.full(shape, 0.1)
        for name in modules
        for side, shape in shapes.items()
    }


def saved(tensors: Mapping[str, Tensor], **metadata: str) -> Make:
    return lambda folder: write(folder / NAME, tensors, **metadata)


def only(side: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in lora().items() if side in key}


def spoiled(value: float) -> dict[str, Tensor]:
    tensors = lora()
    tensors["diffusion_model.blocks.0.self_attn.q.lora_up.weight"][0, 0] = value
    return tensors


def kohya(*modules: str, dim: int = 128) -> dict[str, Tensor]:
    return lora([module.replace(".", "_") for module in modules], "lora_unet_", dim)


def _pickled(folder: Path) -> Path:
    torch.save({**lora(), "extra": zoo_files.Runs(folder / "CODE_HAS_RUN")}, folder / "style.pt")
    return folder / "style.pt"


def _truncated(folder: Path) -> Path:
    path = write(folder / NAME, lora())
    path.write_bytes(path.read_bytes()[:-1])
    return path


def _peft(config: object) -> Make:
    told = config if isinstance(config, str) else json.dumps(config)
    return saved(lora(prefix="transformer."), lora_adapter_metadata=told)


ONE = torch.ones(())
OFT = {f"diffusion_model.{name}.oft_blocks": torch.zeros(4, 32, 32) for name in TARGETS}
FLUX = lora(["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"])
SDXL = kohya("down_blocks.1.attentions.0.proj_in", "mid_block.attentions.0.proj_in")
HUNYUAN = lora(["double_blocks.0.img_attn_qkv", "double_blocks.0.txt_attn_qkv"])
LTX = lora(["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"])
QWEN = lora(["transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.img_mod.1"])
TEXT_ONLY = lora(["encoder_layers_0_self_attn_q_proj"], "lora_te1_text_model_")
BILLIONTH = lora(["blocks.1000000000.self_attn.q"])
ELSEWHERE = "is a LoRA of another network"
UNFIT = "does not fit this network"
UNREAD = "is not a LoRA"

KINDS = [
    Kind(name="LoRA of Flux", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(FLUX), host=True),
    Kind(name="LoRA of SDXL", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(SDXL)),
    Kind(name="LoRA of HunyuanVideo", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(HUNYUAN)),
    Kind(name="LoRA of LTX-Video", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(LTX)),
    Kind(name="LoRA of Qwen-Image", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(QWEN)),
    Kind(name="LoRA of a text encoder", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(TEXT_ONLY)),
    Kind(name="LoRA of Wan2.1 1.3B", part="lora", doors=ADAPTED, words=UNFIT, make=saved(lora(dim=1536)), host=True),
    Kind(name="LoRA of TI2V-5B", part="lora", doors=ADAPTED, words=UNFIT, make=saved(lora(dim=3072))),
    Kind(name="LoRA of the thousand millionth block", part="lora", doors=ADAPTED, words=ELSEWHERE, make=saved(BILLIONTH)),
    Kind(name="LoRA with NaN", part="lora", doors=ADAPTED, words="holds NaN or infinite values", make=saved(spoiled(float("nan"))), host=True),
    Kind(name="LoRA with infinity", part="lora", doors=ADAPTED, words="holds NaN or infinite values", make=saved(spoiled(float("-inf")))),
    Kind(name="LoRA without its lower half", part="lora", doors=ADAPTED, words="has up and not what belongs to it", make=saved(only("lora_up"))),
    Kind(name="LoRA without its upper half", part="lora", doors=ADAPTED, words="has down and not what belongs to it", make=saved(only("lora_down"))),
    Kind(name="LoRA of nothing but alphas", part="lora", doors=ADAPTED, words="has alpha and not what belongs to it",
         make=saved({f"diffusion_model.{name}.alpha": ONE for name in TARGETS})),
    Kind(name="LoRA of integers", part="lora", doors=ADAPTED, words="stored as I32, which is not read in a LoRA",
         make=saved({key: tensor.int() for key, tensor in lora().items()})),
    Kind(name="LoRA of halves that do not meet", part="lora", doors=ADAPTED, words=UNFIT,
         make=saved({**only("lora_up"), **{k: torch.ones(3, 128) for k in only("lora_down")}})),
    Kind(name="LoRA with an alpha for every row", part="lora", doors=ADAPTED, words="has an alpha that is not one number",
         make=saved({**lora(), **{f"diffusion_model.{name}.alpha": torch.ones(4) for name in TARGETS}})),
    Kind(name="LoRA of vectors", part="lora", doors=ADAPTED, words="has factors that are no matrices",
         make=saved({key: torch.ones(4) for key in lora()})),
    Kind(name="LoRA of rank 0", part="lora", doors=ADAPTED, words=UNFIT, make=saved(lora(rank=0))),
    Kind(name="OFT adapter", part="lora", doors=LORA, words="oft_blocks', ...)", make=saved(OFT)),
    Kind(name="empty LoRA", part="lora", doors=LORA, words="(it holds 'nothing', ...)", make=saved({}), host=True),
    Kind(name="expert as a LoRA", part="lora", doors=ADAPTED, words=UNREAD, make=saved(expert()), host=True),
    Kind(name="VAE as a LoRA", part="lora", doors=ADAPTED, words=UNREAD, make=saved(vae())),
    Kind(name="text encoder as a LoRA", part="lora", doors=ADAPTED, words=UNREAD, make=saved(text())),
    Kind(name="truncated LoRA", part="lora", doors=LORA, words="is truncated: ", make=_truncated, host=True),
    Kind(name="LoRA with code", part="lora", doors=LORA, words="holds code or objects (posix.mkdir)", make=_pickled, host=True),
    Kind(name="LoRA that is a web page", part="lora", doors=LORA, words="is a web page", make=zoo_files.content(zoo_files.PAGE, NAME)),
    Kind(name="LoRA with a damaged PEFT configuration", part="lora", doors=LORA, words="damaged PEFT configuration", make=_peft("{")),
    Kind(name="LoRA with a PEFT configuration nested without end", part="lora", doors=LORA, words="damaged PEFT configuration", make=_peft("[" * 50_000)),
    Kind(name="LoRA scaled by NaN", part="lora", doors=LORA, words="damaged PEFT configuration", make=_peft({"lora_alpha": float("nan")})),
    Kind(name="LoRA scaled beyond all numbers", part="lora", doors=LORA, words="damaged PEFT configuration", make=_peft({"alpha_pattern": {"q": 10**400}})),
    Kind(name="LoHa announced by PEFT", part="lora", doors=LORA, words="PEFT's type LOHA", make=_peft({"peft_type": "LOHA"})),
    Kind(name="LoRA as an expert", doors=MISPLACED, words="is a LoRA, not an expert", make=saved(lora()), host=True),
    Kind(name="LoRA as a VAE", part="vae", doors=MISPLACED, words="is a LoRA, not a VAE", make=saved(lora())),
]  # fmt: skip
