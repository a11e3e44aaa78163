"""What templates share: files of the real model and where they come from, columns, groups of nodes."""

from __future__ import annotations

from typing import Any

from .sheet import Node, Out, Sheet

REPACKAGED = "https://huggingface.co/Comfy-Org/{}/resolve/main/split_files/{}/{}"
WAN22, WAN21 = "Wan_2.2_ComfyUI_Repackaged", "Wan_2.1_ComfyUI_repackaged"
"""Comfy-Org's repositories: the files that ComfyUI's own templates use."""
HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
LIGHTNING_HIGH = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
LIGHTNING_LOW = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"


def _files(lead: str, colon: str, comma: str, tail: str, loras: tuple[str, ...]) -> str:
    """Which file goes where, for the notes."""
    folders = {
        "diffusion_models": (HIGH, LOW),
        "text_encoders": (TEXT,),
        "vae": (VAE,),
        "loras": loras,
    }
    lines = [
        f"- `models/{folder}`{colon}" + comma.join(f"`{name}`" for name in names)
        for folder, names in folders.items()
        if names
    ]
    return "\n\n".join(["", lead, "\n".join(lines), tail])


def files(*loras: str) -> str:
    """What to get, in English."""
    told = "The fp16 files of the same repository are finer and twice as large; any pair that belongs together works."
    return _files(
        "Files (ComfyUI offers the download of those you do not have):", ": ", ", ", told, loras
    )


def files_zh(*loras: str) -> str:
    """What to get, in Chinese."""
    told = "同一仓库的 fp16 文件更精细，大小加倍；任何配对的文件都可用。"
    return _files("所需文件（缺少的 ComfyUI 会提示下载）：", "：", "、", told, loras)


COLUMNS = (0, 460, 920, 1330)
WIDE, NARROW = 420, 370


def model(name: str, directory: str, repository: str = WAN22) -> dict[str, str]:
    """Where a file comes from and goes to, for ComfyUI's dialogue of missing models."""
    url = REPACKAGED.format(repository, directory, name)
    return {"name": name, "url": url, "directory": directory}


EXPERTS = (model(HIGH, "diffusion_models"), model(LOW, "diffusion_models"))
TEXTS = (model(TEXT, "text_encoders", WAN21),)
VAES = (model(VAE, "vae"),)
LIGHTNINGS = (model(LIGHTNING_HIGH, "loras"), model(LIGHTNING_LOW, "loras"))


def start(sheet: Sheet, prompt: str) -> tuple[Node, Node, Node]:
    """The loaders and the prompts of the real model: experts, VAE and encoded prompts."""
    experts = sheet.add(
        "WanExpertsLoader", (COLUMNS[0], 0), (WIDE, 250), models=EXPERTS,
        model_high_noise=HIGH, model_low_noise=LOW,
    )  # fmt: skip
    clip = sheet.add(
        "WanExpertsTextEncoderLoader",
        (COLUMNS[0], 300),
        (WIDE, 80),
        models=TEXTS,
        text_encoder=TEXT,
    )
    vae = sheet.add("WanExpertsVAELoader", (COLUMNS[0], 430), (WIDE, 80), models=VAES, vae=VAE)
    prompts = sheet.add(
        "WanExpertsTextEncode", (COLUMNS[1], 0), (WIDE, 380), clip=clip["clip"], positive=prompt
    )
    return experts, vae, prompts


def empty(sheet: Sheet, size: tuple[int, int, int] = (832, 480, 81)) -> Node:
    """The empty clip below the prompts."""
    width, height, frames = size
    return sheet.add(
        "WanExpertsEmptyLatent", (COLUMNS[1], 430), (WIDE, 150),
        width=width, height=height, frames=frames,
    )  # fmt: skip


def sampler(sheet: Sheet, experts: Node, prompts: Node, latent: Node, **values: Any) -> Node:
    """Sample Wan Experts, tall enough for its picture and its plan."""
    return sheet.add(
        "WanExpertsSampler", (COLUMNS[2], 0), (NARROW, 1060),
        model_high_noise=experts["model_high_noise"], model_low_noise=experts["model_low_noise"],
        positive=prompts["positive"], negative=prompts["negative"], latent_image=latent["latent"],
        **values,
    )  # fmt: skip


def save(
    sheet: Sheet, vae: Node, samples: Out, name: str, *, x: int = COLUMNS[3], **values: Any
) -> Node:
    """Decode Wan Latents to Video, tall enough for what it shows."""
    return sheet.add(
        "WanExpertsDecodeToVideo", (x, 0), (400, 580),
        vae=vae["vae"], samples=samples, filename_prefix=f"video/{name}", **values,
    )  # fmt: skip


def lightning_lora(sheet: Sheet, experts: Node) -> Node:
    """Both Lightning LoRAs, each on its expert."""
    return sheet.add(
        "WanExpertsLora", (COLUMNS[1], 630), (WIDE, 320), models=LIGHTNINGS,
        model_high_noise=experts["model_high_noise"], model_low_noise=experts["model_low_noise"],
        lora_high_noise=LIGHTNING_HIGH, lora_low_noise=LIGHTNING_LOW,
    )  # fmt: skip


SOURCE = "https://github.com/wanexperts/ComfyUI-WanExperts"
MISSING = (
    "Nodes are red? Install **ComfyUI-WanExperts**: Manager, *Install Missing Custom Nodes* (`wanexperts`), or "
    f"`git clone {SOURCE}` in `custom_nodes`."
)
MISSING_ZH = (
    "节点显示为红色？请安装 **ComfyUI-WanExperts**：Manager 的“安装缺失节点”（`wanexperts`），或在 `custom_nodes` 中运行 "
    f"`git clone {SOURCE}`。"
)
"""For a ComfyUI without this pack: its own dialogue tells the nodes' ids, and with its Manager the pack."""


def tell(sheet: Sheet, english: str, chinese: str, *, y: int = 560, height: int = 400) -> None:
    """Both notes, below the loaders."""
    for number, words in enumerate((f"{english}\n\n{MISSING}", f"{chinese}\n\n{MISSING_ZH}")):
        sheet.note(words, (COLUMNS[0], y + number * (height + 50)), (WIDE, height))
