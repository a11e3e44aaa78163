"""Experts whose blocks come from disk as they run: the same bits, few buffers, and a thread that ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from wanexperts.tests.helpers import random_state
from wanexperts.tests.wan.family import EXPERT, write_family
from wanexperts.wan.checkpoint import load_transformer, open_checkpoint
from wanexperts.wan.checkpoint.ahead import ReadAhead
from wanexperts.wan.checkpoint.ring import Ring
from wanexperts.wan.checkpoint.stream import block_loads, in_order, load_streamed
from wanexperts.wan.cli import build_parser
from wanexperts.wan.cli.generate import open_pipeline
from wanexperts.wan.lora import apply_loras, parameter_shapes, read_lora, resolve
from wanexperts.wan.pipeline import Pipeline, Request, source
from wanexperts.wan.pipeline.source import Streamed, Whole, check_stream, open_source
from wanexperts.wan.sampling import Progress
from wanexperts.wan.solvers import evaluated
from wanexperts.wan.switch import Switch
from wanexperts.wan.transformer import Text, WanTransformer

CPU = torch.device("cpu")
CONFIG = replace(EXPERT, dim=256, num_heads=2, num_layers=4)
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(WanTransformer(CONFIG), 5)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("wan ")]


def as_bf16(folder: Path, state: dict[str, Tensor]) -> Path:
    save_file({key: value.to(BF16) for key, value in state.items()}, folder / "a.safetensors")
    return folder / "a.safetensors"


def as_fp32(folder: Path, state: dict[str, Tensor]) -> Path:
    # Headers of any length shift the weights within the 64 bytes that kernels may look at.
    path = folder / "a.safetensors"
    for length in range(64):
        save_file(state, path, metadata={"note": "x" * length})
        if open_checkpoint(path).tensors["blocks.1.ffn.0.weight"].begin % 64 == 24:
            return path
    raise AssertionError("no such header")


def as_fp8(folder: Path, state: dict[str, Tensor]) -> Path:
    layouts = pytest.importorskip("wanexperts.tests.parity.layouts")
    packed = layouts.Scaled(dtype=torch.float8_e4m3fn, shape=(-1, 1), leaf="weight_scale")
    return layouts.single(folder / "a.safetensors", state, packed).path


def as_gguf(folder: Path, state: dict[str, Tensor]) -> Path:
    layouts = pytest.importorskip("wanexperts.tests.parity.layouts")
    kind = layouts.gguf_kind(layouts.Kind.Q8_0)
    return layouts.gguf_file(folder / "a.gguf", "wan", state, kind, fold=True).path


def as_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    layouts = pytest.importorskip("wanexperts.tests.parity.layouts")
    return layouts.sharded(folder / "a", state, layouts.plain(BF16), size=900_000).path


def inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, *(shape or (2, 8, 6)), generator=generator)
    return x, torch.tensor([613.0]), torch.randn(1, 7, CONFIG.text_dim, generator=generator)


def write_lora(path: Path) -> Path:
    """A LoRA on the feed-forward of one block, and on the modulation of another."""
    generator = torch.Generator().manual_seed(2)
    name = "diffusion_model.blocks.2.ffn.0"
    factors = {
        f"{name}.lora_up.weight": torch.randn(CONFIG.ffn_dim, 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, CONFIG.dim, generator=generator),
        "diffusion_model.blocks.1.modulation.diff": torch.randn(
            1, 6, CONFIG.dim, generator=generator
        ),
    }
    save_file(factors, path)
    return path


def with_lora(model: WanTransformer, path: Path) -> None:
    section = read_lora(path).section("high_noise")
    assert section is not None
    resolved = resolve(section, parameter_shapes(model))
    assert len(resolved.deltas) == 2
    apply_loras(model, [(resolved, 0.7)])


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("write", [as_bf16, as_fp32, as_fp8, as_gguf, as_shards])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["f32", "b16"])
def test_streamed_is_resident_bit_for_bit(
    tmp_path: Path, state, write: Callable, dtype: torch.dtype, lora: bool
) -> None:
    path = write(tmp_path, state)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    checkpoint = open_checkpoint(path)
    loads = block_loads(checkpoint, CPU)
    resident = load_transformer(path, dtype=dtype)
    with Ring(max(load.nbytes for load in loads), CPU) as ring, torch.no_grad():
        streamed, _ = load_streamed(path, loads, ring, CPU, dtype)
        x, at, context = inputs()
        wanted = resident(x.to(dtype), at, context)
        if lora:
            file = write_lora(tmp_path / "lora.safetensors")
            with_lora(resident, file)
            with_lora(streamed, file)
            bare, wanted = wanted, resident(x.to(dtype), at, context)
            assert not torch.equal(bare, wanted)
        pointers = set()
        for block in streamed.blocks:
            block.register_forward_hook(lambda *_: pointers.add(_buffer(ring)))
        for _ in range(3):
            assert torch.equal(streamed(x.to(dtype), at, context), wanted)
        assert len(pointers) == 2  # no others were ever taken
        # The product of one row and a matrix does depend on where the matrix lies.
        x, at, context = inputs(1, 2, 2)
        both = [model(x.to(dtype), at, context) for model in (resident, streamed)]
        assert torch.equal(*both)
    assert all(file.read_bytes() == data for file, data in before.items())


def _buffer(ring: Ring) -> int:
    """The address of the buffer that was taken."""
    return next(slot.buffer.data_ptr() for slot in ring._slots if slot.load is ring._wanted[0])


def test_a_block_has_its_weights_only_while_it_runs(tmp_path: Path, state) -> None:
    path = as_bf16(tmp_path, state)
    loads = block_loads(open_checkpoint(path), CPU)
    with Ring(max(load.nbytes for load in loads), CPU) as ring, torch.no_grad():
        model, _ = load_streamed(path, loads, ring, CPU, BF16)
        mapped = {name: value.data_ptr() for name, value in model.named_parameters()}
        inside: list[int] = []

        def look(*_: object) -> None:
            inside.append(model.blocks[1].ffn[0].weight.data_ptr())

        model.blocks[1].register_forward_pre_hook(look)
        x, at, context = inputs()
        model(x.to(BF16), at, context)
        assert {name: value.data_ptr() for name, value in model.named_parameters()} == mapped
        places = [(s.buffer.data_ptr(), s.buffer.nbytes) for s in ring._slots]
        assert any(begin <= inside[0] < begin + size for begin, size in places)


def test_weights_that_read_a_text_stay_on_disk_once_it_is_read(tmp_path: Path, state) -> None:
    path = as_bf16(tmp_path, state)
    loads = block_loads(open_checkpoint(path), CPU)
    resident = load_transformer(path, dtype=BF16)
    sizes = {key: value.numel() * BF16.itemsize for key, value in state.items() if "blocks." in key}
    readers = ("cross_attn.k.", "cross_attn.v.", "cross_attn.norm_k.")
    rest = sum(size for key, size in sizes.items() if key.split(".", 2)[2].startswith(readers))
    x, at, context = inputs()

    with Ring(max(load.nbytes for load in loads), CPU) as ring, torch.no_grad():
        streamed, _ = load_streamed(path, loads, ring, CPU, BF16)

        def forward(text: Text, other: Text) -> int:
            """Bytes read by it and for the first block after it."""
            before = ring.read
            assert torch.equal(streamed(x.to(BF16), at, text), resident(x.to(BF16), at, other))
            until = time.monotonic() + 10
            while not all(slot.ready for slot in ring._slots) and time.monotonic() < until:
                time.sleep(0.001)
            return ring.read - before

        texts = [(streamed.read(c, BF16), resident.read(c, BF16)) for c in (context, context + 1)]
        first = forward(*texts[0])
        assert first > sum(sizes.values())
        forward(*texts[0])  # the first block had come whole
        assert forward(*texts[0]) == sum(sizes.values()) - rest
        assert forward(*texts[1]) >= sum(sizes.values())  # another text is read


def _three_blocks(folder: Path) -> dict[str, Path]:
    """A family whose experts have more blocks than a ring has buffers."""
    parts = write_family(folder)
    for seed, part in enumerate(("high", "low"), 1):
        expert = random_state(WanTransformer(replace(EXPERT, num_layers=3)), seed)
        save_file(expert, parts[part], metadata={"wan_role": f"{part}_noise"})
    return parts


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    return _three_blocks(tmp_path)


def request_of(
    pipeline: Pipeline, solver: str = "unipc", steps: int = 4, switch: int = 2
) -> Request:
    sampling = replace(
        pipeline.defaults, steps=steps, num_frames=5, height=32, width=48, solver=solver
    )
    return Request(
        prompt="a red circle moves left", sampling=sampling, switch=Switch("step", switch)
    )


@pytest.fixture
def rings(monkeypatch) -> list[Ring]:
    """All rings that a pipeline makes."""
    made: list[Ring] = []

    def make(nbytes: int, device: torch.device) -> Ring:
        made.append(Ring(nbytes, device))
        return made[-1]

    monkeypatch.setattr(source, "Ring", make)
    return made


@pytest.mark.parametrize(
    ("solver", "switch"), [("unipc", 2), ("heun", 1), ("euler", 4), ("dpm++", 0)]
)
def test_a_run_reads_no_block_more_often_than_it_runs(
    parts, rings, solver: str, switch: int
) -> None:
    pipeline = Pipeline.load(**parts, device="cpu", stream="never")
    request = request_of(pipeline, solver, switch=switch)
    wanted = pipeline.sample(request)
    assert not rings
    pipeline = replace(pipeline, stream="always")
    assert torch.equal(pipeline.sample(request), wanted)
    (ring,) = rings
    plan = pipeline.plan(request)
    levels = [level for step in range(4) for level in evaluated(solver, plan.schedule.sigmas, step)]
    loads = block_loads(pipeline.high, CPU)
    block = sum(piece.info.nbytes for load in loads for piece in load.pieces)
    # Both prompts of every evaluation, and nothing for no use; a block that is still there is not read.
    assert block <= ring.read <= 2 * len(levels) * block


def test_the_next_expert_is_there_before_it_is_asked_for(parts, rings) -> None:
    pipeline = Pipeline.load(**parts, device="cpu", stream="always")
    seen: dict[int, set[str]] = {}

    def look(progress: Progress) -> None:
        until = time.monotonic() + 10
        while not all(slot.ready for slot in rings[0]._slots) and time.monotonic() < until:
            time.sleep(0.001)
        loads = [slot.load for slot in rings[0]._slots if slot.load is not None]
        seen[progress.step] = {load.pieces[0].info.file.stem for load in loads}

    pipeline.sample(request_of(pipeline, solver="euler"), look)
    # After the last block of the high-noise expert comes the first of the other one.
    assert seen[1] == {"high"}
    assert seen[2] == {"high", "low"}
    assert seen[3] == {"low"}


def test_an_interrupt_ends_the_thread(parts, rings) -> None:
    pipeline = Pipeline.load(**parts, device="cpu", stream="always")

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.sample(request_of(pipeline), stop)
    assert len(rings) == 1
    with pytest.raises(RuntimeError, match="closed"):
        rings[0].take(block_loads(pipeline.high, CPU)[0])


def test_a_file_that_becomes_shorter_is_told(parts, rings) -> None:
    pipeline = Pipeline.load(**parts, device="cpu", stream="always")

    def cut(_: object) -> None:
        with parts["high"].open("r+b") as file:
            file.truncate(200_000)

    with pytest.raises(
        ValueError, match=r"high\.safetensors became shorter while it was in use; put"
    ):
        pipeline.sample(request_of(pipeline), cut)
    assert len(rings) == 1


def test_a_file_that_vanishes_is_told(parts) -> None:
    pipeline = Pipeline.load(**parts, device="cpu", stream="always")

    def lose(_: object) -> None:
        parts["low"].unlink(missing_ok=True)

    with pytest.raises(OSError, match=r"low\.safetensors"):
        pipeline.sample(request_of(pipeline), lose)


def test_a_ring_tells_what_cannot_be_read(tmp_path: Path, state) -> None:
    path = as_bf16(tmp_path, state)
    loads = block_loads(open_checkpoint(path), CPU)
    size = max(load.nbytes for load in loads)
    with Ring(size, CPU) as ring:
        ring.take(loads[0])
        with path.open("r+b") as file:
            file.truncate(loads[2].pieces[0].info.begin + 10)
        ring.take(loads[1])
        for _ in range(2):  # and goes on telling it
            with pytest.raises(ValueError, match="became shorter while it was in use"):
                ring.take(loads[2])
    path.unlink()
    with (
        Ring(size, CPU) as ring,
        pytest.raises(OSError, match=r"a\.safetensors cannot be read any more"),
    ):
        ring.take(loads[0])


def test_a_ring_follows_another_order(tmp_path: Path, state) -> None:
    path = as_bf16(tmp_path, state)
    loads = block_loads(open_checkpoint(path), CPU)
    data = path.read_bytes()
    with Ring(max(load.nbytes for load in loads), CPU) as ring:
        for index in (0, 1, 3, 2, 2, 0, 3, 1):
            buffer = ring.take(loads[index], [loads[(index + 1) % 4]])
            for piece in loads[index].pieces:
                begin = piece.info.begin
                stored = data[begin : begin + piece.info.nbytes]
                assert buffer[piece.at : piece.end].numpy().tobytes() == stored


def test_who_streams(parts, tmp_path: Path, monkeypatch, caplog) -> None:
    experts = {part: open_checkpoint(parts[part]) for part in ("high", "low")}

    def kind(device: str, stream: str = "auto") -> type:
        opened = open_source(experts, torch.device(device), stream=stream, working=1000)
        opened.close()
        return type(opened)

    assert kind("cpu") is Whole
    assert kind("cpu", "always") is Streamed
    largest = max(expert.nbytes for expert in experts.values())
    told = tmp_path / "meminfo"
    monkeypatch.setattr(source, "MEMORY", told)
    assert kind("cpu") is Whole  # nobody tells
    for free, wanted in (((largest + 1000) // 1024 + 1, Whole), (largest // 1024, Streamed)):
        told.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free} kB\n")
        assert kind("cpu") is wanted
    assert kind("cpu", "never") is Whole
    assert kind("mps") is Whole
    with pytest.raises(ValueError, match="blocks cannot be streamed to mps; use cpu or cuda, or"):
        check_stream("always", experts, torch.device("mps"))
    with pytest.raises(
        ValueError, match="unknown stream='sometimes'; use one of auto, always, never"
    ):
        check_stream("sometimes", experts, CPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (largest + 1000, 10**12))
    assert kind("cuda") is Whole
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (largest + 999, 10**12))
    monkeypatch.setattr(source, "Ring", lambda nbytes, _: Ring(nbytes, CPU))
    with caplog.at_level(logging.WARNING):
        assert kind("cuda") is Streamed
    assert "does not fit the 0.0 GB that are free on cuda: its blocks are read" in caplog.text


def test_torch_files_are_not_streamed(parts, tmp_path: Path, monkeypatch) -> None:
    expert = WanTransformer(replace(EXPERT, num_layers=3))
    torch.save(random_state(expert, 1), tmp_path / "high.pth")
    files = parts | {"high": tmp_path / "high.pth"}
    with pytest.raises(
        ValueError, match=r"high\.pth is a torch file, which cannot be read block by"
    ):
        Pipeline.load(**files, stream="always")
    monkeypatch.setattr(source, "free_memory", lambda _: 1)
    experts = {part: open_checkpoint(files[part]) for part in ("high", "low")}
    opened = open_source(experts, CPU, stream="auto", working=0)
    assert isinstance(opened, Whole)
    assert opened.load("high", torch.float32).dtype == torch.float32
    opened.close()


def test_reading_ahead_reads_all_once_and_ends(tmp_path: Path, state) -> None:
    path = as_bf16(tmp_path, state)
    infos = in_order(open_checkpoint(path))
    assert sum(info.nbytes for info in infos) == sum(2 * value.numel() for value in state.values())
    first = len(infos) - sum(len(load.pieces) for load in block_loads(open_checkpoint(path), CPU))
    assert not any(info.name.startswith("blocks.") for info in infos[:first])
    assert [int(info.name.split(".")[1]) for info in infos[first:]] == sorted(
        int(info.name.split(".")[1]) for info in infos[first:]
    )
    ahead = ReadAhead(infos)
    ahead.wait()
    ahead.close()
    path.unlink()
    gone = ReadAhead(infos)  # whoever needs the file will say that it is gone
    gone.wait()
    gone.close()


def test_the_command_line_passes_it_on(parts) -> None:
    files = [word for part, path in parts.items() for word in (f"--{part}", str(path))]
    command = ["generate", "--prompt", "a", "--out", "a.mp4", *files]
    assert open_pipeline(build_parser().parse_args(command)).stream == "auto"
    chosen = build_parser().parse_args([*command, "--stream", "always"])
    assert open_pipeline(chosen).stream == "always"
