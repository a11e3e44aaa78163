"""Everything that only a GPU can show, in 8 minutes of one H100-class card, with random weights alone.

    python -m benchmarks.gpu [--comfyui FOLDER] [--seconds 480] [--sections NAME ...] [--out results.jsonl]
    python -m benchmarks.gpu --self-test

Two blocks of A14B's width are used in turns until a forward has its 40. One JSON line per section; one
that fails says so in its line and does not keep the others from running:

- ``attention``: seconds and TFLOP/s of each backend that is there, at 480p/81, its distance from
  float32, and TFLOP/s of matrix products;
- ``forward``: seconds of a forward of ours, diffusers' and ComfyUI's network in turns at 480p/81 and
  720p/81, over the floor, and what each holds beside the weights, in GB and hidden states;
- ``memory``: ours at 720p/81 and 720p/129, in every design. The lines of 3.2 and 4.5 GB are for the
  exact one and count weights of one fp8 layer at a time in two buffers and 0.5 GB of CUDA context;
  what is allocated with two blocks in bfloat16 is told beside it;
- ``stream``: blocks copied from pinned memory a block ahead: with the copies, without, copies alone;
- ``file``: the library's own streaming, out of a file of four blocks that the system still has in
  memory, beside the same weights on the card;
- ``swap``: the wait where the second expert's blocks begin, fetched ahead and not;
- ``vae``: decoding 720p/81, whole frames and strips.

``--self-test`` runs the same code on the CPU at tiny sizes in seconds, and ends in a line of what that
leaves unmeasured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import gpu_cases  # noqa: E402
from benchmarks.gpu_run import FULL, SMALL, Budget, Run  # noqa: E402
from benchmarks.lines import hardware, report, versions  # noqa: E402

SECTIONS: dict[str, tuple[Callable[[Run], dict[str, object]], str]] = {
    "memory": (gpu_cases.memory, "peak of allocated memory against 3.2 and 4.5 GB"),
    "forward": (gpu_cases.forward_seconds, "seconds of a forward beside ComfyUI and diffusers"),
    "stream": (gpu_cases.stream, "how far copies of weights hide behind the computation"),
    "file": (gpu_cases.from_file, "how much slower a file is than weights on the card"),
    "swap": (gpu_cases.swap, "the wait at the change of experts"),
    "vae": (gpu_cases.vae, "seconds and peak of decoding 720p/81"),
    "attention": (gpu_cases.attention, "which attention backends run, and how fast"),
}
"""Name -> what measures it, and what it is in words; the most wanted first."""


def measure(name: str, run: Run) -> dict[str, object]:
    """The line of one section."""
    start, failures = time.monotonic(), len(run.failed)
    line: dict[str, object] = {"case": "gpu", "section": name}
    if run.budget.left <= 0:
        return {**line, "failed": ["no time was left"]}
    try:
        with torch.inference_mode():
            line |= SECTIONS[name][0](run)
    except Exception as error:  # noqa: BLE001 - the other sections go on
        run.failed.append(f"{type(error).__name__}: {error}"[:300])
    run.forget()
    line["section_seconds"] = round(time.monotonic() - start, 1)
    return {**line, "failed": run.failed[failures:]}


def about(run: Run) -> dict[str, object]:
    """What the numbers hang on."""
    told: dict[str, object] = {**versions(run.comfyui), **hardware()}
    if run.on_gpu:
        told["gpu"] = torch.cuda.get_device_name(run.device)
        told["cuda"] = torch.version.cuda
    return told


def main() -> int:
    """Print the lines; returns 1 if a section failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not (given.self_test or torch.cuda.is_available()):
        parser.error("there is no GPU here; use --self-test to try the script on the CPU")
    if given.comfyui is not None and not (given.comfyui / "comfyui_version.py").is_file():
        parser.error(f"{given.comfyui} is no ComfyUI folder; name the one that main.py is in")
    device = torch.device("cpu" if given.self_test else "cuda")
    run = Run(
        scale=SMALL if given.self_test else FULL,
        device=device,
        budget=Budget(given.seconds),
        comfyui=given.comfyui,
    )
    for name in given.sections:
        line = measure(name, run)
        report({**line, "self_test": given.self_test, **about(run)}, given.out)
    if given.self_test:
        words = "; ".join(SECTIONS[name][1] for name in given.sections)
        print(f"not measured without a GPU: {words}")
    return int(bool(run.failed))


if __name__ == "__main__":
    raise SystemExit(main())
