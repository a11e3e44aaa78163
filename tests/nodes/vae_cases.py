"""What our VAE does inside ComfyUI when memory is short; run in a process of its own, per ComfyUI.

    python vae_cases.py COMFYUI_FOLDER

Prints one JSON object of findings; ``test_on_host_vae.py`` judges them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def enter(checkout: str):
    """Make ComfyUI and the pack importable, on the CPU."""
    sys.path.insert(0, checkout)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "wanexperts", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanexperts"] = module
    spec.loader.exec_module(module)


enter(sys.argv[1])

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from wanexperts.nodes.host.vae import HostVAE  # noqa: E402
from wanexperts.tests.helpers import random_state  # noqa: E402
from wanexperts.wan.config import VAEConfig  # noqa: E402
from wanexperts.wan.vae import COUNTED, PLANS, WanVAE, decode_bytes  # noqa: E402

CONFIG = VAEConfig(dim=16)
WEIGHTS = random_state(WanVAE(CONFIG), seed=0)
LATENTS = torch.randn(1, 16, 4, 6, 4, generator=torch.Generator().manual_seed(0))


def short_of_memory(vae: HostVAE, fails: dict[int, int]):
    """Let the nth try of a decode run out of memory at latent frame ``fails[n]``; notes the plans."""
    tried, given, true = [], [], vae.first_stage_model.decode_stream

    def decode_stream(latents, plan):
        tried.append((plan.strips, plan.offloaded))
        for index, chunk in enumerate(true(latents, plan)):
            if fails.get(len(tried) - 1) == index:
                raise torch.cuda.OutOfMemoryError("none left. More words.")
            yield chunk

    vae.first_stage_model.decode_stream = decode_stream
    try:
        given.extend(vae.decode_stream(LATENTS))
    except torch.cuda.OutOfMemoryError as error:
        given.append(str(error))
    del vae.first_stage_model.decode_stream
    return tried, given


def difference(given, wanted) -> float:
    """Largest difference, or -1 where the frames are not the wanted ones in number."""
    if [getattr(g, "shape", None) for g in given] != [w.shape for w in wanted]:
        return -1.0
    return max((g - w).abs().max().item() for g, w in zip(given, wanted, strict=True))


def main() -> dict[str, object]:
    """All findings."""
    vae = HostVAE(CONFIG, WEIGHTS)
    wanted = list(vae.decode_stream(LATENTS))
    found: dict[str, object] = {"frames": [chunk.shape[2] for chunk in wanted]}

    tried, given = short_of_memory(vae, {0: 2, 1: 0, 2: 3})
    found["retried"] = tried
    found["retried_difference"] = difference(given, wanted)
    tried, given = short_of_memory(vae, dict.fromkeys(range(len(PLANS)), 1))
    found["given_up"] = [len(tried), len(given), given[-1]]

    size = (8 * LATENTS.shape[3], 8 * LATENTS.shape[4])
    needs = [decode_bytes(*size, CONFIG, torch.float32, plan) for plan in PLANS]
    free = mm.get_free_memory
    plans = []
    for need in needs:
        mm.get_free_memory = lambda *_, need=need, **__: need / COUNTED + 1
        plans.append(short_of_memory(vae, {})[0][0])
    mm.get_free_memory = free
    found["fitting"] = plans
    total = mm.get_total_memory
    mm.get_total_memory = lambda *_, **__: vae.patcher.model_size() + mm.extra_reserved_memory() + 1
    found["asked_little"] = vae.memory_used_decode(LATENTS.shape, torch.float32) * COUNTED
    mm.get_total_memory = total
    found["asked"] = vae.memory_used_decode(LATENTS.shape, torch.float32) * COUNTED
    found["needs"] = needs

    half = HostVAE(CONFIG, WEIGHTS)
    half.vae_dtype = torch.bfloat16
    video = torch.rand(5, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    found["encode_difference"] = (half.encode(video) - vae.encode(video)).abs().max().item()
    stored = {p.dtype for p in half.first_stage_model.parameters()}
    found["stored"] = [str(dtype) for dtype in stored]
    rough = list(half.decode_stream(LATENTS))
    found["bf16_difference"] = difference(rough, wanted)
    found["shares_file"] = all(
        half.first_stage_model.state_dict()[k].data_ptr() == WEIGHTS[k].data_ptr() for k in WEIGHTS
    )
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()) + "\n")
