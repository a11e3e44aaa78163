"""ComfyUI's own Wan VAE on given weights; run in a process of its own, per ComfyUI.

    python vae_parity.py COMFYUI_FOLDER GIVEN.safetensors FOUND.safetensors

``GIVEN`` holds the weights under ``weights.``, and ``latents.N`` and ``video.N``; ``FOUND`` gets
what ComfyUI decodes and encodes them to, under the same names.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file

checkout, source, target = sys.argv[1:]
sys.path.insert(0, checkout)
sys.argv = ["main.py", "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
from comfy.ldm.wan.vae import WanVAE  # noqa: E402

WEIGHTS = "weights."
given = load_file(source)
weights = {k.removeprefix(WEIGHTS): v for k, v in given.items() if k.startswith(WEIGHTS)}
dim = weights["encoder.conv1.weight"].shape[0]
vae = WanVAE(dim=dim, z_dim=16, temperal_downsample=[False, True, True]).eval()
vae.load_state_dict(weights)
with torch.no_grad():
    runs = {"latents": vae.decode, "video": vae.encode}
    found = {
        name: runs[name.partition(".")[0]](tensor).contiguous()
        for name, tensor in given.items()
        if not name.startswith(WEIGHTS)
    }
save_file(found, target)
