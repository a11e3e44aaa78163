import json
from dataclasses import asdict

import pytest
import torch
from wanexperts.tiny import captions, clips
from wanexperts.tiny.export import FILES, WEIGHTS, fold
from wanexperts.tiny.judge import look
from wanexperts.tiny.train_experts import TextAttention, attend_rows
from wanexperts.tiny.train_vae import initialise
from wanexperts.wan.checkpoint import load_text_encoder, load_vae
from wanexperts.wan.config import TINY
from wanexperts.wan.files import read_header
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE, normalize

CONFIGS = {
    "high_noise": TINY.transformer,
    "low_noise": TINY.transformer,
    "vae": TINY.vae,
    "text": TINY.text,
}


@pytest.mark.parametrize("role", CONFIGS)
def test_headers_tell_role_and_configuration(role):
    header = read_header(WEIGHTS / FILES[role])
    tensors, metadata = header.tensors, header.metadata
    assert (metadata["wan_role"], metadata["format"]) == (role, "pt")
    assert json.loads(metadata["wan_config"]) == json.loads(json.dumps(asdict(CONFIGS[role])))
    assert {info.dtype for info in tensors.values()} <= {"BF16", "U8"}


def test_the_family_stays_small():
    files = {path.relative_to(WEIGHTS).as_posix(): path for path in WEIGHTS.rglob("*.safetensors")}
    assert set(files) == set(FILES.values())
    assert sum(path.stat().st_size for path in files.values()) < 25e6


def test_the_bundled_vae_keeps_scenes_and_fits_the_official_statistics():
    vae = load_vae(WEIGHTS / FILES["vae"], dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    latents = []
    for scene in captions.HELD_OUT_SCENES[::12]:
        video = clips.render(scene, clips.draw_motion(generator))[None]
        latents.append(vae.encode(video))
        pixels = ((vae.decode(latents[-1])[0] + 1) * 127.5).round().permute(1, 2, 3, 0)
        assert all(look(pixels).verdict(scene).values()), scene
    values = normalize(torch.cat(latents), TINY.vae)
    assert values.mean().abs() < 0.15
    assert 0.85 < values.std() < 1.15


def test_the_bundled_text_encoder_folds_letter_case():
    encoder, tokenizer = load_text_encoder(WEIGHTS / FILES["text"])
    assert tokenizer.vocab_size <= encoder.config.vocab_size
    assert tokenizer.encode("A Red Circle") == tokenizer.encode("a red circle")
    assert tokenizer.encode("") == [1]
    assert 2 not in tokenizer.encode("一个红色圆形在白色背景上向左移动")


def test_folding_changes_latents_but_not_pixels():
    torch.manual_seed(0)
    vae = WanVAE(TINY.vae).eval()
    initialise(vae)
    other = WanVAE(TINY.vae).eval()
    mean, std = torch.randn(16), torch.rand(16) + 0.5
    other.load_state_dict(fold(vae.state_dict(), mean, std))
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        raw, folded = vae.encode_whole(video), other.encode_whole(video)
        shape = (1, -1, 1, 1, 1)
        own = (raw - mean.view(shape)) / std.view(shape)
        torch.testing.assert_close(normalize(folded, TINY.vae), own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            other.decode_whole(folded), vae.decode_whole(raw), rtol=1e-4, atol=1e-4
        )


def test_training_attention_with_few_rows_equals_the_model_with_all_rows():
    torch.manual_seed(0)
    attention = TextAttention()
    short = WanTransformer(TINY.transformer, attention=attention)
    for parameter in short.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    full = WanTransformer(TINY.transformer)
    full.load_state_dict(short.state_dict())
    x, context = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 12, TINY.transformer.text_dim)
    lengths = torch.tensor([5, 11])
    for row, length in zip(context, lengths, strict=True):
        row[length:] = 0
    timestep = torch.tensor([900.0, 300.0])
    attend_rows(short, context.shape[1])
    attention.count(lengths, context.shape[1], 1.0)
    with torch.no_grad():
        wanted = full(x, timestep, context)
        torch.testing.assert_close(short(x, timestep, context), wanted, rtol=1e-4, atol=1e-4)
