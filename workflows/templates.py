"""The templates: what a person finds under the name of this pack in ComfyUI's template browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .blueprint import blueprint
from .pieces import (
    COLUMNS,
    EXPERTS,
    LIGHTNING_HIGH,
    LIGHTNING_LOW,
    NARROW,
    TEXT,
    TEXTS,
    VAE,
    VAES,
    WIDE,
    empty,
    files,
    files_zh,
    lightning_lora,
    sampler,
    save,
    start,
    tell,
)
from .sheet import BYPASSED, Sheet

LANTERN = (
    "A paper lantern boat drifts down a slow river at dusk, its light moving over the water as "
    "fireflies rise from the reeds. The camera glides beside it, close to the surface."
)
FOX = (
    "A red fox runs through fresh snow towards the camera, powder flying from its paws, low winter "
    "sun behind bare birches, shallow depth of field, slow motion."
)
SURF = (
    "A surfer carves across a glassy green wave at sunrise, spray flying from the board, the camera "
    "following alongside from a boat, warm light through the lip of the wave."
)
CAFE = (
    "A barista pours milk into a cup of coffee and draws a leaf in the foam, steam rising in the light "
    "of a window, close-up, the hands steady, people moving softly out of focus behind."
)


def tiny() -> Sheet:
    """Runs with no download at all."""
    sheet = Sheet("wan_tiny_t2v", after_run="fixed")
    experts = sheet.add(
        "WanExpertsLoader", (COLUMNS[0], 0), (WIDE, 250),
        model_high_noise="wan_tiny_t2v_high_noise.safetensors",
        model_low_noise="wan_tiny_t2v_low_noise.safetensors",
    )  # fmt: skip
    clip = sheet.add(
        "WanExpertsTextEncoderLoader", (COLUMNS[0], 300), (WIDE, 80),
        text_encoder="umt5_tiny.safetensors",
    )  # fmt: skip
    vae = sheet.add(
        "WanExpertsVAELoader", (COLUMNS[0], 430), (WIDE, 80), vae="wan_tiny_vae.safetensors"
    )
    prompts = sheet.add(
        "WanExpertsTextEncode", (COLUMNS[1], 0), (WIDE, 380), clip=clip["clip"],
        positive="a red circle moves left on a white background", negative="",
    )  # fmt: skip
    latent = empty(sheet, (64, 64, 17))
    run = sampler(
        sheet, experts, prompts, latent, steps=20, cfg_high_noise=2.0, cfg_low_noise=1.5,
        sigma_shift=5.0, switch_step=9,
    )  # fmt: skip
    save(sheet, vae, run["latent"], "wan_tiny", fps=8.0)
    tell(
        sheet,
        "## Runs at once\n\nThe miniature family comes with the pack: nothing to download. Press Run. It draws one "
        "shape that moves on a plain background, from English or Chinese prompts:\n\n"
        "`a blue square moves up on a pink background`\n\n"
        "Drag the line in the picture on **Sample Wan Experts** to see what the switch between the experts "
        "does.\n\nFor the real model open the template **wan22_t2v_a14b** or **wan22_t2v_lightning**.",
        "## 立即运行\n\n微型模型随节点包附带，无需下载，直接点运行。它根据中英文提示词画一个在纯色背景上移动的形状：\n\n"
        "`一个蓝色正方形在粉色背景上向上移动`\n\n"
        "拖动 **Sample Wan Experts** 图中的竖线，看看两个专家的切换点有何影响。\n\n"
        "真实模型请打开模板 **wan22_t2v_a14b** 或 **wan22_t2v_lightning**。",
        height=330,
    )
    return sheet


def a14b() -> Sheet:
    """The official settings at 20 steps."""
    sheet = Sheet("wan22_t2v_a14b")
    experts, vae, prompts = start(sheet, LANTERN)
    latent = empty(sheet)
    run = sampler(sheet, experts, prompts, latent, steps=20, switch_step=13)
    save(sheet, vae, run["latent"], "wan22_t2v")
    tell(
        sheet,
        "## Wan2.2 text to video, both experts as one run\n\nOfficial settings: UniPC, shift 12, guidance 4 (high "
        "noise) and 3 (low noise), experts divided at noise level 0.875. 20 steps in place of the official 40: half "
        "the time, a little less fine.\n\n1280x720 is the other official size." + files(),
        "## Wan2.2 文生视频：两个专家，一次采样\n\n官方设置：UniPC，shift 12，引导 4（高噪）与 3（低噪），在噪声水平 0.875 "
        "处切换专家。用 20 步代替官方的 40 步：时间减半，细节略少。\n\n另一官方尺寸为 1280x720。"
        + files_zh(),
    )
    return sheet


def lightning() -> Sheet:
    """Four steps without guidance."""
    sheet = Sheet("wan22_t2v_lightning")
    experts, vae, prompts = start(sheet, FOX)
    latent = empty(sheet)
    lora = lightning_lora(sheet, experts)
    run = sampler(
        sheet, lora, prompts, latent, steps=4, cfg_high_noise=1.0, cfg_low_noise=1.0,
        sampler_name="euler", scheduler="lightning", sigma_shift=5.0, switch_step=2,
    )  # fmt: skip
    save(sheet, vae, run["latent"], "wan22_lightning")
    tell(
        sheet,
        "## Four steps\n\nThe Lightning LoRAs make 4 steps enough, without guidance: one call of the network a step in "
        "place of two. Two steps on each expert, Euler, shift 5. The negative prompt plays no part at guidance 1.\n\n"
        "Motion comes out slower than with all steps; **wan22_t2v_lightning_motion** gets it back."
        + files(LIGHTNING_HIGH, LIGHTNING_LOW),
        "## 四步出片\n\nLightning LoRA 让 4 步就够，无需引导：每步只调用一次网络。两个专家各 2 步，Euler，shift 5。"
        "引导为 1 时负向提示词不起作用。\n\n运动会比完整步数慢；**wan22_t2v_lightning_motion** 可以找回。"
        + files_zh(LIGHTNING_HIGH, LIGHTNING_LOW),
        height=450,
    )
    return sheet


def lightning_motion() -> Sheet:
    """Three phases: the high-noise expert as it is, then both with Lightning."""
    sheet = Sheet("wan22_t2v_lightning_motion")
    experts, vae, prompts = start(sheet, SURF)
    latent = empty(sheet)
    lora = lightning_lora(sheet, experts)
    run = sampler(
        sheet, lora, prompts, latent, model_motion=experts["model_high_noise"], steps=8,
        cfg_high_noise=1.0, cfg_low_noise=1.0, sampler_name="euler", scheduler="shifted",
        sigma_shift=3.0, switch="boundary", boundary=0.8, switch_step=5,
    )  # fmt: skip
    save(sheet, vae, run["latent"], "wan22_lightning_motion")
    tell(
        sheet,
        "## Lightning that keeps its motion\n\nFew steps lose motion in the first moments of a run. Here the "
        "high-noise expert **without** its Lightning LoRA (`model_motion`) makes those, with guidance 3.5, down to "
        "timestep 965; then both experts go on with Lightning. 8 steps, shift 3: one trajectory, three phases."
        + files(LIGHTNING_HIGH, LIGHTNING_LOW),
        "## 保留运动的 Lightning\n\n步数少会在开头丢失运动。这里由**不带** Lightning LoRA 的高噪专家（`model_motion`）以引导 "
        "3.5 走到时间步 965，之后两个专家继续用 Lightning。8 步，shift 3：一条轨迹，三个阶段。"
        + files_zh(LIGHTNING_HIGH, LIGHTNING_LOW),
        height=450,
    )
    return sheet


def lora_pair() -> Sheet:
    """A LoRA of one's own on both experts."""
    sheet = Sheet("wan22_t2v_lora_pair")
    experts, vae, prompts = start(sheet, CAFE)
    latent = empty(sheet)
    lora = sheet.add(
        "WanExpertsLora", (COLUMNS[1], 630), (WIDE, 320), title="Your LoRA (bypassed: Ctrl+B)", mode=BYPASSED,
        model_high_noise=experts["model_high_noise"], model_low_noise=experts["model_low_noise"],
        lora_high_noise="auto", lora_low_noise="auto",
    )  # fmt: skip
    run = sampler(sheet, lora, prompts, latent, steps=20, switch_step=13)
    save(sheet, vae, run["latent"], "wan22_lora")
    tell(
        sheet,
        "## A LoRA of your own\n\nPut it into `models/loras`, choose it on **Apply LoRA to Wan Experts** and wake that "
        "node (Ctrl+B). One file for both experts, a pair, or one for one expert: leave the other on `auto` and the "
        "partner is found by name. Swapped files are refused, and the node shows what of each file acts on what. "
        "Chain several nodes for several LoRAs." + files(),
        "## 使用自己的 LoRA\n\n放入 `models/loras`，在 **Apply LoRA to Wan Experts** 上选择，并启用该节点（Ctrl+B）。"
        "可以是两个专家共用的一个文件、一对文件，或只给一个专家；另一个留 `auto`，会按名字找到配对。放反的文件会被拒绝，"
        "节点上会显示每个文件作用于哪里。多个 LoRA 请串联多个节点。" + files_zh(),
        height=450,
    )
    return sheet


def guider() -> Sheet:
    """Our guider, sigmas and solver in ComfyUI's own SamplerCustomAdvanced."""
    sheet = Sheet("wan22_t2v_guider")
    experts, vae, prompts = start(sheet, LANTERN)
    latent = empty(sheet)
    sigmas = sheet.add(
        "WanExpertsSchedule", (COLUMNS[1], 640), (WIDE, 450), model=experts["model_high_noise"],
        steps=20, switch_step=13,
    )  # fmt: skip
    guided = sheet.add(
        "WanExpertsGuider", (COLUMNS[2], 0), (NARROW, 430),
        model_high_noise=experts["model_high_noise"], model_low_noise=experts["model_low_noise"],
        positive=prompts["positive"], negative=prompts["negative"],
        switch="step", switch_step=sigmas["switch_step"],
    )  # fmt: skip
    solver = sheet.add("WanExpertsSolver", (COLUMNS[2], 480), (NARROW, 60))
    noise = sheet.add("RandomNoise", (COLUMNS[2], 590), (NARROW, 90), noise_seed=0)
    sheet.add(
        "WanExpertsPlan", (COLUMNS[2], 730), (NARROW, 340), guider=guided["guider"],
        sigmas=sigmas["sigmas"], latent=latent["latent"], sampler=solver["sampler"],
    )  # fmt: skip
    run = sheet.add(
        "SamplerCustomAdvanced", (COLUMNS[3], 0), (300, 110), noise=noise["NOISE"],
        guider=guided["guider"], sampler=solver["sampler"], sigmas=sigmas["sigmas"],
        latent_image=latent["latent"],
    )  # fmt: skip
    save(sheet, vae, run["output"], "wan22_guider", x=COLUMNS[3] + 350)
    tell(
        sheet,
        "## Part by part\n\nThe same run as **wan22_t2v_a14b**, out of ComfyUI's own building blocks: both experts "
        "behind one GUIDER for SamplerCustomAdvanced. Any SAMPLER and SIGMAS fit.\n\nDrag the line on **Wan Sigmas**: "
        "its `switch_step` tells the guider where the experts change. **Plan Wan Run** says what the run takes "
        "before it starts." + files(),
        "## 逐个零件\n\n与 **wan22_t2v_a14b** 相同的采样，由 ComfyUI 自带的零件搭成：两个专家在一个 GUIDER 之后，交给 "
        "SamplerCustomAdvanced，可配任何 SAMPLER 与 SIGMAS。\n\n拖动 **Wan Sigmas** 上的竖线：它的 `switch_step` 告诉 guider "
        "何时切换专家。**Plan Wan Run** 在运行前说明需要什么。" + files_zh(),
        height=450,
    )
    return sheet


def core_loaders() -> Sheet:
    """Everything ComfyUI's own but the sampler."""
    sheet = Sheet("wan22_t2v_core_loaders")
    high, low = (
        sheet.add(
            "UNETLoader", (COLUMNS[0], y), (WIDE, 90), models=(told,), unet_name=told["name"],
            weight_dtype="default",
        )
        for y, told in zip((0, 140), EXPERTS, strict=True)
    )  # fmt: skip
    clip = sheet.add(
        "CLIPLoader", (COLUMNS[0], 280), (WIDE, 110), models=TEXTS, clip_name=TEXT, type="wan"
    )
    vae = sheet.add("VAELoader", (COLUMNS[0], 440), (WIDE, 60), models=VAES, vae_name=VAE)
    positive = sheet.add(
        "CLIPTextEncode",
        (COLUMNS[1], 0),
        (WIDE, 170),
        clip=clip["CLIP"],
        text=FOX,
        title="Positive prompt",
    )
    negative = sheet.add(
        "CLIPTextEncode", (COLUMNS[1], 220), (WIDE, 170), clip=clip["CLIP"], title="Negative prompt",
        text=next(i.default for i in sheet.kinds["WanExpertsTextEncode"].inputs if i.name == "negative"),
    )  # fmt: skip
    latent = sheet.add(
        "EmptyHunyuanLatentVideo", (COLUMNS[1], 440), (WIDE, 140), width=832, height=480, length=81,
        batch_size=1,
    )  # fmt: skip
    run = sheet.add(
        "WanExpertsSampler", (COLUMNS[2], 0), (NARROW, 1060), model_high_noise=high["MODEL"],
        model_low_noise=low["MODEL"], positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"], latent_image=latent["LATENT"], steps=20, switch_step=13,
    )  # fmt: skip
    images = sheet.add(
        "VAEDecode", (COLUMNS[3], 0), (400, 60), samples=run["latent"], vae=vae["VAE"]
    )
    video = sheet.add("CreateVideo", (COLUMNS[3], 110), (400, 80), images=images["IMAGE"], fps=16.0)
    sheet.add(
        "SaveVideo", (COLUMNS[3], 240), (400, 580), video=video["VIDEO"],
        filename_prefix="video/wan22_core", format="auto", codec="auto",
    )  # fmt: skip
    tell(
        sheet,
        "## One node of ours\n\nComfyUI's own loaders, prompts and decoding; **Sample Wan Experts** in place of two "
        "KSamplers: one solver, one seed, and the experts change where they were trained to. No ModelSamplingSD3: "
        "`sigma_shift` is the shift." + files(),
        "## 只换一个节点\n\n加载、提示词与解码都用 ComfyUI 自带节点；**Sample Wan Experts** 取代两个 KSampler：一个求解器，"
        "一个种子，在训练时的分界处切换专家。不需要 ModelSamplingSD3，shift 就是 `sigma_shift`。"
        + files_zh(),
    )
    return sheet


SHEETS: tuple[Callable[[], Sheet], ...] = (
    tiny, a14b, lightning, lightning_motion, lora_pair, guider, core_loaders,
)  # fmt: skip


def wan_text_to_video() -> Any:
    """The official run as one node."""
    sheet = Sheet("wan_text_to_video")
    experts, vae, prompts = start(sheet, "")
    latent = empty(sheet)
    run = sampler(sheet, experts, prompts, latent, steps=20, switch_step=13)
    file = save(sheet, vae, run["latent"], "wan22_t2v")
    shown = {
        "positive": (prompts, "positive"),
        "width": (latent, "width"),
        "height": (latent, "height"),
        "frames": (latent, "frames"),
        "steps": (run, "steps"),
        "noise_seed": (run, "noise_seed"),
        "model_high_noise": (experts, "model_high_noise"),
        "model_low_noise": (experts, "model_low_noise"),
        "text_encoder": (sheet.nodes[1], "text_encoder"),
        "vae": (vae, "vae"),
    }
    return blueprint(sheet, "Wan text to video", shown, file["video"])
