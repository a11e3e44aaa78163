"""One block of the published sizes in bfloat16: ours, diffusers', ComfyUI's, and its bare kernels.

    python benchmarks/block.py [--comfyui FOLDER] [--tokens 1560] [--rounds 5] [--text 40] [--out results.jsonl]

All run in one process on the same random weights and take turns, so that other work on the machine
meets all alike; the time of the one thread that works is measured, waiting for a processor does not
count. Bare kernels are the matrix products and the two attentions of a block with 512 text rows,
alone. ``--text`` is the length of the prompt: "ours" is given its 512 rows like the others, "ours,
text read once" what :meth:`WanTransformer.read` kept of it. One JSON line: seconds and, by way, the
median over rounds of its time over that of the bare kernels.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.lines import Way, hardware, over, report, take_turns, versions  # noqa: E402
from wan.config import T2V_A14B, TransformerConfig  # noqa: E402
from wan.shapes import TokenGrid, token_grid  # noqa: E402
from wan.transformer import WanTransformer  # noqa: E402

CONFIG = replace(T2V_A14B.transformer, num_layers=1)
DTYPE = torch.bfloat16


def weights(
    config: TransformerConfig, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """Random weights of one expert at which signals neither die nor explode; norms are near one."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for name, value in WanTransformer(config, device=torch.device("meta")).state_dict().items():
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32, device=device)
        norm = "norm" in name and name.endswith("weight")
        scale = 0.1 if value.ndim < 2 or "modulation" in name else value[0].numel() ** -0.5
        state[name] = (drawn * scale + norm).to(dtype)
    return state


def our_model(config: TransformerConfig, state: dict[str, Tensor]) -> WanTransformer:
    """Our expert over ``state``, which is not copied."""
    model = WanTransformer(config, device=torch.device("meta"), dtype=DTYPE)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def diffusers_model(config: TransformerConfig, state: dict[str, Tensor]) -> nn.Module:
    """Diffusers' expert over the same weights; what its loader keeps in float32 is."""
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    from wan.keys.transformer import diffusers_key

    with init_empty_weights(include_buffers=False):
        model = WanTransformer3DModel(
            num_attention_heads=config.num_heads, attention_head_dim=config.dim // config.num_heads,
            in_channels=config.in_dim, out_channels=config.out_dim, text_dim=config.text_dim,
            freq_dim=config.freq_dim, ffn_dim=config.ffn_dim, num_layers=config.num_layers,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=config.eps,
        )  # fmt: skip
    wide = model._keep_in_fp32_modules
    renamed = {diffusers_key(name): value for name, value in state.items()}
    for name, value in renamed.items():
        if any(part in name for part in wide):
            renamed[name] = value.float()
    model.load_state_dict(renamed, assign=True)
    return model.eval().requires_grad_(False)


def comfy_model(folder: Path, config: TransformerConfig, state: dict[str, Tensor]) -> nn.Module:
    """ComfyUI's expert over the same weights, with its layers for weights in the compute dtype."""
    # On a CPU it would take an attention of its own, slower than the one of the others.
    sys.argv = [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", in_dim=config.in_dim, dim=config.dim, ffn_dim=config.ffn_dim,
        freq_dim=config.freq_dim, text_dim=config.text_dim, out_dim=config.out_dim,
        num_heads=config.num_heads, num_layers=config.num_layers, eps=config.eps,
        device=torch.device("meta"), dtype=DTYPE, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def networks(
    folder: Path | None, config: TransformerConfig, state: dict[str, Tensor]
) -> dict[str, nn.Module]:
    """The three implementations over the same weights."""
    found: dict[str, nn.Module] = {
        "ours": our_model(config, state),
        "diffusers": diffusers_model(config, state),
    }
    if folder is not None:
        found["comfyui"] = comfy_model(folder, config, state)
    return found


def call(network: nn.Module, x: Tensor, at: Tensor, context: Tensor) -> Tensor:
    """A forward of any of them."""
    out = network(x, at, context)
    return out if isinstance(out, Tensor) else out.sample


def inputs(
    config: TransformerConfig, shape: tuple[int, int, int], text: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents, a timestep, and a text of ``text`` rows before its padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.in_dim, *shape, generator=generator).to(DTYPE)
    context = torch.zeros(1, config.text_len, config.text_dim)
    context[:, :text] = torch.randn(1, text, config.text_dim, generator=generator)
    return x, torch.tensor([613.0]), context.to(DTYPE)


def blocks(
    grid: TokenGrid, shape: tuple[int, int, int], text: int, folder: Path | None
) -> dict[str, Way]:
    """Every way of running one block over the same hidden state."""
    state = weights(CONFIG, DTYPE)
    x, at, context = inputs(CONFIG, shape, text)
    ours = our_model(CONFIG, state)
    hidden, _, tokens = ours.embed(x, at, context, grid)
    read = tokens._replace(text=ours.read(context, DTYPE))
    rows, six = tokens.text.rows, tokens.time
    ways: dict[str, Way] = {
        "bare": bare(CONFIG, grid.tokens),
        "ours": lambda: ours.blocks[0](hidden.clone(), tokens),
        "ours, text read once": lambda: ours.blocks[0](hidden.clone(), read),
    }
    theirs = diffusers_model(CONFIG, state)
    rotary = theirs.rope(x)
    ways["diffusers"] = lambda: theirs.blocks[0](hidden, rows, six, rotary)
    if folder is not None:
        comfy = comfy_model(folder, CONFIG, state)
        freqs = comfy.rope_encode(*shape, device=x.device, dtype=DTYPE)
        seen = six.to(DTYPE)
        ways["comfyui"] = lambda: comfy.blocks[0](hidden, e=seen, freqs=freqs, context=rows)
    return ways


def bare(config: TransformerConfig, tokens: int) -> Way:
    """The products and attentions of a block on operands of its shapes."""
    dim, wide, text = config.dim, config.ffn_dim, config.text_len
    heads = config.num_heads, dim // config.num_heads
    square, up, down = (
        torch.randn(rows, columns).mul_(0.01).to(DTYPE)
        for rows, columns in ((dim, dim), (wide, dim), (dim, wide))
    )
    x, rows, h = (
        torch.randn(n, k).to(DTYPE) for n, k in ((tokens, dim), (text, dim), (tokens, wide))
    )
    q, k, t = (torch.randn(1, heads[0], n, heads[1]).to(DTYPE) for n in (tokens, tokens, text))
    linear = torch.nn.functional.linear
    attend = torch.nn.functional.scaled_dot_product_attention

    def run() -> None:
        for _ in range(6):
            linear(x, square)
        for _ in range(2):
            linear(rows, square)
        linear(x, up)
        linear(h, down)
        attend(q, k, k)
        attend(q, t, t)

    return run


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--tokens", type=int, default=1560)
    parser.add_argument("--text", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = (1, 2 * (given.tokens // 30), 60)
    ways = blocks(token_grid(*shape), shape, given.text, given.comfyui)
    with torch.inference_mode():
        seconds = take_turns(ways, given.rounds)
    line = {
        "case": "block", "tokens": token_grid(*shape).tokens, "dtype": "bfloat16", "text": given.text,
        "seconds": {name: round(median(found), 3) for name, found in seconds.items()},
        "over_bare": over(seconds, "bare"), "over_diffusers": over(seconds, "diffusers"),
        "rounds": given.rounds, "threads": 1, **versions(given.comfyui), **hardware(),
    }  # fmt: skip
    report(line, given.out)


if __name__ == "__main__":
    main()
