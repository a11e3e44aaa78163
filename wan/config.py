"""Frozen configurations; every default of the project is written here and nowhere else.

The numbers are those of the official Wan2.2 repository (``wan/configs``); ``TINY`` is the bundled
miniature family in the same architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The official default negative prompt (data, verbatim)."""

LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Sizes of one expert. ``head_dim`` is always ``dim // num_heads`` (128 in published models)."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """Sizes of the causal video VAE; ``temporal_downsample`` holds one flag per spatial halving."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = LATENT_MEAN
    latent_std: tuple[float, ...] = LATENT_STD


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Sizes of the umT5 encoder; ``text_len`` counts pieces including the end token."""

    vocab_size: int = 256384
    dim: int = 4096
    attn_dim: int = 4096
    num_heads: int = 64
    ffn_dim: int = 10240
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    text_len: int = 512
    eps: float = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How a family is sampled. ``boundary`` is a noise level (sigma) in [0, 1]."""

    steps: int = 40
    shift: float = 12.0
    boundary: float = 0.875
    guidance_high: float = 4.0
    guidance_low: float = 3.0
    solver: str = "unipc"
    schedule: str = "unipc"
    num_frames: int = 81
    height: int = 720
    width: int = 1280
    fps: int = 16
    negative_prompt: str = NEGATIVE_PROMPT


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionConfig:
    """The first phase of three: the high-noise expert without its distill LoRA, to keep motion.

    Attributes:
        until: the lowest timestep it runs at, 0 to 1000.
        guidance: its guidance scale; the distilled phases after it run at 1.
    """

    until: float = 965.0
    guidance: float = 3.5


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingConfig:
    """How a clip becomes a file.

    Attributes:
        codec: FFmpeg's encoder name, such as ``libx264`` or ``libx265``.
        crf: constant rate factor: 0 best, 51 worst.
        preset: speed against size, by the encoder's own names.
        pixel_format: FFmpeg's name; those of more than 8 bits take 16-bit frames.
    """

    codec: str = "libx264"
    crf: int = 16
    preset: str = "medium"
    pixel_format: str = "yuv420p"


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyConfig:
    """A complete text-to-video system: two experts of one shape, a VAE and a text encoder."""

    name: str
    transformer: TransformerConfig
    vae: VAEConfig
    text: TextConfig
    sampling: SamplingConfig


T2V_A14B = FamilyConfig(
    name="t2v-A14B",
    transformer=TransformerConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    vae=VAEConfig(),
    text=TextConfig(),
    sampling=SamplingConfig(),
)

TINY = FamilyConfig(
    name="tiny",
    transformer=TransformerConfig(dim=128, ffn_dim=512, num_heads=1, num_layers=6, text_dim=128),
    vae=VAEConfig(dim=16),
    text=TextConfig(vocab_size=640, dim=128, attn_dim=128, num_heads=4, ffn_dim=256, num_layers=2),
    sampling=replace(
        SamplingConfig(),
        steps=20,
        shift=5.0,
        guidance_high=2.0,
        guidance_low=1.5,
        num_frames=17,
        height=64,
        width=64,
        fps=8,
    ),
)

I2V_A14B_SAMPLING = SamplingConfig(shift=5.0, boundary=0.9, guidance_high=3.5, guidance_low=3.5)
"""How the image-to-video pair is sampled. This project samples such experts, it does not load them."""

FAMILIES = {family.name: family for family in (T2V_A14B, TINY)}
