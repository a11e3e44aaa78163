"""Loading both experts: seconds, memory and bytes read, beside safetensors, diffusers and ComfyUI.

    python benchmarks/load_pair.py [--layers 2] [--comfyui FOLDER ...] [--out results.jsonl]

Two random experts of A14B width (dim 5120, bf16) with few layers are written once, then each way of
loading them runs in a process of its own. One JSON line each:

- ``seconds``: from the call to two usable models, pages of the files already cached;
- ``anonymous_mb``: peak of memory that is not file pages, above the process's imports;
- ``resident_mb``: peak of all memory, file pages included;
- ``forward_anonymous_mb``: the same peak after one small forward of the first expert where the way
  gives a model that runs;
- ``read_mb``: bytes asked of the system by read calls (mapped pages are not among them).

``limit_mb`` is one expert's streamed working set: two blocks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from benchmarks.checkout import enter as _enter  # noqa: E402
from benchmarks.checkout import environment  # noqa: E402
from benchmarks.lines import comfy_version, hardware  # noqa: E402
from benchmarks.peak import MB, Peak, kept  # noqa: E402
from wan.checkpoint import check_pair, load_transformer, open_checkpoint  # noqa: E402
from wan.config import T2V_A14B  # noqa: E402
from wan.convert import convert  # noqa: E402
from wan.files.write import Entry, write_safetensors  # noqa: E402
from wan.transformer import WanTransformer  # noqa: E402

NAMES = ("bench_high_noise.safetensors", "bench_low_noise.safetensors")


def write_pair(folder: Path, layers: int) -> int:
    """Two random experts in ``folder``; returns the bytes of one block."""
    config = replace(T2V_A14B.transformer, num_layers=layers)
    model = WanTransformer(config, device=torch.device("meta"), dtype=torch.bfloat16)
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        entries = {
            key: Entry(
                shape=tuple(t.shape), dtype=torch.bfloat16,
                make=lambda shape=t.shape, g=generator: torch.randn(shape, generator=g) * 0.02,
            )
            for key, t in model.state_dict().items()
        }  # fmt: skip
        write_safetensors(folder / name, entries, {})
        convert(open_checkpoint(folder / name), folder / f"diffusers_{seed}", layout="diffusers")
    return sum(t.numel() * 2 for t in model.blocks[0].state_dict().values())


def ours(folder: Path, _: Path | None) -> Callable[[], object]:
    """This library: headers, the check of the pair, both experts mapped."""
    files = [folder / name for name in NAMES]

    def load() -> object:
        check_pair(*(open_checkpoint(file, "transformer") for file in files))
        return [load_transformer(file, dtype=torch.bfloat16) for file in files]

    return load


def plain_safetensors(folder: Path, _: Path | None) -> Callable[[], object]:
    """``safetensors.torch.load_file`` of both, and nothing else."""
    return lambda: [load_file(folder / name) for name in NAMES]


def diffusers(folder: Path, _: Path | None) -> Callable[[], object]:
    """diffusers' ``from_pretrained`` of both."""
    from diffusers import WanTransformer3DModel

    return lambda: [
        WanTransformer3DModel.from_pretrained(folder / f"diffusers_{n}", torch_dtype=torch.bfloat16)
        for n in range(2)
    ]


def comfyui(folder: Path, checkout: Path | None) -> Callable[[], object]:
    """ComfyUI's own loader of both."""
    _enter(checkout)
    import comfy.sd

    return lambda: [comfy.sd.load_diffusion_model(str(folder / name)) for name in NAMES]


def ours_in_comfyui(folder: Path, checkout: Path | None) -> Callable[[], object]:
    """This pack's loader node of both, in ComfyUI."""
    _enter(checkout)
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    spec = importlib.util.spec_from_file_location(
        "wanexperts", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise RuntimeError("the pack cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanexperts"] = module
    spec.loader.exec_module(module)
    from wanexperts.nodes.host import parts

    def load() -> object:
        pair = parts.open_experts(*NAMES)
        return [parts.load_expert(expert) for expert in (pair.high, pair.low)]

    return load


WAYS = {
    "ours": ours,
    "safetensors.load_file": plain_safetensors,
    "diffusers": diffusers,
    "ComfyUI": comfyui,
    "ours in ComfyUI": ours_in_comfyui,
}


def forward(loaded: Any) -> None:
    """One small forward of the first model, where it is one of the library's."""
    model = loaded[0]
    if isinstance(model, WanTransformer):
        context = torch.zeros(1, 8, model.config.text_dim)
        with torch.no_grad():
            model(torch.zeros(1, 16, 1, 2, 2, dtype=torch.bfloat16), torch.zeros(1), context)


def measure(way: str, folder: Path, checkout: Path | None) -> dict[str, object]:
    """One way of loading, in this process."""
    load = WAYS[way](folder, checkout)
    before = kept("io", "rchar")
    with Peak() as peak:
        start = time.perf_counter()
        loaded = load()
        seconds = time.perf_counter() - start
    told: dict[str, object] = {
        "way": way,
        "seconds": round(seconds, 3),
        "anonymous_mb": round(peak.bytes / MB, 1),
        "read_mb": round((kept("io", "rchar") - before) / MB, 1),
    }
    with Peak() as peak:
        forward(loaded)
    told["forward_anonymous_mb"] = round(peak.bytes / MB, 1) if way == "ours" else None
    told["resident_mb"] = round(kept("status", "VmHWM") * 1024 / MB, 1)
    return told


def main() -> None:
    """Write the pair, run each way in a process of its own, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--comfyui", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        checkout = given.comfyui[0] if given.comfyui else None
        print(json.dumps(measure(given.one[0], Path(given.one[1]), checkout)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        block = write_pair(folder, given.layers)
        lines = [_run(way, folder, None) for way in ("ours", "safetensors.load_file", "diffusers")]
        for checkout in given.comfyui:
            lines += [_run(way, folder, checkout) for way in ("ComfyUI", "ours in ComfyUI")]
        pair = sum((folder / name).stat().st_size for name in NAMES)
    about = {
        "layers": given.layers, "pair_mb": round(pair / MB), "limit_mb": round(2 * block / MB),
        "torch": torch.__version__, "threads": torch.get_num_threads(), **hardware(),
    }  # fmt: skip
    text = "\n".join(json.dumps({"benchmark": "load_pair", **line, **about}) for line in lines)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def _run(way: str, folder: Path, checkout: Path | None) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", way, str(folder)]
    command += ["--comfyui", str(checkout)] if checkout else []
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(checkout)
    )
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-2000:]}")
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    if checkout:
        told["comfyui"] = comfy_version(checkout)
    return told


if __name__ == "__main__":
    main()
