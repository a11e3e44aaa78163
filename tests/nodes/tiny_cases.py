"""What tiny decoders do inside ComfyUI, and what ComfyUI's own network makes of the same weights.

    python tiny_cases.py COMFYUI_FOLDER

Run in a process of its own, per ComfyUI. Prints one JSON object of findings; ``test_on_host_tiny.py``
judges them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def enter(checkout: str):
    """Make ComfyUI and the pack importable, on the CPU."""
    sys.path.insert(0, checkout)
    sys.argv = ["main.py", "--cpu", "--preview-method", "taesd"]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "wanexperts", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanexperts"] = module
    spec.loader.exec_module(module)


enter(sys.argv[1])

import comfy.latent_formats  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import folder_paths  # noqa: E402
import latent_preview  # noqa: E402
import torch  # noqa: E402
from wanexperts.nodes.host import parts, tiny, watch  # noqa: E402
from wanexperts.tests.wan.tiny_files import NORMALIZED, RAW, tiny_state, write_tiny  # noqa: E402
from wanexperts.wan.config import VAEConfig  # noqa: E402
from wanexperts.wan.vae import COUNTED, TinyVAE, tiny_bytes  # noqa: E402

FRAMES = (1, 2, 5, 9)
FORMAT = comfy.latent_formats.Wan21()


def raw(frames: int, height: int = 4, width: int = 6, batch: int = 1) -> torch.Tensor:
    """Raw latents that look like Wan's: of its means and deviations."""
    generator = torch.Generator().manual_seed(frames)
    normal = torch.randn(batch, 16, frames, height, width, generator=generator)
    return FORMAT.process_out(normal)


def ours(name: str) -> TinyVAE:
    """The library's network."""
    vae = TinyVAE(VAEConfig(), normalized=name == NORMALIZED).eval()
    vae.load_state_dict(tiny_state())
    return vae


def theirs(name: str, latents: torch.Tensor, *, parallel: bool) -> torch.Tensor | None:
    """ComfyUI's own, in [-1, 1]; None where it has none."""
    try:
        from comfy.taesd.taehv import TAEHV
    except ImportError:
        return None
    known = comfy.latent_formats.Wan21 if name == NORMALIZED else None
    vae = TAEHV(latent_channels=16, latent_format=known, parallel=parallel).eval()
    vae.load_state_dict(tiny_state(), strict=False)
    with torch.no_grad():
        return (vae.decode(latents) * 2 - 1).clamp(-1, 1)


def parity(name: str) -> list[dict[str, float]] | None:
    """Largest differences per length; a stream on our side, a stream and one pass on theirs."""
    found = []
    for frames in FRAMES:
        latents = raw(frames, batch=2 if frames == 2 else 1)
        got = ours(name).decode(latents)
        wanted = [theirs(name, latents, parallel=parallel) for parallel in (False, True)]
        if wanted[0] is None:
            return None
        found.append(
            {
                "frames": got.shape[2],
                "spread": wanted[0].std().item(),
                "stream": (got - wanted[0]).abs().max().item(),
                "whole": (got - wanted[1]).abs().max().item(),
            }
        )
    return found


def write_files(folder: Path) -> None:
    """Models as a user has them: in ``vae_approx``, in ``vae``, and one that is not ours."""
    for kind in ("vae", "vae_approx"):
        folder_paths.add_model_folder_path(kind, str(folder / kind), is_default=True)
    write_tiny(folder / "vae_approx" / f"{NORMALIZED}.pth", dtype=torch.float16)
    write_tiny(folder / "vae_approx" / f"{RAW}.safetensors")
    write_tiny(folder / "vae_approx" / "taehv.safetensors")
    write_tiny(folder / "vae" / f"{NORMALIZED}_mine.safetensors")


def as_vae(name: str) -> dict[str, object]:
    """One listed file as a VAE of ComfyUI's."""
    vae = parts.load_vae(parts.open_vae(name))
    latents = raw(3, batch=2)
    images = vae.decode(latents)
    wanted = (ours(RAW if name.startswith(RAW) else NORMALIZED).decode(latents) + 1) / 2
    asked = []
    true = mm.load_models_gpu

    def load_models_gpu(models, memory_required=0, **options):
        asked.append(memory_required)
        return true(models, memory_required=memory_required, **options)

    mm.load_models_gpu = load_models_gpu
    still = vae.decode(latents[:1, :, 0])
    mm.load_models_gpu = true
    try:
        vae.encode(torch.zeros(5, 32, 32, 3))
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {
        "shape": list(images.shape),
        "difference": (images.movedim(-1, 1) - wanted).abs().max().item(),
        "still": (still[0] - images[0, :1]).abs().max().item(),
        "still_shape": list(still.shape),
        "asked": asked[0] * COUNTED / tiny_bytes(4, 6, torch.float32),
        "refused": refused,
    }


def previews() -> object:
    """The sheet of a step for a clip of 13 latent frames, before its caption."""
    previewer = tiny.find_previewer(torch.device("cpu"), FORMAT)
    return watch.preview_sheet(previewer, FORMAT.process_in(raw(13)))


def preview_difference(sheet, name: str) -> float:
    """Between the sheet and the four frames that belong on it, out of 255."""
    kind, image, largest = sheet
    assert (kind, largest) == ("JPEG", latent_preview.MAX_PREVIEW_RESOLUTION)
    assert image.size == (2 * 48, 2 * 32), image.size
    worst = 0.0
    for index, frame in enumerate((0, 4, 8, 12)):
        latents = raw(13)[:, :, frame : frame + 1]
        wanted = theirs(name, latents, parallel=True)
        if wanted is None:
            wanted = ours(name).decode(latents)
        row, column = divmod(index, 2)
        box = (48 * column, 32 * row, 48 * column + 48, 32 * row + 32)
        got = torch.frombuffer(bytearray(image.crop(box).tobytes()), dtype=torch.uint8)
        shown = ((wanted[0, :, 0] + 1) / 2 * 255).movedim(0, -1).flatten()
        worst = max(worst, (got - shown).abs().max().item())
    return worst


def without_memory() -> bool:
    """Whether a preview that finds no memory shows colours instead of ending the run."""
    previewer = tiny.find_previewer(torch.device("cpu"), FORMAT)

    def decode_stream(_latents):
        raise torch.cuda.OutOfMemoryError("none left")

    previewer._decoder.decode_stream = decode_stream
    x0 = FORMAT.process_in(raw(13))
    sizes = [previewer.decode_latent_to_preview_image("JPEG", x0)[1].size for _ in range(2)]
    return sizes == [(6, 4)] * 2


def main() -> dict[str, object]:
    """All findings."""
    found: dict[str, object] = {name: parity(name) for name in (NORMALIZED, RAW)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found["without"] = type(tiny.find_previewer(torch.device("cpu"), FORMAT)).__name__
        write_files(folder)
        listed = parts.files.list_files(parts.files.VAE)
        found["listed"] = [name for name in listed if "tae" in name]
        found["vaes"] = {name: as_vae(name) for name in found["listed"]}
        found["preview"] = preview_difference(previews(), RAW)
        found["no_memory"] = without_memory()
        (folder / "vae_approx" / f"{RAW}.safetensors").unlink()
        folder_paths.filename_list_cache.clear()
        found["preview_normalised"] = preview_difference(previews(), NORMALIZED)
        # ComfyUI's own for any other latents, and colours where the file cannot be read.
        other = comfy.latent_formats.HunyuanVideo()
        found["other"] = type(tiny.find_previewer(torch.device("cpu"), other)).__name__
        (folder / "vae_approx" / f"{NORMALIZED}.pth").write_bytes(b"no weights")
        (folder / "vae" / f"{NORMALIZED}_mine.safetensors").unlink()
        found["damaged"] = type(tiny.find_previewer(torch.device("cpu"), FORMAT)).__name__
        latent_preview.args.preview_method = latent_preview.LatentPreviewMethod.Auto
        found["not_asked"] = type(tiny.find_previewer(torch.device("cpu"), FORMAT)).__name__
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()) + "\n")
