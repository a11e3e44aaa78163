"""What a run starts from: encoded prompts and the empty latent clip."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan.config import T2V_A14B
from ..wan.shapes import LatentShape, latent_shape
from ..wan.text import clean
from .checks import CheckedNode, check_limits, unless_linked, widget
from .host import compat
from .host.latent import empty_latent
from .host.manifest import TEXT

DEFAULTS = T2V_A14B.sampling
CATEGORY = "WanExperts/conditioning"


def check_prompt(prompt: str) -> None:
    """Raise ValueError for a prompt of which the official cleaning leaves nothing."""
    if not clean(prompt):
        raise ValueError("the positive prompt is empty; describe what the clip should show")


class WanExpertsTextEncode(CheckedNode):
    """Positive and negative prompt in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsTextEncode",
            display_name="Encode Wan Prompt",
            category=CATEGORY,
            description="Encodes both prompts. English and Chinese work equally; parentheses are "
            "plain text when the CLIP comes from Load Wan Text Encoder.",
            search_aliases=["wan", "prompt", "clip text encode", "万相"],
            inputs=[
                io.Clip.Input("clip", tooltip="umT5 text encoder of the experts' family."),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the clip shows: subject, what it does, place, light, camera. Long prompts do "
                    "better than short ones; 512 tokens are read, the rest is cut.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default=DEFAULTS.negative_prompt,
                    tooltip="What to stay away from; empty stands for the official one, which is "
                    "Chinese. An expert whose cfg is 1 does not read it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Encoded prompt."),
                io.Conditioning.Output(display_name="negative", tooltip="Encoded negative prompt."),
            ],
        )

    @classmethod
    def check_inputs(cls, positive: str | None = None, **_: Any) -> None:
        """An empty prompt is refused before anything is loaded."""
        unless_linked(check_prompt, positive)

    @classmethod
    def execute(cls, clip: Any, positive: str, negative: str) -> io.NodeOutput:
        """Encode with any CLIP."""
        check_prompt(positive)
        texts = positive, negative if clean(negative) else DEFAULTS.negative_prompt
        encoded = [
            clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict={TEXT: text})
            for text in texts
        ]
        return io.NodeOutput(*encoded)


class WanExpertsEmptyLatent(CheckedNode):
    """Size and length of the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsEmptyLatent",
            display_name="Empty Wan Latent Video",
            category=CATEGORY,
            description="An empty clip of a size and length that the model can make. With 1 frame it is a "
            "still, for text-to-image.",
            search_aliases=["wan", "empty latent", "resolution", "frames", "length", "万相"],
            inputs=[
                io.Int.Input(
                    "width", default=DEFAULTS.width, **widget("width"),
                    tooltip="Width in pixels, a multiple of 16: the VAE shrinks by 8 and the network reads "
                    "squares of 2. Official sizes: 1280x720 and 832x480.",
                ),
                io.Int.Input(
                    "height", default=DEFAULTS.height, **widget("height"),
                    tooltip="Height in pixels, a multiple of 16, as for width.",
                ),
                io.Int.Input(
                    "frames", default=DEFAULTS.num_frames, **widget("frames"),
                    tooltip="Number of frames, 4k+1, since the VAE takes the first frame alone and then four at "
                    "a time. 81 at 16 per second are five seconds, the length the model was trained on; "
                    "longer clips tend to repeat themselves.",
                ),
                io.Int.Input(
                    "batch_size", default=1, **widget("batch_size"),
                    tooltip="Clips made at once, each from its own noise. Time and memory grow with it.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For latent_image of a sampler.")],
        )  # fmt: skip

    @classmethod
    def check_inputs(
        cls,
        width: int | None = None,
        height: int | None = None,
        frames: int | None = None,
        **_: Any,
    ) -> None:
        """Say which neighbouring values work."""
        # A linked value is not known yet; the smallest legal one stands in for it.
        sides = (16 if side is None else side for side in (height, width))
        _check_clip(1 if frames is None else frames, *sides)

    @classmethod
    def execute(cls, width: int, height: int, frames: int, batch_size: int) -> io.NodeOutput:
        """Zeros of the right shape."""
        check_limits(batch_size=batch_size)
        shape = _check_clip(frames, height, width)
        return io.NodeOutput(empty_latent((batch_size, *shape)))


def _check_clip(frames: int, height: int, width: int) -> LatentShape:
    check_limits(width=width, height=height, frames=frames)
    return latent_shape(frames, height, width, channels=T2V_A14B.vae.z_dim)
