"""LoRAs in the library's own runs: which expert they act on, that they act, and that they leave no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from wanexperts.tests.wan.family import write_family
from wanexperts.wan.cli import main
from wanexperts.wan.lora import read_lora
from wanexperts.wan.pipeline import LoraUse, Pipeline, Request

TARGET = "blocks.0.self_attn.q"
RANK = 2
PREFIXES = {"high": "transformer.", "low": "transformer_2."}
DIFFUSERS_TARGET = "blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


def factors(seed: int, width: int = 128) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(width, RANK, generator=generator) * 0.2,
        torch.randn(RANK, width, generator=generator) * 0.2,
    )


def write_lora(path: Path, seed: int, width: int = 128) -> Path:
    up, down = factors(seed, width)
    name = f"diffusion_model.{TARGET}"
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, path)
    return path


def write_both(path: Path) -> Path:
    """A diffusers file that holds a LoRA for each expert."""
    tensors = {}
    for seed, prefix in enumerate(PREFIXES.values(), 1):
        up, down = factors(seed)
        tensors[f"{prefix}{DIFFUSERS_TARGET}.lora_B.weight"] = up
        tensors[f"{prefix}{DIFFUSERS_TARGET}.lora_A.weight"] = down
    save_file(tensors, path)
    return path


def merged(parts: dict[str, Path], folder: Path, changes: dict[str, list[tuple[int, float]]]):
    """The family with LoRAs added to stored weights: the result by another way."""
    out = dict(parts)
    for part, used in changes.items():
        state = load_file(parts[part])
        for seed, strength in used:
            up, down = factors(seed)
            state[f"{TARGET}.weight"] += strength * up @ down
        with safe_open(parts[part], "pt") as source:
            metadata = source.metadata()
        out[part] = folder / f"merged_{part}.safetensors"
        save_file(state, out[part], metadata=metadata)
    return out


def latents(pipeline: Pipeline) -> Tensor:
    request = Request(prompt="a red circle moves left", sampling=pipeline.defaults, seed=3)
    return pipeline.sample(request)


CASES = {
    "named-high": ("style_high_noise.safetensors", None, {"high": [(1, 0.7)]}),
    "named-low": ("style_low_noise.safetensors", None, {"low": [(1, 0.7)]}),
    "says-nothing": ("style.safetensors", None, {"high": [(1, 0.7)], "low": [(1, 0.7)]}),
    "wan2.1": ("wan2.1_style.safetensors", None, {"low": [(1, 0.7)]}),
    "told": ("style.safetensors", "high", {"high": [(1, 0.7)]}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_lora_acts_on_its_experts_as_if_merged(parts, tmp_path, case):
    name, part, changes = CASES[case]
    path = write_lora(tmp_path / name, 1)
    plain = Pipeline.load(**parts, device="cpu")
    with_lora = plain.with_loras([LoraUse(path=path, strength=0.7, part=part)])
    wanted = latents(Pipeline.load(**merged(parts, tmp_path, changes), device="cpu"))
    got = latents(with_lora)
    # Measured 1.2e-6 at most: the product is added in another order.
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
    assert (got - latents(plain)).abs().max() > 1e-3
    assert torch.equal(latents(with_lora.with_loras([])), latents(plain))


def test_several_loras_and_a_file_for_both_experts(parts, tmp_path):
    uses = [
        LoraUse(path=write_both(tmp_path / "both.safetensors")),
        LoraUse(path=write_lora(tmp_path / "one.safetensors", 3), strength=-0.5, part="low"),
    ]
    got = latents(Pipeline.load(**parts, device="cpu").with_loras(uses))
    changes = {"high": [(1, 1.0)], "low": [(2, 1.0), (3, -0.5)]}
    wanted = latents(Pipeline.load(**merged(parts, tmp_path, changes), device="cpu"))
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)


def test_coverage_is_told(parts, tmp_path, caplog):
    path = write_lora(tmp_path / "style_high_noise.safetensors", 1)
    Pipeline.load(**parts, device="cpu").with_loras([LoraUse(path=path)])
    assert caplog.messages == [
        "style_high_noise.safetensors on the high-noise expert: 1 of 1 modules",
        "style_high_noise.safetensors leaves the low-noise expert as it is: it is for the other one",
    ]


def test_a_lora_for_the_other_expert_is_refused_unless_insisted(parts, tmp_path, caplog):
    path = write_lora(tmp_path / "style_high_noise.safetensors", 1)
    plain = Pipeline.load(**parts, device="cpu")
    use = LoraUse(path=path, part="low")
    with pytest.raises(ValueError, match="is a LoRA for the other expert, not the low-noise"):
        plain.with_loras([use])
    insisted = plain.with_loras([use], allow_mismatch=True)
    assert (
        "style_high_noise.safetensors is made for the other expert than the low-noise expert"
        in caplog.messages
    )
    assert (latents(insisted) - latents(plain)).abs().max() > 1e-3


def test_a_lora_of_another_width_is_refused(parts, tmp_path):
    path = write_lora(tmp_path / "wide.safetensors", 1, width=256)
    with pytest.raises(ValueError, match="does not fit this network"):
        Pipeline.load(**parts, device="cpu").with_loras([LoraUse(path=path)])


def test_the_command_line_takes_loras_with_and_without_strength(parts, tmp_path, capsys):
    path = write_lora(tmp_path / "a:b_high_noise.safetensors", 1)
    out = tmp_path / "out.mp4"
    files = [text for part, file in parts.items() for text in (f"--{part}", str(file))]
    arguments = ["generate", "--prompt", "a", "--out", str(out), "--frames", "1", *files]
    assert main([*arguments, "--lora", f"{path}:0.25", "--lora-high", str(path)]) == 0
    import av

    with av.open(str(out)) as container:
        told = json.loads(container.metadata["wan"])
    assert told["loras"] == {"high": [[path.name, 0.25], [path.name, 1.0]], "low": []}
    assert main([*arguments, "--lora-low", str(path)]) == 2
    assert "is a LoRA for the other expert" in capsys.readouterr().err


@pytest.mark.parametrize("dialect", ["kohya", "peft", "bare", "comfyui"])
def test_converting_splits_a_file_for_both_experts(parts, tmp_path, dialect, capsys):
    both = write_both(tmp_path / "both.safetensors")
    assert main(["convert", str(both), str(tmp_path / "new.safetensors"), "--to", dialect]) == 0
    made = sorted(tmp_path.glob("new*"))
    assert [path.name for path in made] == [
        "new_high_noise.safetensors",
        "new_low_noise.safetensors",
    ]
    assert [read_lora(path).metadata["wan_role"] for path in made] == ["high_noise", "low_noise"]
    plain = Pipeline.load(**parts, device="cpu")
    wanted = latents(plain.with_loras([LoraUse(path=both)]))
    got = latents(plain.with_loras([LoraUse(path=path) for path in made]))
    assert torch.equal(got, wanted)
    capsys.readouterr()
    assert main(["inspect", *map(str, made)]) == 0
    assert "acts on: the low-noise expert" in capsys.readouterr().out


def test_what_a_dialect_cannot_say_is_not_lost(tmp_path, capsys):
    path = tmp_path / "full.safetensors"
    save_file({"diffusion_model.head.modulation.diff": torch.zeros(1, 2, 128)}, path)
    assert main(["convert", str(path), str(tmp_path / "new.safetensors"), "--to", "peft"]) == 2
    assert "1 changes that peft would lose" in capsys.readouterr().err
    assert not (tmp_path / "new.safetensors").exists()


def test_settings_are_checked_before_a_lora_is_read(parts, tmp_path, capsys):
    files = [text for part, file in parts.items() for text in (f"--{part}", str(file))]
    broken = tmp_path / "broken_high_noise.safetensors"
    save_file({f"diffusion_model.{TARGET}.diff": torch.full((128, 128), torch.nan)}, broken)
    arguments = ["generate", "--out", str(tmp_path / "out.mp4"), *files, "--lora", str(broken)]
    assert main([*arguments, "--prompt", ""]) == 2
    assert "the prompt is empty" in capsys.readouterr().err
    assert main([*arguments, "--prompt", "a"]) == 2
    assert "NaN" in capsys.readouterr().err


def test_a_tokenizer_can_be_given(parts, tmp_path):
    state = load_file(parts["text"])
    spiece = tmp_path / "elsewhere" / "pieces"
    spiece.parent.mkdir()
    spiece.write_bytes(state.pop("spiece_model").numpy().tobytes())
    save_file(state, tmp_path / "bare.safetensors")
    bare = {**parts, "text": tmp_path / "bare.safetensors"}
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Pipeline.load(**bare, device="cpu")
    got = Pipeline.load(**bare, device="cpu", tokenizer=spiece)
    assert torch.equal(latents(got), latents(Pipeline.load(**parts, device="cpu")))
