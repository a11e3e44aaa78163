"""Latents to pixels: as images, or streamed into an mp4."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import InputImpl, io, ui

from ..wan.config import T2V_A14B
from ..wan.shapes import pixel_size
from ..wan.video import Clip, VideoWriter
from .checks import check_limits, problem, widget
from .host import compat
from .host.files import output_slot
from .host.metadata import container_metadata
from .host.vae import check_vae, decode_images, uint8_frames

CATEGORY = "WanExperts/decode"


def _check_prefix(prefix: str) -> None:
    output_slot(prefix, width=16, height=16)


class WanExpertsDecode(io.ComfyNode):
    """Latents to images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsDecode",
            display_name="Decode Wan Latents",
            category=CATEGORY,
            description="Decodes latents to frames as images. For long clips use Decode Wan Latents "
            "to Video, which never holds all frames in memory.",
            search_aliases=["wan", "vae decode"],
            inputs=[
                io.Vae.Input("vae", tooltip="VAE of the experts' family."),
                io.Latent.Input("samples", tooltip="Latents from a sampler."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="Frames in order.")],
        )

    @classmethod
    def execute(cls, vae: Any, samples: dict[str, Any]) -> io.NodeOutput:
        """Decode with any VAE; clips of a batch follow each other."""
        return io.NodeOutput(decode_images(vae, samples["samples"]))


class WanExpertsDecodeToVideo(io.ComfyNode):
    """Latents into an mp4, saved while it decodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsDecodeToVideo",
            display_name="Decode Wan Latents to Video",
            category=CATEGORY,
            description="Decodes and encodes frame by frame into an mp4 in the output folder. With "
            "Load Wan VAE memory does not grow with the clip's length. The file carries the workflow.",
            search_aliases=["wan", "vae decode", "save video", "mp4"],
            inputs=[
                io.Vae.Input("vae", tooltip="VAE of the experts' family."),
                io.Latent.Input("samples", tooltip="Latents of one clip from a sampler."),
                io.Float.Input(
                    "fps",
                    default=float(T2V_A14B.sampling.fps),
                    **widget("fps"),
                    tooltip="Frames per second. Wan2.2 14B was trained at 16.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/WanExperts",
                    tooltip="Name below the output folder; subfolders and %date:yyyy-MM-dd% work.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The saved file.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Find out before the run whether the file can be written."""
        return problem(_check_prefix, filename_prefix)

    @classmethod
    def execute(
        cls, vae: Any, samples: dict[str, Any], fps: float, filename_prefix: str
    ) -> io.NodeOutput:
        """Stream the clip into its file; the file appears under its name only when it is whole."""
        latents = samples["samples"]
        check_limits(fps=fps)
        check_vae(vae, latents)
        if latents.shape[0] != 1:
            raise ValueError(
                f"the latents hold {latents.shape[0]} clips, one file holds one; choose a clip with "
                "Latent From Batch, or use Decode Wan Latents"
            )
        height, width = pixel_size(*latents.shape[-2:])
        path, subfolder = output_slot(filename_prefix, width=width, height=height)
        metadata = container_metadata(cls.hidden)
        clip = Clip(width=width, height=height, fps=fps, metadata=metadata)
        with VideoWriter(path, clip) as writer:
            for frames in uint8_frames(vae, latents):
                writer.write(frames)
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([saved]))
