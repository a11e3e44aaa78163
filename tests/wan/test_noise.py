"""Noise by a seed: ComfyUI's, and the GPU generator's from published numbers and its description."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from wanexperts.wan.noise import draw_noise, philox

# torch.manual_seed(seed); torch.randn(count, device="cuda"): what a GPU printed, to four decimals.
PRINTED = {
    0: """-0.9247 -0.4253 -2.6438 0.1452 -0.1209 -0.5797 -0.6229 -0.3284 -1.0745 -0.3631 -1.6711 2.2655
        0.3117 -0.1842 1.2866 1.1820 -0.1271 1.2169 1.4353 1.0605 -0.4941 -1.4244 -0.7244 -1.2973
        0.0697 -0.0074 1.8969 0.6878 -0.0779 -0.8373 1.3506 -0.2879 -0.5965 -0.3283 -0.9086 -0.8059
        -0.7407 -0.0504 0.5435 1.5150 0.0141 0.4532 1.6349 0.7124 -0.1806 1.0252 -1.4622 -0.7554
        -0.1836 0.3824 0.3918 -0.0830 0.8971 -1.1123 0.1116 0.4863 -0.5499 -0.3231 -0.5469 0.9049
        0.2837 0.1210 0.4730 -1.0823""",
    42: """0.1940 2.1614 -0.1721 0.8491 -1.9244 0.6530 -0.6494 -0.8175 0.5280 -1.2753 -1.6621 -0.3033
        -0.0926 0.1992 -1.1204 1.8577 -0.7145 0.6881 0.7968""",
}

# The same, seed 0, in eight decimals, as published with AUTOMATIC1111's imitation in numpy.
PUBLISHED = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564,
             -0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]  # fmt: skip

# kat_vectors of Random123: counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_philox_gives_the_published_vectors(counter, key, result) -> None:
    found = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in found) == result


@pytest.mark.parametrize("seed", PRINTED)
def test_small_draws_are_those_a_gpu_printed(seed: int) -> None:
    printed = [float(word) for word in PRINTED[seed].split()]
    found = draw_noise((len(printed),), seed, "official").tolist()
    assert [round(value, 4) for value in found] == printed


def test_small_draws_are_the_published_ones(record_property) -> None:
    found = draw_noise((12,), 0, "official")
    difference = (found.double() - torch.tensor(PUBLISHED, dtype=torch.float64)).abs().max().item()
    record_property("official_noise_vs_published_values", difference)
    assert difference < 1e-6  # measured 5e-7: numpy's were not rounded to float32 on the way


def _kernel(count: int, seed: int, multiprocessors: int, threads: int) -> Tensor:
    """The kernel as its source describes it, one thread and one element at a time."""
    grid = min(math.ceil(count / 256), multiprocessors * (threads // 256))
    launched = 256 * grid
    out = [math.nan] * count
    for index in range(launched):
        for call, first in enumerate(range(index, count, 4 * launched)):
            words = _philox_scalar([call, 0, index, 0], [seed % 2**32, seed >> 32])
            normals = []
            for x, y in (words[:2], words[2:]):
                length = math.sqrt(-2 * math.log((x + 0.5) / 2**32))
                angle = 2 * math.pi * (y + 0.5) / 2**32
                normals += [length * math.sin(angle), length * math.cos(angle)]
            for place, value in enumerate(normals):
                if first + place * launched < count:
                    out[first + place * launched] = value
    return torch.tensor(out, dtype=torch.float64)


def _philox_scalar(c: list[int], k: list[int]) -> list[int]:
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ k[0], q % 2**32, (p >> 32) ^ c[3] ^ k[1], p % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("count", [1, 256, 257, 512, 1025, 2048, 2049, 5000])
@pytest.mark.parametrize("gpu", [(1, 256), (1, 2048), (3, 512), (132, 2048)])
def test_big_draws_follow_the_threads_of_the_gpu(count: int, gpu: tuple[int, int]) -> None:
    multiprocessors, threads = gpu
    seed = 2**40 + 17
    found = draw_noise((count,), seed, "official", multiprocessors=multiprocessors, threads=threads)
    expected = _kernel(count, seed, *gpu)
    assert (found - expected).abs().max() < 3e-6  # float32 against float64; measured 1.9e-6


def test_gpus_differ_above_their_threads_only() -> None:
    def drawn(count: int, multiprocessors: int) -> Tensor:
        return draw_noise((count,), 3, "official", multiprocessors=multiprocessors)

    assert torch.equal(drawn(4 * 2048, 4), drawn(4 * 2048, 132))
    assert not torch.equal(drawn(4 * 2048 + 1, 4), drawn(4 * 2048 + 1, 132))


def test_the_official_noise_is_normal() -> None:
    noise = draw_noise((16, 3, 60, 104), 42, "official", multiprocessors=8).double()
    assert noise.shape == (16, 3, 60, 104)
    assert noise.mean().abs() < 0.005
    assert noise.std().item() == pytest.approx(1, abs=0.005)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.06)
    assert noise.unique().numel() > 0.98 * noise.numel(), "streams of threads do not repeat"


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 5, 2**64 - 1])
def test_comfy_noise_is_what_core_draws(seed: int) -> None:
    generator = torch.manual_seed(seed)
    core = torch.randn([1, 16, 2, 4, 4], dtype=torch.float32, generator=generator, device="cpu")
    assert torch.equal(draw_noise((1, 16, 2, 4, 4), seed), core)


@pytest.mark.parametrize("layout", ["comfy", "official"])
def test_noise_leaves_the_global_generator_alone(layout: str) -> None:
    before = torch.get_rng_state()
    noise = draw_noise((1, 16, 1, 2, 2), 1, layout)
    assert noise.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed=-1 is not within 0 to 2\\*\\*64 - 1"),
        ({"seed": 2**64}, "is not within 0 to 2\\*\\*64 - 1; use one that is"),
        ({"layout": "cuda"}, "unknown noise 'cuda'; use one of comfy, official"),
        ({"layout": "official", "multiprocessors": 0}, "of 0 multiprocessors .* use 132 and 2048"),
        ({"layout": "official", "threads": 128}, "128 threads each runs no block of 256"),
    ],
)
def test_refusals(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_noise((4,), **{"seed": 0, **given})
