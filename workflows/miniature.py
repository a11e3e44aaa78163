"""The same graph with the bundled miniature family in place of files that must be downloaded."""

from __future__ import annotations

from typing import Any

Graph = dict[str, Any]
EXPERTS = {
    "model_high_noise": "wan_tiny_t2v_high_noise.safetensors",
    "model_low_noise": "wan_tiny_t2v_low_noise.safetensors",
}
TEXT = ("WanExpertsTextEncoderLoader", {"text_encoder": "umt5_tiny.safetensors"})
VAE = ("WanExpertsVAELoader", {"vae": "wan_tiny_vae.safetensors"})
LOADERS = {
    "WanExpertsLoader": ("WanExpertsLoader", EXPERTS),
    "UNETLoader": ("WanExpertsLoader", EXPERTS),
    "WanExpertsTextEncoderLoader": TEXT,
    "CLIPLoader": TEXT,
    "WanExpertsVAELoader": VAE,
    "VAELoader": VAE,
}
"""Each loader and what takes its place: ComfyUI's own do not know so small a family."""
SIZES = {"width": 64, "height": 64, "frames": 17, "length": 17, "fps": 8.0}
PROMPTS = {
    "wan_tiny_t2v": "a red circle moves left on a white background",
    "wan22_t2v_a14b": "a blue square moves up on a pink background",
    "wan22_t2v_lightning": "a green triangle moves right on a white background",
    "wan22_t2v_lightning_motion": "a red square moves down on a white background",
    "wan22_t2v_lora_pair": "a blue circle moves right on a white background",
    "wan22_t2v_guider": "a red triangle moves up on a pink background",
    "wan22_t2v_core_loaders": "a green circle moves down on a white background",
}
"""Template -> what it is asked for; the family knows only such sentences."""


def shrunk(graph: Graph, prompt: str) -> Graph:
    """``graph`` (API format) for the miniature family and ``prompt``, without LoRAs made for the real one."""
    moved = _moved(graph)
    small = {}
    for key, node in graph.items():
        kind, inputs = LOADERS.get(node["class_type"], (node["class_type"], node["inputs"]))
        if kind == "WanExpertsLora" or (key, 0) in moved:
            continue
        small[key] = {
            "class_type": kind,
            "inputs": {name: _value(name, value, prompt, moved) for name, value in inputs.items()},
        }
    return small


def _moved(graph: Graph) -> dict[tuple[str, int], list[Any]]:
    """Outputs of nodes that go -> what comes in their place."""
    moved: dict[tuple[str, int], list[Any]] = {}
    singles = [key for key, node in graph.items() if node["class_type"] == "UNETLoader"]
    for slot, key in enumerate(singles[1:], start=1):
        moved[key, 0] = [singles[0], slot]
    for key, node in graph.items():
        if node["class_type"] == "WanExpertsLora":
            moved[key, 0] = node["inputs"]["model_high_noise"]
            moved[key, 1] = node["inputs"]["model_low_noise"]
    return moved


def _value(name: str, value: Any, prompt: str, moved: dict[tuple[str, int], list[Any]]) -> Any:
    if isinstance(value, list):
        return moved.get((value[0], value[1]), value)
    if name in ("positive", "text") and value.isascii():  # the negative prompt is Chinese
        return prompt
    return SIZES.get(name, value)
