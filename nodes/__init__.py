"""The ComfyUI side: thin V3 nodes; only ``nodes/host`` touches ComfyUI internals."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .compile import WanExpertsCompile
from .conditioning import WanExpertsEmptyLatent, WanExpertsTextEncode
from .decode import WanExpertsDecode, WanExpertsDecodeToVideo
from .host.files import offer_bundled_weights
from .host.served import serve_odd_name
from .loaders import WanExpertsLoader, WanExpertsTextEncoderLoader, WanExpertsVAELoader
from .lora import WanExpertsLora
from .noise import WanExpertsNoise
from .plan import WanExpertsPlan
from .recipe import WanExpertsRecipe
from .sampling import WanExpertsGuider, WanExpertsSampler
from .schedule import WanExpertsSchedule, WanExpertsSolver
from .stages import WanExpertsStage, WanExpertsStagesGuider
from .verify import WanExpertsVerify


class WanExpertsExtension(ComfyExtension):
    """What ComfyUI registers for this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the nodes, put the bundled miniature family into the loaders' lists, serve our pages."""
        offer_bundled_weights()
        serve_odd_name()
        return [
            WanExpertsLoader,
            WanExpertsTextEncoderLoader,
            WanExpertsVAELoader,
            WanExpertsLora,
            WanExpertsCompile,
            WanExpertsTextEncode,
            WanExpertsEmptyLatent,
            WanExpertsSampler,
            WanExpertsGuider,
            WanExpertsSchedule,
            WanExpertsSolver,
            WanExpertsNoise,
            WanExpertsStage,
            WanExpertsStagesGuider,
            WanExpertsPlan,
            WanExpertsRecipe,
            WanExpertsVerify,
            WanExpertsDecode,
            WanExpertsDecodeToVideo,
        ]
