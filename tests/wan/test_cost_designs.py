"""Which memory design runs: what each needs, and the first that fits, told."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.cost import CHOICES, Expert, choose_design, device_bytes, step_bytes
from wanexperts.wan.shapes import latent_shape, token_grid
from wanexperts.wan.transformer import DESIGNS, EXACT, Memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = latent_shape(81, 256, 384, channels=16)
WIDE = TransformerConfig(dim=1280, ffn_dim=3456, num_heads=10, num_layers=2, text_dim=64)
NEEDS = dict(zip(DESIGNS, (100, 70, 69, 40), strict=True))


def needed(memory: Memory) -> int:
    return NEEDS[memory.name]


def traced(memory: Memory, device: str) -> float:
    """Hidden states on the device."""
    expert = Expert(config=WIDE, dtype=torch.bfloat16, device=device, memory=memory)
    return step_bytes(expert, SHAPE).peak / (token_grid(*SHAPE[1:]).tokens * WIDE.dim * 2)


def test_what_a_step_of_each_design_needs() -> None:
    got = {name: traced(memory, "cuda") for name, memory in DESIGNS.items()}
    # Latents, text and the least chunk weigh more beside so few tokens of this width. Saved: a hidden
    # state less the heads that are unpacked and the scales; a hidden state less the parts that travel.
    assert got == pytest.approx(
        {"exact": 4.30, "int8": 3.46, "host": 3.64, "int8+host": 2.68}, abs=0.05
    )


def test_a_hidden_state_on_the_host_is_no_less_on_a_cpu() -> None:
    assert traced(DESIGNS["host"], "cpu") >= traced(EXACT, "cpu")


@pytest.mark.parametrize(
    ("room", "name"), [(100, "exact"), (99, "host"), (69, "int8"), (68, "int8+host")]
)
def test_the_first_design_that_fits_runs_and_says_why(room: int, name: str) -> None:
    choice = choose_design("auto", device=CUDA, room=room, needed=needed)
    assert choice.memory.name == name
    if name == "exact":
        assert choice.note == ""
        return
    assert f"memory {name}: " in choice.note
    assert f"100 B of the {room} B" in choice.note
    assert ("not equal" in choice.note) == choice.memory.int8
    assert "may not fit" not in choice.note


def test_where_nothing_fits_the_smallest_runs_and_says_so() -> None:
    choice = choose_design("auto", device=CUDA, room=39, needed=needed)
    assert choice.memory.name == "int8+host"
    assert "even that may not fit" in choice.note


def test_a_cpu_is_its_own_host() -> None:
    for room in (69, 39):
        assert choose_design("auto", device=CPU, room=room, needed=needed).memory.name == "int8"


@pytest.mark.parametrize("name", DESIGNS)
def test_what_is_asked_for_runs_whatever_fits(name: str) -> None:
    choice = choose_design(name, device=CUDA, room=0, needed=needed)
    assert choice.memory == DESIGNS[name]
    assert bool(choice.note) == (name != "exact")


def test_an_unknown_design_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int4.*use one of auto, exact, host, int8, int8\+host"):
        choose_design("int4", device=CPU, room=0, needed=needed)
    assert CHOICES[0] == "auto"


def test_room_is_that_of_the_whole_machine() -> None:
    assert 10**8 < device_bytes(CPU) == device_bytes(CPU)
