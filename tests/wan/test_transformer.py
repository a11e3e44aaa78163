"""The transformer by its own rules: keys, context rows, batch independence, refusals."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.config import T2V_A14B, TransformerConfig
from wanexperts.wan.layers import timestep_features
from wanexperts.wan.transformer import WanTransformer

CONFIG = TransformerConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2, text_dim=24)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            parameter.normal_()
    return model


def test_a14b_has_the_official_keys_and_size():
    model = WanTransformer(T2V_A14B.transformer, device=torch.device("meta"))
    state = model.state_dict()
    assert len(state) == 1095
    assert sum(tensor.numel() for tensor in state.values()) == 14_288_491_584
    assert state["blocks.39.modulation"].shape == (1, 6, 5120)
    assert state["head.head.weight"].shape == (64, 5120)
    assert state["time_projection.1.weight"].shape == (30720, 5120)
    assert state["patch_embedding.weight"].shape == (5120, 16, 1, 2, 2)


def test_shapes_and_dtype(model):
    x, context = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 7, 24)
    velocity = model(x, torch.tensor([1000.0, 10.0]), context)
    assert velocity.shape == x.shape
    assert velocity.dtype == torch.float32


def test_the_hidden_state_stays_token_major(model):
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
        for block in [*model.blocks, model.head]
    ]
    model(torch.randn(1, 16, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 3, 24))
    for hook in hooks:
        hook.remove()
    assert seen == [True] * 3  # strided tokens cost a hidden float32 copy in every norm


def test_padding_rows_are_attended_and_are_zeros(model):
    torch.manual_seed(1)
    x, t, context = torch.randn(1, 16, 1, 4, 4), torch.tensor([700.0]), torch.randn(1, 5, 24)
    padded = torch.nn.functional.pad(context, (0, 0, 0, 507))
    assert torch.equal(model(x, t, context), model(x, t, padded))
    garbage = padded.clone()
    garbage[:, 300] = 1.0  # a row after the text is not masked: it must matter
    assert not torch.allclose(model(x, t, context), model(x, t, garbage), atol=1e-6)


def test_samples_of_a_batch_do_not_see_each_other(model):
    torch.manual_seed(2)
    x, context = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 4, 24)
    t = torch.tensor([900.0, 100.0])
    both = model(x, t, context)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-5)


def test_timestep_features_are_cosine_first_and_exact():
    features = timestep_features(torch.tensor([0.0, 999.0]), 256)
    assert torch.equal(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    angle = torch.tensor(999.0, dtype=torch.float64) * 10000.0 ** (-5 / 128)
    assert features[1, 5].item() == pytest.approx(angle.cos().item(), abs=1e-6)
    assert features[1, 133].item() == pytest.approx(angle.sin().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("x", "context", "sentence"),
    [
        ((1, 48, 1, 4, 4), (1, 4, 24), r"latents of shape \(1, 48, 1, 4, 4\) do not fit"),
        ((1, 16, 4, 4), (1, 4, 24), "do not fit this expert"),
        ((1, 16, 1, 5, 4), (1, 4, 24), "latent size 5x4 is not a multiple"),
        ((1, 16, 1, 4, 4), (1, 4, 4096), "text of width 4096 does not fit"),
        ((1, 16, 1, 4, 4), (1, 513, 24), "text of 513 rows is longer than 512"),
    ],
)
def test_refusals(model, x, context, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(torch.zeros(x), torch.tensor([1.0]), torch.zeros(context))
