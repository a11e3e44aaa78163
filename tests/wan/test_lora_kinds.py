"""LoHa, LoKr, DoRA, Tucker factors and replaced weights against formulas written with explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from wanexperts.tests.wan.lora_writers import expert, save, shapes
from wanexperts.wan.lora import (
    Diff,
    DoRA,
    LoHa,
    LoKr,
    LowRank,
    Set,
    read_lora,
    relative_norm,
    resolve,
)

LINEAR, CONV = "blocks.1.ffn.0", "patch_embedding"
SHAPES = {LINEAR: (96, 128), CONV: (128, 16, 1, 2, 2)}
ALPHA = 1.5


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / 4


def tucker(core: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``out[p, r, k] = sum_ij core[i, j, k] first[i, p] second[j, r]``, one kernel position at a time."""
    flat = core.reshape(*core.shape[:2], -1)
    out = np.stack([first.T @ flat[:, :, k] @ second for k in range(flat.shape[2])], axis=-1)
    return out.reshape(first.shape[1], second.shape[1], *core.shape[2:])


def kron(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows ``a c``, columns ``b d``; a kernel of ``other`` stays at the end."""
    out = np.zeros((one.shape[0] * other.shape[0], one.shape[1] * other.shape[1], *other.shape[2:]))
    rows, columns = other.shape[:2]
    for i in range(one.shape[0]):
        for j in range(one.shape[1]):
            out[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = one[i, j] * other
    return out


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.reshape(b.shape[0], -1)).reshape(a.shape[0], *b.shape[1:])


CASES = {
    "loha": (LINEAR, {"hada_w1_a": (96, 3), "hada_w1_b": (3, 128), "hada_w2_a": (96, 3), "hada_w2_b": (3, 128)}),
    "loha conv": (CONV, {"hada_w1_a": (128, 3), "hada_w1_b": (3, 64), "hada_w2_a": (128, 3), "hada_w2_b": (3, 64)}),
    "loha tucker": (CONV, {"hada_w1_a": (3, 128), "hada_w1_b": (3, 16), "hada_t1": (3, 3, 1, 2, 2),
                           "hada_w2_a": (3, 128), "hada_w2_b": (3, 16), "hada_t2": (3, 3, 1, 2, 2)}),
    "lokr whole": (LINEAR, {"lokr_w1": (8, 4), "lokr_w2": (12, 32)}),
    "lokr w2 split": (LINEAR, {"lokr_w1": (8, 4), "lokr_w2_a": (12, 3), "lokr_w2_b": (3, 32)}),
    "lokr w1 split": (LINEAR, {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 4), "lokr_w2": (12, 32)}),
    "lokr both split": (LINEAR, {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (12, 3), "lokr_w2_b": (3, 32)}),
    "lokr conv": (CONV, {"lokr_w1": (8, 4), "lokr_w2": (16, 4, 1, 2, 2)}),
    "lokr conv split": (CONV, {"lokr_w1": (8, 4), "lokr_w2_a": (16, 3), "lokr_w2_b": (3, 4, 1, 2, 2)}),
    "lokr tucker": (CONV, {"lokr_w1": (8, 4), "lokr_w2_a": (3, 16), "lokr_w2_b": (3, 4), "lokr_t2": (3, 3, 1, 2, 2)}),
    "locon tucker": (CONV, {"lora_up.weight": (128, 3, 1, 1, 1), "lora_down.weight": (3, 16, 1, 1, 1),
                            "lora_mid.weight": (3, 3, 1, 2, 2)}),
    "lora flat": (CONV, {"lora_up.weight": (128, 3), "lora_down.weight": (3, 64)}),
    "lora conv": (CONV, {"lora_up.weight": (128, 3, 1, 1, 1), "lora_down.weight": (3, 16, 1, 2, 2)}),
}  # fmt: skip
RANKS = {"lokr w1 split": 2, "lokr whole": None, "lokr conv": None}
"""Rank that alpha is divided by, where it is not 3; None where nothing is divided."""


def expected(case: str, parts: dict[str, torch.Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The delta at strength 1, float64."""
    p = {name: tensor.double().numpy() for name, tensor in parts.items()}
    if "hada_t1" in p:
        delta = tucker(p["hada_t1"], p["hada_w1_a"], p["hada_w1_b"])
        delta = delta * tucker(p["hada_t2"], p["hada_w2_a"], p["hada_w2_b"])
    elif "hada_w1_a" in p:
        delta = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    elif "lora_mid.weight" in p:
        up, down = p["lora_up.weight"][..., 0, 0, 0], p["lora_down.weight"][..., 0, 0, 0]
        delta = tucker(p["lora_mid.weight"], up.T, down)
    elif "lora_up.weight" in p:
        delta = product(p["lora_up.weight"].reshape(shape[0], -1), p["lora_down.weight"])
    else:
        one = p["lokr_w1"] if "lokr_w1" in p else product(p["lokr_w1_a"], p["lokr_w1_b"])
        if "lokr_t2" in p:
            other = tucker(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
        else:
            other = p["lokr_w2"] if "lokr_w2" in p else product(p["lokr_w2_a"], p["lokr_w2_b"])
        delta = kron(one, other)
    rank = RANKS.get(case, 3)
    return delta.reshape(shape) * (ALPHA / rank if rank else 1.0)


def load(module: str, parts: dict[str, torch.Tensor], path):
    tensors = {f"diffusion_model.{module}.{part}": tensor for part, tensor in parts.items()}
    (section,) = read_lora(save(tensors, path / "lora.safetensors")).sections.values()
    return resolve(section, shapes())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [True, False], ids=["alpha", "no alpha"])
def test_every_parametrisation(case, alpha, tmp_path, record_property):
    torch.manual_seed(3)
    module, sizes = CASES[case]
    shape = SHAPES[module]
    parts = {part: random(*size) for part, size in sizes.items()}
    wanted = torch.from_numpy(expected(case, parts, shape))
    if not alpha and RANKS.get(case, 3):
        wanted = wanted * RANKS.get(case, 3) / ALPHA
    own = {"alpha": torch.tensor(ALPHA)} if alpha else {}
    resolved = load(module, {**parts, **own}, tmp_path)
    assert not resolved.left
    delta = resolved.deltas[f"{module}.weight"]
    weight = torch.randn(shape)
    got = delta.apply(weight, -0.5)
    assert got.shape == shape
    difference = float((got - (weight - 0.5 * wanted)).abs().max() / weight.abs().max())
    record_property("lora_kinds_vs_float64", difference)
    assert difference < 1e-6
    assert delta.norm() == pytest.approx(float(wanted.norm()), rel=1e-5)
    assert torch.equal(delta.to("cpu").apply(weight, -0.5), got)


@pytest.mark.parametrize("module", [LINEAR, CONV])
@pytest.mark.parametrize(
    "layout", ["(out,)", "(out, 1)", "(1, in)", "peft", "peft default", "peft axes"]
)
@pytest.mark.parametrize("strength", [1.0, 0.0, 0.4, -1.3])
def test_dora(module, layout, strength, tmp_path, record_property):
    torch.manual_seed(4)
    shape = SHAPES[module]
    columns = torch.tensor(shape[1:]).prod().item()
    up, down = random(shape[0], 3), random(3, columns)
    axis = 1 if layout == "(1, in)" else 0
    magnitude = 1 + torch.rand(shape[axis])
    broadcast = [1] * len(shape)
    broadcast[axis] = -1
    stored = (
        magnitude if layout in ("(out,)", "peft", "peft default") else magnitude.view(broadcast)
    )
    if layout == "peft axes":  # PEFT's own, of convolutions
        stored = magnitude.view(1, -1, *[1] * (len(shape) - 2))
    key = {
        "peft": "lora_magnitude_vector",
        "peft axes": "lora_magnitude_vector",
        "peft default": "lora_magnitude_vector.default.weight",
    }
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(ALPHA)}
    resolved = load(module, {**parts, key.get(layout, "dora_scale"): stored}, tmp_path)
    assert not resolved.left
    weight = torch.randn(shape)
    merged = weight.double() + ALPHA / 3 * (up.double() @ down.double()).view(shape)
    rows = merged.transpose(0, axis).reshape(shape[axis], -1)
    norms = torch.tensor([sum(v * v for v in row.tolist()) ** 0.5 for row in rows])
    full = merged / norms.view(broadcast) * magnitude.view(broadcast)
    wanted = weight + strength * (full - weight)
    delta = resolved.deltas[f"{module}.weight"]
    difference = float((delta.apply(weight, strength) - wanted).abs().max() / wanted.abs().max())
    record_property("lora_dora_vs_float64", difference)
    assert difference < 2e-6
    assert torch.equal(delta.apply(weight, 0.0), weight)
    assert delta.norm(weight) == pytest.approx(float((full - weight).norm()), rel=1e-5)
    with pytest.raises(ValueError, match="pass it"):
        delta.norm()


def test_dora_of_a_square_matrix_goes_by_the_shape_of_its_magnitude():
    up, down = random(8, 2), random(2, 8)
    weight, values = torch.randn(8, 8), 1 + torch.rand(8)
    by_row = DoRA(direction=LowRank(up=up, down=down), magnitude=values.view(8, 1))
    by_column = DoRA(direction=LowRank(up=up, down=down), magnitude=values.view(1, 8))
    assert torch.allclose(by_row.apply(weight, 1.0).norm(dim=1), values)
    assert torch.allclose(by_column.apply(weight, 1.0).norm(dim=0), values)


def test_dora_over_a_kronecker_product(tmp_path):
    parts = {
        "lokr_w1": random(8, 4),
        "lokr_w2": random(12, 32),
        "dora_scale": 1 + torch.rand(96, 1),
    }
    delta = load(LINEAR, parts, tmp_path).deltas[f"{LINEAR}.weight"]
    merged = torch.randn(96, 128)
    changed = delta.apply(merged, 1.0)
    assert torch.allclose(changed.norm(dim=1), parts["dora_scale"].flatten())
    merged = (
        merged + torch.from_numpy(kron(parts["lokr_w1"].numpy(), parts["lokr_w2"].numpy())).float()
    )
    assert torch.allclose(torch.cosine_similarity(changed, merged), torch.ones(96))


def test_a_replaced_weight_is_exact_at_zero_and_one(tmp_path):
    value, weight = torch.randn(96, 128), torch.randn(96, 128)
    delta = load(LINEAR, {"set_weight": value}, tmp_path).deltas[f"{LINEAR}.weight"]
    assert torch.equal(delta.apply(weight, 1.0), value)
    assert torch.equal(delta.apply(weight, 0.0), weight)
    assert torch.allclose(delta.apply(weight, 0.25), 0.75 * weight + 0.25 * value, atol=1e-6)
    assert delta.norm(weight) == pytest.approx(float((value - weight).norm()))


@pytest.mark.parametrize(
    "delta",
    [
        LowRank(up=random(6, 2), down=random(2, 5), scale=0.3),
        LoHa(w1_a=random(6, 2), w1_b=random(2, 5), w2_a=random(6, 2), w2_b=random(2, 5)),
        LoKr(w1=random(2, 5), w2=random(3, 1)),
        Diff(diff=random(6, 5)),
        Set(value=random(6, 5)),
        DoRA(direction=Diff(diff=random(6, 5)), magnitude=torch.rand(6)),
    ],
    ids=lambda delta: type(delta).__name__,
)
def test_the_weight_given_is_never_written_to(delta):
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(6, 5).to(dtype)
        before = weight.clone()
        out = delta.apply(weight, 0.5)
        assert torch.equal(weight, before)
        assert out.dtype == torch.float32
        assert not torch.equal(out, before.float())


def test_relative_norm_says_what_it_measured(tmp_path):
    torch.manual_seed(6)
    model = expert()
    tensors = {}
    for name, shape in shapes().items():
        if name.endswith("q.weight") and "norm" not in name:
            base = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors |= {
                f"{base}.lora_A.weight": random(4, shape[1]),
                f"{base}.lora_B.weight": random(shape[0], 4),
            }
    tensors["diffusion_model.blocks.0.norm3.diff"] = torch.full((128,), 100.0)
    (section,) = read_lora(save(tensors, tmp_path / "l.safetensors")).sections.values()
    resolved = resolve(section, shapes())
    names = [n for n in resolved.deltas if "norm" not in n]
    assert len(names) == 4
    parameters = dict(model.named_parameters())
    everything = relative_norm(resolved, parameters.__getitem__)
    squares = [
        float((tensors[f"diffusion_model.{n.removesuffix('.weight')}.lora_B.weight"]
               @ tensors[f"diffusion_model.{n.removesuffix('.weight')}.lora_A.weight"]).square().sum())
        for n in names
    ]  # fmt: skip
    total = sum(float(parameters[n].square().sum()) for n in names)
    assert everything.value == pytest.approx((sum(squares) / total) ** 0.5, rel=1e-5)
    assert (everything.measured, everything.of) == (4, 4)
    read = []
    part = relative_norm(resolved, lambda name: read.append(name) or parameters[name], sample=2)
    assert read == [names[0], names[2]]
    assert str(part).endswith("% of the weights' norm (2 of 4 measured)")
