"""A LoRA is applied, given another strength and removed: ours, ComfyUI's ModelPatcher, diffusers.

    python -m benchmarks.lora_cycle [--comfyui FOLDER] [--layers 4] [--rounds 3] [--out results.jsonl]

Rank 64 on every linear layer of the blocks of a network of 1.3B's width with fewer layers, bfloat16,
random factors that are in memory, one thread. Ours is added whenever a weight is used, so nothing is
merged, nothing is restored, and every use costs; the others merge. One JSON line:

- ``seconds`` by way: ``apply``, ``change`` (to half the strength) and ``remove``, the median of the
  rounds; ``over_floor``: over merging once in place, one product added to each weight;
- ``bytes`` by way: all that operations read and write, over reading and writing each weight once;
- ``left``: share of the values of weights that are not what they were, after removal;
- ``use``: for one block of A14B's width, what a LoRA adds each time it runs: seconds of the block with
  and without at ``--tokens``, of its weights being made ready alone, which no longer clip changes, and
  ``bytes`` read and written for them, by value of a weight. ``share`` is the addition over the block
  without; at ``foretold_tokens`` the block's time is taken to grow with its operations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_iter  # noqa: E402

from benchmarks import block  # noqa: E402
from benchmarks.checkout import enter  # noqa: E402
from benchmarks.lines import hardware, over, report, take_turns, versions  # noqa: E402
from benchmarks.traffic import FREE  # noqa: E402
from wan.config import TransformerConfig  # noqa: E402
from wan.cost.flops import block_flops  # noqa: E402
from wan.keys.transformer import diffusers_key  # noqa: E402
from wan.layers import ready  # noqa: E402
from wan.lora import ANY, Resolved, apply_loras, parameter_shapes, read_lora, resolve  # noqa: E402
from wan.shapes import token_grid  # noqa: E402
from wan.transformer import WanTransformer  # noqa: E402

NARROW = TransformerConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
PREFIX = "diffusion_model."
RANK, STRENGTHS = 64, (1.0, 0.5)
FORETOLD = 32760
"""Tokens of 81 frames at 480p."""
Factors = dict[str, tuple[Tensor, Tensor]]
Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """One way of using a LoRA: its three steps, and the network whose weights they touch."""

    network: nn.Module
    apply: Step
    change: Step
    remove: Step


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("blocks.")
    }


def draw_factors(model: nn.Module) -> Factors:
    """``(up, down)`` of every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(block.DTYPE)

    return {
        name: (draw(layer.out_features, RANK), draw(RANK, layer.in_features))
        for name, layer in linears(model).items()
    }


def write_lora(path: Path, factors: Factors) -> Path:
    """A LoRA file with the keys that ComfyUI writes."""
    state = {}
    for name, pair in factors.items():
        for side, factor in zip(("up", "down"), pair, strict=True):
            state[f"{PREFIX}{name}.lora_{side}.weight"] = factor
    save_file(state, path)
    return path


def ours(state: dict[str, Tensor], config: TransformerConfig, file: Path) -> Cycle:
    """Patches that act at use."""
    model = block.our_model(config, state)
    found: list[Resolved] = []

    def apply() -> None:
        found[:] = [resolve(read_lora(file).sections[ANY], parameter_shapes(model))]
        apply_loras(model, [(found[0], STRENGTHS[0])])

    return Cycle(
        network=model,
        apply=apply,
        change=lambda: apply_loras(model, [(found[0], STRENGTHS[1])]),
        remove=lambda: apply_loras(model, ()),
    )


def comfyui(folder: Path, state: dict[str, Tensor], config: TransformerConfig, file: Path) -> Cycle:
    """Its ModelPatcher with its own reader; weights are resident, so it merges."""
    enter(folder, "--cpu", "--use-pytorch-cross-attention")
    model = block.comfy_model(folder, config, state)
    import comfy.lora
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    plain = ModelPatcher(model, load_device=cpu, offload_device=cpu)
    keys = {f"{PREFIX}{name}": f"{name}.weight" for name in linears(model)}
    held: list[tuple[dict[str, Any], Any]] = []

    def patch(patches: dict[str, Any], strength: float) -> None:
        patcher = plain.clone()
        patcher.add_patches(patches, strength)
        patcher.patch_model(cpu)
        held[:] = [(patches, patcher)]

    def change() -> None:
        patches, patcher = held[0]
        patcher.unpatch_model(cpu)
        patch(patches, STRENGTHS[1])

    return Cycle(
        network=model,
        apply=lambda: patch(comfy.lora.load_lora(load_file(file), keys), STRENGTHS[0]),
        change=change,
        remove=lambda: held[0][1].unpatch_model(cpu),
    )


def diffusers(state: dict[str, Tensor], config: TransformerConfig, file: Path) -> Cycle:
    """Its adapter, fused into the weights, which it overwrites; so they are a copy."""
    model = block.diffusers_model(config, {name: value.clone() for name, value in state.items()})

    def apply() -> None:
        sides = {"up": "lora_B", "down": "lora_A"}
        renamed = {}
        for key, value in load_file(file).items():
            name, side = key.removeprefix(PREFIX).removesuffix(".weight").split(".lora_")
            path = diffusers_key(f"{name}.weight").removesuffix(".weight")
            renamed[f"transformer.{path}.{sides[side]}.weight"] = value
        model.load_lora_adapter(renamed, adapter_name="bench")
        model.fuse_lora(lora_scale=STRENGTHS[0])

    def change() -> None:
        model.unfuse_lora()
        model.fuse_lora(lora_scale=STRENGTHS[1])

    def remove() -> None:
        model.unfuse_lora()
        model.unload_lora()

    return Cycle(network=model, apply=apply, change=change, remove=remove)


class AllBytes(TorchDispatchMode):
    """While active, ``bytes`` adds up what operations read and write; views and allocations nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.__name__.split(".")[0] not in FREE:
            tensors = (
                v for v in tree_iter((args, kwargs, out)) if isinstance(v, Tensor) and not v.is_meta
            )
            self.bytes += sum(v.numel() * v.element_size() for v in tensors)
        return out


def run_cycle(
    cycle: Cycle, originals: Mapping[str, Tensor], rounds: int
) -> tuple[dict[str, float], dict[str, float], float]:
    """Seconds and bytes (over reading and writing each weight once) of the steps; share of values lost."""
    steps = {"apply": cycle.apply, "change": cycle.change, "remove": cycle.remove}
    once = 2 * sum(value.nbytes for value in originals.values())
    seconds = take_turns(steps, rounds)
    touched = {}
    for name, step in steps.items():
        with AllBytes() as counted:
            step()
        touched[name] = round(counted.bytes / once, 2)
    lost = values = 0
    for name, layer in linears(cycle.network).items():
        values += layer.weight.numel()
        lost += int((layer.weight != originals[name]).sum())
    return (
        {name: round(median(found), 4) for name, found in seconds.items()},
        touched,
        round(lost / values, 4),
    )


def merged_once(originals: Mapping[str, Tensor], factors: Factors) -> float:
    """Seconds of the floor: each weight read and written once with its product added."""
    scratch = torch.empty(max(w.numel() for w in originals.values()), dtype=block.DTYPE)

    def merge() -> None:
        for name, weight in originals.items():
            up, down = factors[name]
            out = scratch[: weight.numel()].view(weight.shape)
            torch.addmm(weight, up, down, out=out)

    return median(take_turns({"merge": merge}, 3)["merge"])


def cycles(folder: Path | None, layers: int, rounds: int) -> dict[str, object]:
    """All ways over the same weights, one after the other."""
    config = replace(NARROW, num_layers=layers)
    state = block.weights(config, block.DTYPE)
    model = block.our_model(config, state)
    factors = draw_factors(model)
    originals = {name: layer.weight for name, layer in linears(model).items()}
    floor = merged_once(originals, factors)
    told: dict[str, dict[str, object]] = {"seconds": {}, "over_floor": {}, "bytes": {}, "left": {}}
    with tempfile.TemporaryDirectory() as place:
        file = write_lora(Path(place, "lora.safetensors"), factors)
        ways: dict[str, Callable[[], Cycle]] = {"ours": lambda: ours(state, config, file)}
        ways["diffusers"] = lambda: diffusers(state, config, file)
        if folder is not None:
            ways["comfyui"] = lambda: comfyui(folder, state, config, file)
        for name, way in ways.items():
            named = originals
            if name == "diffusers":
                named = {
                    diffusers_key(f"{key}.weight").removesuffix(".weight"): value
                    for key, value in originals.items()
                }
            seconds, touched, lost = run_cycle(way(), named, rounds)
            told["seconds"][name], told["bytes"][name], told["left"][name] = seconds, touched, lost
            told["over_floor"][name] = {k: round(v / floor, 3) for k, v in seconds.items()}
    return {"layers": layers, "floor": round(floor, 3), **told}


def use(tokens: int, rounds: int) -> dict[str, object]:
    """What a LoRA costs one block of A14B's width each time it runs."""
    state = block.weights(block.CONFIG, block.DTYPE)
    plain, changed = (block.our_model(block.CONFIG, state) for _ in range(2))
    with tempfile.TemporaryDirectory() as place:
        file = write_lora(Path(place, "lora.safetensors"), draw_factors(plain))
        found = resolve(read_lora(file).sections[ANY], parameter_shapes(changed))
        apply_loras(changed, [(found, STRENGTHS[0])])
    shape = (1, 2 * (tokens // 30), 60)
    x = torch.randn(1, block.CONFIG.in_dim, *shape).to(block.DTYPE)
    context = torch.randn(1, 40, block.CONFIG.text_dim)
    hidden, _, seen = plain.embed(x, torch.tensor([613.0]), context, token_grid(*shape))
    read = {m: seen._replace(text=m.read(context, block.DTYPE)) for m in (plain, changed)}

    def make(model: WanTransformer) -> None:
        for name, layer in linears(model).items():
            if not name.endswith(("cross_attn.k", "cross_attn.v")):  # the text is read once
                ready(layer, hidden)

    seconds = take_turns(
        {
            "without": lambda: plain.blocks[0](hidden.clone(), read[plain]),
            "with": lambda: changed.blocks[0](hidden.clone(), read[changed]),
            "ready": lambda: make(changed),
        },
        rounds,
    )
    with AllBytes() as counted:
        make(changed)
    values = sum(
        n.weight.numel()
        for name, n in linears(plain).items()
        if name[-1] not in "kv" or "self" in name
    )
    told = {name: median(found) for name, found in seconds.items()}
    grown = block_flops(block.CONFIG, FORETOLD) / block_flops(block.CONFIG, tokens)
    return {
        "tokens": token_grid(*shape).tokens,
        "seconds": {name: round(value, 3) for name, value in told.items()},
        "bytes": round(counted.bytes / values, 1),
        "share": round(over(seconds, "without")["with"] - 1, 3),
        "foretold_tokens": FORETOLD,
        "foretold_share": round(told["ready"] / (told["without"] * grown), 3),
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1560)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        told = cycles(given.comfyui, given.layers, given.rounds)
        told["use"] = use(given.tokens, given.rounds)
    line = {"case": "lora_cycle", "dim": NARROW.dim, "rank": RANK, "dtype": "bfloat16", **told}
    line |= {"rounds": given.rounds, "threads": 1, **versions(given.comfyui), **hardware()}
    report(line, given.out)


if __name__ == "__main__":
    main()
