"""Latents to pixels: as images, or streamed into a file."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import InputImpl, io, ui

from ..wan.config import T2V_A14B, EncodingConfig
from ..wan.shapes import pixel_frames
from ..wan.video import (
    BEST_CRF,
    FORMATS,
    SEQUENCE_FORMATS,
    WORST_CRF,
    Clip,
    FrameWriter,
    Sheet,
    check_latents,
    open_writer,
)
from .checks import RARE, CheckedNode, check_limits, unless_linked, widget
from .host import compat
from .host.files import output_slot
from .host.frames import check_clip, decoded_frames, frame_size, preview, sound, video_of
from .host.manifest import file_tags
from .host.metadata import container_metadata
from .host.vae import check_vae, decode_images

CATEGORY = "WanExperts/decode"
_CRF = EncodingConfig().crf


def _check_prefix(prefix: str) -> None:
    output_slot(prefix, width=16, height=16)


def _check_format(format: str, crf: int) -> None:
    """Whether this format can be written here; asked of a writer that opens no file."""
    if format not in FORMATS:  # a still, which a writer would take
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}; use one that is")
    open_writer("", Clip(width=64, height=64, fps=16), format=format, crf=crf)


class WanExpertsDecode(CheckedNode):
    """Latents to images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsDecode",
            display_name="Decode Wan Latents",
            category=CATEGORY,
            description="Decodes latents to frames as images. One latent frame (Empty Wan Latent "
            "Video with 1 frame) gives one still, for text-to-image with Save Image. For long clips "
            "use Decode Wan Latents to Video, which never holds all frames in memory.",
            search_aliases=["wan", "vae decode", "万相"],
            inputs=[
                io.Vae.Input("vae", tooltip="VAE of the experts' family."),
                io.Latent.Input("samples", tooltip="Latents from a sampler."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="Frames in order.")],
        )

    @classmethod
    def execute(cls, vae: Any, samples: dict[str, Any]) -> io.NodeOutput:
        """Decode with any VAE; clips of a batch follow each other."""
        latents = samples["samples"]
        check_vae(vae, latents)
        check_latents(latents)
        return io.NodeOutput(decode_images(vae, latents))


class WanExpertsDecodeToVideo(CheckedNode):
    """Latents into a file, saved while it decodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsDecodeToVideo",
            display_name="Decode Wan Latents to Video",
            category=CATEGORY,
            description="Decodes and encodes frame by frame into an mp4, or into PNG files, in the "
            "output folder. With Load Wan VAE memory does not grow with the clip's length. The file "
            "carries the workflow. If the run is interrupted the finished part is kept beside it, "
            "named _partial. One latent frame gives a file of one frame.",
            search_aliases=["wan", "vae decode", "save video", "mp4", "png sequence", "万相"],
            inputs=[
                io.Vae.Input("vae", tooltip="VAE of the experts' family."),
                io.Latent.Input("samples", tooltip="Latents of one clip from a sampler."),
                io.Float.Input(
                    "fps",
                    default=float(T2V_A14B.sampling.fps),
                    **widget("fps"),
                    tooltip="Frames per second, 0.1 to 1000. Wan2.2 14B was trained at 16: other values play the "
                    "same frames faster or slower.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/WanExperts",
                    tooltip="Name below the output folder; subfolders and %date:yyyy-MM-dd% work.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    optional=True,
                    tooltip="H.264 plays everywhere. H.265 is smaller, and its 10 bits keep skies and "
                    "fog free of bands, but not every browser shows it. PNG sequences are lossless, "
                    "of 8 or 16 bits, in a folder of their own.",
                ),
                io.Int.Input(
                    "crf",
                    default=_CRF,
                    min=BEST_CRF,
                    max=WORST_CRF,
                    optional=True,
                    tooltip="Quality of an mp4: 1 best and largest, 51 worst; 0 stores H.264 without loss, "
                    "which many players cannot show. PNG files ignore it.",
                    **RARE,
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound for the mp4 (AAC), cut or padded with silence to the clip's length.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The saved file; of a PNG sequence its frames, read when they are used.",
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def check_inputs(
        cls,
        filename_prefix: str | None = None,
        format: str | None = FORMATS[0],
        crf: int | None = _CRF,
        **_: Any,
    ) -> None:
        """Find out before the run whether the file can be written."""
        unless_linked(_check_prefix, filename_prefix)
        unless_linked(_check_format, format, crf)

    @classmethod
    def execute(
        cls,
        vae: Any,
        samples: dict[str, Any],
        fps: float,
        filename_prefix: str,
        format: str = FORMATS[0],
        crf: int = _CRF,
        audio: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Stream the clip into its file; the file appears under its name only when it is whole."""
        latents = samples["samples"]
        check_limits(fps=fps)
        _check_format(format, crf)
        check_clip(vae, latents)
        height, width = frame_size(vae, latents)
        manifest = {"fps": fps, "format": format, "crf": crf, "latents": list(latents.shape)}
        manifest |= file_tags(samples, vae)
        clip = Clip(
            width=width,
            height=height,
            fps=fps,
            metadata=container_metadata(cls.hidden, manifest),
            audio=sound(audio),
        )
        ending = "" if format in SEQUENCE_FORMATS else "_.mp4"
        path, subfolder = output_slot(filename_prefix, width=width, height=height, ending=ending)
        writer = open_writer(path, clip, format=format, crf=crf, keep_partial=True)
        if format in SEQUENCE_FORMATS:
            return _write_sequence(writer, vae, latents)
        with writer:
            for frames in decoded_frames(vae, latents, writer.bits):
                writer.write(frames)
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([saved]))


def _write_sequence(writer: FrameWriter, vae: Any, latents: Any) -> io.NodeOutput:
    """The same into PNG files; the preview is a contact sheet."""
    sheet = Sheet(pixel_frames(latents.shape[2]))
    with writer:
        for frames in decoded_frames(vae, latents, writer.bits):
            sheet.add(frames)
            writer.write(frames)
    shown = ui.SavedResult(preview(sheet), "", io.FolderType.temp)
    return io.NodeOutput(video_of(writer.path, float(writer.clip.fps)), ui=ui.SavedImages([shown]))
