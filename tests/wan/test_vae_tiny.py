"""Tiny decoders: streams, latent spaces, memory, and the files they come in."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from wanexperts.wan.checkpoint import (
    build_decoder,
    check_complete,
    find_parts,
    format_card,
    load_decoder,
    load_vae,
    named_latents,
    open_checkpoint,
)
from wanexperts.wan.cli import main
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.convert import convert
from wanexperts.wan.vae import TinyVAE, normalize, tiny_bytes
from wanexperts.wan.vae.tiny import MemoryBlock

from .family import write_family
from .tiny_files import NORMALIZED, RAW, tiny_state, write_tiny

# That it is the published network is found out by tests/nodes/test_on_host_tiny.py.


def make(*, normalized: bool = True) -> TinyVAE:
    vae = TinyVAE(VAEConfig(), normalized=normalized).eval().requires_grad_(False)
    vae.load_state_dict(tiny_state())
    return vae


def raw(frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return 2 * torch.randn(batch, 16, frames, 4, 3, generator=generator)


def test_a_stream_gives_one_frame_and_then_four():
    video = make().decode_stream(raw(3, batch=2))
    assert [tuple(chunk.shape) for chunk in video] == [(2, 3, n, 32, 24) for n in (1, 4, 4)]


def test_the_start_of_a_clip_does_not_depend_on_its_end():
    long, short = make().decode(raw(5)), make().decode(raw(5)[:, :, :2])
    assert torch.equal(long[:, :, :5], short)
    assert not torch.equal(long[:, :, 5:9], make().decode(raw(5)[:, :, 2:4])[:, :, 1:])


def test_two_clips_in_one_batch_do_not_meet():
    both = raw(2, batch=2)
    apart = torch.cat([make().decode(clip) for clip in both.split(1)])
    assert (make().decode(both) - apart).abs().max() < 1e-5  # measured: 1.6e-6


def test_a_raw_decoder_is_a_normalised_one_that_was_given_normalised_latents():
    latents = raw(2)
    on_normalised = make(normalized=False).decode(normalize(latents, VAEConfig()))
    assert torch.equal(make(normalized=True).decode(latents), on_normalised)
    assert not torch.equal(make(normalized=False).decode(latents), on_normalised)


def test_latents_are_left_as_they_were():
    latents = raw(2)
    kept = latents.clone()
    for normalized in (True, False):
        make(normalized=normalized).decode(latents)
        assert torch.equal(latents, kept)


@pytest.mark.parametrize("shape", [(1, 16, 4, 3), (1, 48, 1, 4, 3)])
def test_other_latents_are_refused(shape):
    with pytest.raises(ValueError, match="do not fit this VAE"):
        make().decode(torch.zeros(shape))


class Peak(TorchDispatchMode):
    """Peak bytes of storages that operations return and that are alive."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._drop, key)
        return out

    def _drop(self, key):
        self.now -= self.live.pop(key, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_what_is_told_and_does_not_grow_with_length(dtype):
    vae, peaks = make().to(dtype), []
    for frames in (3, 6):
        latents = torch.randn(1, 16, frames, 6, 5).to(dtype)
        with Peak() as seen:
            for _ in vae.decode_stream(latents):
                pass
        # All latents are normalised at the start.
        peaks.append(seen.peak - latents.nbytes)
    told = tiny_bytes(6, 5, dtype)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
    assert 0.97 * told < peaks[0] <= told


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(("name", "space"), [(NORMALIZED, "normalised"), (RAW, "raw")])
def test_files_are_told_by_their_names(tmp_path: Path, name, space, ending):
    path = write_tiny(tmp_path / f"{name}.{ending}", dtype=torch.float16)
    checkpoint = open_checkpoint(path, "vae")
    check_complete(checkpoint)
    head, layout, weights, runs = format_card(checkpoint).splitlines()
    assert head == (
        f"{path.name}: tiny decoder for drafts and previews, of {space} Wan2.1 latents by its name"
    )
    assert "TAEHV names, one file" in layout
    assert f"{len(tiny_state())} x float16" in weights
    assert "layers cast" in runs
    decoder = load_decoder(path)
    assert isinstance(decoder, TinyVAE)
    assert decoder.normalized == (space == "normalised")
    wanted = make(normalized=decoder.normalized).half().float()
    assert torch.equal(decoder.decode(raw(2)), wanted.decode(raw(2)))


@pytest.mark.parametrize(
    ("name", "normalized"),
    [
        ("taew2_1.safetensors", True),
        ("Wan21_TAEW2_1_fp16.safetensors", True),
        ("taew2.1.pth", True),
        ("lighttaew2_1.safetensors", False),
        ("LightTAEW2-1.pth", False),
        ("taew2_2.safetensors", None),
        ("lightvaew2_1.safetensors", None),
        ("taehv.safetensors", None),
        ("wan_2.1_vae.safetensors", None),
    ],
)
def test_names(name, normalized):
    assert named_latents(name) is normalized


def test_a_name_that_does_not_tell_is_refused(tmp_path: Path):
    path = write_tiny(tmp_path / "taehv.safetensors")
    with pytest.raises(ValueError, match=r"does not say of which latents; call it taew2_1 \(norm"):
        check_complete(open_checkpoint(path))
    assert main(["inspect", str(path)]) != 0


def test_a_decoder_of_other_latents_is_refused(tmp_path: Path):
    state = tiny_state()
    state["decoder.1.weight"] = torch.zeros(256, 48, 3, 3)
    state["decoder.22.weight"], state["decoder.22.bias"] = (
        torch.zeros(12, 64, 3, 3),
        torch.zeros(12),
    )
    save_file(state, tmp_path / "taew2_2.safetensors")
    with pytest.raises(ValueError, match=r"48 latent channels to 12 .* needs 16 to 3: taew2_1 or"):
        load_decoder(tmp_path / "taew2_2.safetensors")


def test_an_incomplete_file_is_refused(tmp_path: Path):
    state = tiny_state()
    del state["decoder.4.conv.2.bias"]
    save_file(state, tmp_path / "taew2_1.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(first: decoder\.4\.conv\.2\.bias\)"):
        load_decoder(tmp_path / "taew2_1.safetensors")


def test_what_only_a_whole_vae_can_do_is_refused(tmp_path: Path):
    path = write_tiny(tmp_path / "taew2_1.safetensors")
    with pytest.raises(ValueError, match="cannot encode; use wan_2"):
        load_vae(path)
    for layout in ("single", "official", "diffusers"):
        with pytest.raises(ValueError, match="has one layout; use it as it is"):
            convert(open_checkpoint(path), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_it_is_not_taken_for_the_vae_of_a_folder(tmp_path: Path):
    parts = write_family(tmp_path)
    tiny = write_tiny(tmp_path / "taew2_1.safetensors")
    assert find_parts(tmp_path)["vae"] == parts["vae"]
    parts["vae"].unlink()
    with pytest.raises(ValueError, match="has no VAE"):
        find_parts(tmp_path)
    assert find_parts(tmp_path, {"vae": tiny})["vae"] == tiny


def test_the_file_of_a_whole_vae_is_built_whole(tmp_path: Path):
    parts = write_family(tmp_path)
    assert not isinstance(build_decoder(open_checkpoint(parts["vae"])), TinyVAE)
    assert not any(isinstance(part, MemoryBlock) for part in load_vae(parts["vae"]).modules())
