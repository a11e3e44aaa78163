"""A few rows or channels at a time: the same numbers as the whole frame."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, conv3d
from torch.utils._python_dispatch import TorchDispatchMode
from wanexperts.tests.helpers import random_state
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.vae import CausalCache, WanVAE, causal, pages, slabs
from wanexperts.wan.vae.pages import Room, Work
from wanexperts.wan.vae.slabs import Filter, conv_rows, conv_whole
from wanexperts.wan.vae.strips import DecoderRun

TOLERANCE = 1e-5  # measured: 2.1e-6 float32 at dim 96, bit-equal in bfloat16


def few(monkeypatch, size: int) -> None:
    """Slabs of so many bytes of a frame, and of a weight."""
    monkeypatch.setattr(slabs, "SLAB_BYTES", {"cpu": size})
    monkeypatch.setattr(slabs, "WEIGHT_NUMBERS", {"cpu": size // 4})
    monkeypatch.setattr(slabs, "WEIGHT_CHANNELS", 2)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(("size", "count"), [(1, 11), (4 * 2 * 7 * 5 * 4, 3), (10**6, 1)])
def test_rows_are_convolved_as_the_whole_is(monkeypatch, order, kernel, size, count):
    few(monkeypatch, size)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 11, 5, generator=generator).contiguous(memory_format=order)
    weight, bias = torch.randn(3, 7, 1, *kernel, generator=generator), torch.ones(3)
    given = Filter(weight, bias, (kernel[0] // 2, kernel[1] // 2))
    runs = slabs.slabs(11, x[:, :, 0].nbytes, x.device)
    assert [row for start, stop in runs for row in range(start, stop)] == [*range(11)]
    assert len(runs) == count
    room = Room()
    room.frame((2, 7, 13, 5), x).fill_(torch.nan)  # nothing of what was there before is used

    def fill(to: torch.Tensor, start: int, stop: int, free: int) -> None:
        to.copy_(x[:, :, start:stop])
        x[:, :, :free] = torch.nan  # asked for again they would be seen

    wanted = conv2d(x, weight[:, :, 0], bias, padding=given.padding)
    found = conv_rows(given, fill, x, 5, runs, room)
    assert x.isnan().all()  # every row was given free in the end
    assert found.is_contiguous(memory_format=order)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_large_frames_have_sixteen_slabs_at_most_and_least_is_kept():
    cpu, row = torch.device("cpu"), slabs.SLAB_BYTES["cpu"] // 2
    assert slabs.slabs(6, row, cpu) == [(0, 2), (2, 4), (4, 6)]
    assert len(slabs.slabs(100, row, cpu)) <= 16 < len(slabs.norm_slabs(100, row, cpu))
    assert slabs.slabs(6, row, cpu, least=4 * row) == [(0, 3), (3, 6)]


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("size", "kernels"), [(1, 4), (10**6, 1)])
@torch.no_grad()
def test_channels_are_convolved_as_all_are(monkeypatch, order, biased, size, kernels):
    few(monkeypatch, size)
    calls: list[int] = []

    def counted(x, weight, *rest, **named):
        calls.append(len(weight))
        return conv2d(x, weight, *rest, **named)

    monkeypatch.setattr(slabs, "conv2d", counted)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(3, 1, 2, 4, 6, generator=generator)  # T, B, C, H, W
    last = order == torch.channels_last
    joined = torch.stack([*frames], dim=1 if last else 2).flatten(1, 2)
    weight = torch.randn(7, 2, 3, 3, 3, generator=generator)
    bias = torch.randn(7, generator=generator) if biased else None
    found = conv_whole(Filter(weight, bias, (1, 1)), joined.contiguous(memory_format=order))
    wanted = conv3d(frames.movedim(0, 2), weight, bias, padding=(0, 1, 1))[:, :, 0]
    assert sum(calls) == 7
    assert (
        len(calls) == kernels
    )  # a weight of 1512 bytes, in twos for as much as half a frame of 576
    assert found.is_contiguous(memory_format=order)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=str)
def test_a_room_holds_one_frame_after_the_other_in_the_same_memory(order):
    room, like = (
        Room(),
        torch.empty(2, 3, 4, 5, dtype=torch.bfloat16).contiguous(memory_format=order),
    )
    large = room.frame((2, 3, 4, 5), like, torch.float32)
    small = room.frame((1, 6, 2, 5), like)
    assert (large.shape, large.dtype) == ((2, 3, 4, 5), torch.float32)
    assert (small.shape, small.dtype) == ((1, 6, 2, 5), torch.bfloat16)
    assert large.is_contiguous(memory_format=order)
    assert small.is_contiguous(memory_format=order)
    assert large.data_ptr() == small.data_ptr()
    larger = room.frame((2, 3, 8, 5), like, torch.float32)
    assert larger.data_ptr() == room.frame((2, 3, 4, 5), like).data_ptr()


def test_what_is_made_of_a_frame_is_never_where_the_frame_is():
    work, own = Work(), torch.zeros(1, 2, 3, 4)
    frame = work.beside(own).frame((1, 2, 3, 4), own)
    for _ in range(3):
        rows = frame[:, :, 1:]
        made = work.beside(rows).frame((1, 4, 3, 4), rows)
        made.fill_(1)
        frame.fill_(2)
        assert made.eq(1).all()
        frame = made


@pytest.mark.parametrize("length", [2, 3])
def test_a_page_holds_the_oldest_frame_until_it_is_turned(length):
    cache, layer = CausalCache(), torch.nn.Identity()
    frames = [torch.full((1, 2, 3, 4), float(i)) for i in range(length + 2)]
    for index, frame in enumerate(frames):
        page = cache.page(layer, frame, length)
        before = frames[max(0, index - length) : index]
        assert all(map(torch.equal, cache.past(layer) or (), before))
        page.copy_(frame)
        cache.turn(layer, page, length)
    assert len(cache.past(layer)) == length
    assert all(map(torch.equal, cache.past(layer), frames[-length:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_stream_in_slabs_is_the_same_stream(monkeypatch, dtype):
    config = VAEConfig(dim=16)
    vae = WanVAE(config).eval().requires_grad_(False)
    vae.load_state_dict(random_state(vae, seed=0))
    vae.to(dtype)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 3, 3, 5, generator=generator).to(dtype)
    video = (torch.rand(1, 3, 5, 32, 48, generator=generator) * 2 - 1).to(dtype)
    few(monkeypatch, 1 << 40)
    wanted = vae.decode(latents), vae.encode(video)
    few(monkeypatch, 1 << 13)
    found = vae.decode(latents), vae.encode(video)
    for ours, whole in zip(found, wanted, strict=True):
        assert (ours - whole).abs().max() <= (0 if dtype == torch.bfloat16 else TOLERANCE)


@torch.no_grad()
def test_frames_that_a_device_keeps_as_they_are_are_not_written_over(monkeypatch):
    """As on a GPU, where no layer has rooms or pages of its own."""
    vae = WanVAE(VAEConfig(dim=16)).eval().requires_grad_(False)
    vae.load_state_dict(random_state(vae, seed=0))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 3, 3, 5, generator=generator)
    video = torch.rand(1, 3, 5, 32, 48, generator=generator) * 2 - 1
    video = torch.cat([video, *[video[:, :, -1:]] * 16], dim=2)  # until stages have settled
    wanted = vae.decode(latents), vae.encode(video)
    for module in (pages, causal):
        monkeypatch.setattr(module, "_CPU", torch.device("cuda"))
    assert not pages.Room.serves(latents.device)
    found = vae.decode(latents), vae.encode(video)
    assert all(map(torch.equal, found, wanted))


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that operations gave back, but for some that is known."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.bytes, self._known = 0, known

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, torch.Tensor) else []:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._known:
                self.bytes = max(self.bytes, memory.nbytes())
        return out


@torch.no_grad()
def test_a_stream_makes_no_frame_anew(monkeypatch):
    """Frames, joined, padded and enlarged ones come into a room: new ones would break the heap."""
    few(monkeypatch, 1 << 19)  # several slabs, each larger than a frame
    monkeypatch.setattr(slabs, "WEIGHT_NUMBERS", {"cpu": 1 << 15})  # weights of less than half one
    config = VAEConfig(dim=16)
    vae = WanVAE(config).eval().requires_grad_(False)
    vae.load_state_dict(random_state(vae, seed=0))
    run, latent = DecoderRun(), torch.zeros(1, 16, 8, 14)
    for _ in range(3):  # until every layer has its whole past, and the rooms their size
        list(vae.decoder.step(latent, run))
    work = run.lower.work
    assert all(cache.work is work for cache in run.strips)
    known = [*vae.parameters()]
    known += [r.frame((1, 1, 1, 1), latent) for r in (work.slab, work.rows, *work.frames)]
    for cache in (run.lower, *run.strips):
        known += [frame for layer in vae.modules() for frame in cache.past(layer) or ()]
    with Largest({frame.data_ptr() for frame in known}) as largest:
        list(vae.decoder.step(latent, run))
    sums = 3 * 3 * 64 * 112  # what a frame adds to three pictures
    assert largest.bytes == sums * latent.itemsize
