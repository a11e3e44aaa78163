"""What a run costs: operations against PyTorch's counter, calls against runs, memory against live tensors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from wanexperts.wan import cost
from wanexperts.wan.attention import Attention, sdpa
from wanexperts.wan.checkpoint import open_checkpoint
from wanexperts.wan.config import T2V_A14B, TINY, SamplingConfig, TransformerConfig
from wanexperts.wan.cost import forecast
from wanexperts.wan.cost.live import LiveBytes
from wanexperts.wan.cost.memory import _cpu_attention
from wanexperts.wan.guidance import Guidance, cfg, parse_guidance
from wanexperts.wan.plan import RunPlan, StageSpec
from wanexperts.wan.schedule import Schedule, make_schedule
from wanexperts.wan.shapes import LatentShape, latent_shape, token_grid
from wanexperts.wan.solvers import SOLVERS, START
from wanexperts.wan.transformer import DESIGNS, WanTransformer
from wanexperts.wan.vae import PLANS, DecodePlan, decode_bytes, tiny_bytes

from .tiny_files import write_tiny

A14B = T2V_A14B.transformer
META = torch.device("meta")
SMALL = TransformerConfig(dim=256, ffn_dim=688, num_heads=2, num_layers=3, text_dim=96)


def plan_of(
    schedule: Schedule, *scales: str, boundaries: tuple[float, ...] = (0.875, 0.0)
) -> RunPlan:
    """A plan of stages called high noise, low noise (or one by number)."""
    names = ["high noise", "low noise"] if len(scales) == 2 else list("123"[: len(scales)])
    stages = tuple(
        StageSpec(name=name, boundary=boundary, guidance=parse_guidance(scale))
        for name, boundary, scale in zip(names, boundaries, scales, strict=True)
    )
    return RunPlan(schedule=schedule, shift=12.0, stages=stages)


# Counted apart with FlopCounterMode on another implementation of the network (diffusers), in TFLOP.
TABLE = {
    (832, 480, 81): 1678.37,
    (1280, 720, 81): 6523.44,
    (1280, 720, 129): 14454.1,
    (1280, 720, 193): 29784.7,
}


@pytest.mark.parametrize(("size", "wanted"), TABLE.items())
def test_operations_of_a_published_shape(size: tuple[int, int, int], wanted: float) -> None:
    width, height, frames = size
    shape = latent_shape(frames, height, width, channels=16)
    assert float(f"{cost.forward_flops(A14B, _tokens(shape)) / 1e12:.6g}") == wanted


@pytest.mark.parametrize("config", [SMALL, TINY.transformer, replace(A14B, num_layers=2)])
def test_operations_equal_what_pytorch_counts(config: TransformerConfig) -> None:
    shape = latent_shape(9, 96, 160, channels=16)
    model = WanTransformer(config, device=META)
    x, context = torch.empty(1, *shape, device=META), torch.empty(1, 512, config.text_dim)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, torch.empty(1, device=META), context.to(META))
    assert cost.forward_flops(config, _tokens(shape)) == counter.get_total_flops()


def _tokens(shape: LatentShape) -> int:
    return token_grid(*shape[1:]).tokens


@pytest.mark.parametrize(
    ("solver", "scales", "wanted"),
    [
        ("unipc", ("4", "3"), (52, 28)),
        ("euler", ("1", "1"), (26, 14)),
        ("dpm++", ("4", "1"), (52, 14)),
        # Of 40 steps the last has no second evaluation; that of step 26 belongs to the next stage.
        ("heun", ("1", "1"), (26 * 2 - 1, 14 * 2 - 1 + 1)),
    ],
)
def test_calls_of_two_experts(
    solver: str, scales: tuple[str, str], wanted: tuple[int, int]
) -> None:
    schedule = make_schedule("unipc", steps=40, shift=12.0)
    levels = cost.evaluated_levels(solver, schedule.sigmas)
    stages = cost.count_forwards(plan_of(schedule, *scales), levels)
    assert tuple(stage.forwards for stage in stages) == wanted
    assert [stage.steps for stage in stages] == [26, 14]


def test_a_curve_is_guided_only_where_it_is_not_one() -> None:
    schedule = make_schedule("shifted", steps=10, shift=1.0)
    plan = plan_of(schedule, "1:4, 0.55:4, 0.5:1", boundaries=(0.0,))
    levels = cost.evaluated_levels("euler", schedule.sigmas)
    (stage,) = cost.count_forwards(plan, levels)
    assert stage.forwards == 5 * 2 + 5  # 1.0 to 0.6 are guided, 0.5 and below are not


def run(config: TransformerConfig, shape: LatentShape, dtype: torch.dtype, solver: str) -> Tensor:
    """Six guided steps of a real model on the CPU."""
    generator = torch.Generator().manual_seed(0)
    model = WanTransformer(config, dtype=dtype)
    contexts = torch.randn(2, 1, 512, config.text_dim, generator=generator)
    x = torch.randn(1, *shape, generator=generator)
    sigmas = make_schedule("unipc", steps=6, shift=5.0).sigmas

    def velocity(x: Tensor, sigma: float) -> Tensor:
        seen, at = x.to(dtype), torch.full((1,), 1000 * sigma)
        return cfg(model(seen, at, contexts[0]), model(seen, at, contexts[1]), 3.0)

    with torch.no_grad():
        state = START
        for step in range(6):
            x, state = SOLVERS[solver](velocity, x, sigmas, step, state)
    return x


def expert(config: TransformerConfig, dtype: torch.dtype) -> cost.Expert:
    """One that runs on a CPU."""
    return cost.Expert(config=config, dtype=dtype, device="cpu")


def allocated(work: Callable[[], object], weights: int = 0) -> int:
    """Peak of what PyTorch's own allocator gave to ``work``, kernels included, beside its weights."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = work()
    changes = [
        event.nbytes()
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    del kept
    return max(accumulate(changes)) - weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_traced_memory_is_that_of_a_run(dtype: torch.dtype, solver: str) -> None:
    shape = latent_shape(9, 128, 128, channels=16)
    weights = sum(p.nbytes for p in WanTransformer(SMALL, dtype=dtype, device=META).parameters())
    wanted = allocated(lambda: run(SMALL, shape, dtype, solver), weights)
    got = cost.step_bytes(expert(SMALL, dtype), shape, solver=solver).peak
    assert got == pytest.approx(wanted, rel=0.03)  # 1.6 to 1.9 %: the noise, which is kept here


@pytest.mark.parametrize(
    "work",
    [
        lambda half, wide: half * wide,
        lambda half, wide: half.mul_(wide[:, :1]),
        lambda half, wide: torch.addcmul(half, half, wide),
        lambda half, wide: torch.addcmul(wide, half, half, out=half),
        lambda half, wide: half + half,
        lambda half, wide: half.float() * wide,
    ],
)
def test_copies_of_a_cpu_are_counted_to_the_last_byte(
    work: Callable[[Tensor, Tensor], Tensor],
) -> None:
    half, wide = (torch.zeros(64, 96, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    with LiveBytes(device="cpu") as live:
        work(half.to(META), wide.to(META))
    moved = half.nbytes + wide.nbytes  # to the meta device
    assert live.peak - moved == allocated(lambda: work(half, wide))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("queries", "keys"), [(20, 512), (300, 70), (900, 900), (190, 77), (900, 601), (70, 63)]
)
def test_attention_on_a_cpu_is_counted_to_the_last_byte(
    dtype: torch.dtype, queries: int, keys: int
) -> None:
    def attend(attention: Attention, device: str) -> Tensor:
        q, k = (torch.zeros(2, n, 3, 64, dtype=dtype, device=device) for n in (queries, keys))
        return attention(q, k, k)

    with LiveBytes(device="cpu") as live:
        attend(_cpu_attention, "meta")
    assert live.peak == allocated(lambda: attend(sdpa, "cpu"))


def test_guidance_keeps_one_velocity_while_the_other_is_made() -> None:
    shape = latent_shape(81, 720, 1280, channels=16)
    guided, alone = (
        cost.step_bytes(expert(A14B, torch.bfloat16), shape, guided=guided).peak
        for guided in (True, False)
    )
    assert guided - alone == 4 * 16 * 21 * 90 * 160


def test_state_of_a_run_is_what_the_solver_remembers() -> None:
    shape = latent_shape(5, 64, 64, channels=16)
    latents = 4 * 16 * 2 * 8 * 8
    held = {
        name: cost.step_bytes(expert(SMALL, torch.float32), shape, solver=name).state / latents
        for name in ("unipc", "dpm++", "euler")
    }
    # x; UniPC besides two predictions and the sample it stepped from.
    assert held == {"unipc": 4, "dpm++": 2, "euler": 2}


@pytest.mark.parametrize("tokens_high", [16, 40])
def test_a_timed_block_foretells_a_forward(tokens_high: int) -> None:
    shape = LatentShape(16, 3, tokens_high, 40)
    model = WanTransformer(SMALL).eval()
    given = torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, 512, SMALL.text_dim)
    ratios = []
    for _ in range(5):  # other work on the machine must not decide
        measured = cost.time_block(
            SMALL, shape, torch.float32, torch.device("cpu"), clock=time.thread_time
        )
        ratios.append(measured.seconds / _seconds(model, given))
    # Measured: 0.93 to 1.05. The clock is that of this thread.
    assert min(abs(ratio - 1) for ratio in ratios) < 0.15


def _seconds(model: WanTransformer, given: tuple[Tensor, ...]) -> float:
    found = []
    with torch.no_grad():
        model(*given)
        for _ in range(3):
            start = time.thread_time()
            model(*given)
            found.append(time.thread_time() - start)
    return min(found)


def test_a_block_that_takes_too_long_is_timed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = LatentShape(16, 3, 40, 64)
    cpu, clock = torch.device("cpu"), time.thread_time
    whole = cost.time_block(SMALL, shape, torch.float32, cpu, clock=clock)
    monkeypatch.setattr("wanexperts.wan.cost.timing.TOO_LONG", 0.0)
    parts = cost.time_block(SMALL, shape, torch.float32, cpu, clock=clock)
    assert parts.seconds == pytest.approx(whole.seconds, rel=0.35)  # measured: within 10 %


def networks(dtype: torch.dtype = torch.bfloat16) -> cost.Networks:
    return cost.read_networks(None, None, dtype=dtype, device="cuda")


def test_the_published_family_at_720p() -> None:
    schedule = make_schedule("unipc", steps=40, shift=12.0)
    shape = latent_shape(81, 720, 1280, channels=16)
    told = cost.Measurement(seconds=10.0, flops=cost.forward_flops(A14B, 75600), source="a test")
    found = cost.make_forecast(
        plan_of(schedule, "4", "3"), networks(), shape, solver="unipc", measured=told
    )
    assert found.forwards == 80
    assert found.flops == pytest.approx(522e15, rel=1e-3)
    assert found.seconds == pytest.approx(800)
    assert [phase.name for phase in found.phases] == ["text", "sampling", "decoding"]
    # Published parameters: 14.288 billion, 5.68 billion, 126.9 million.
    weights = [phase.weights / 1e9 for phase in found.phases]
    assert weights == pytest.approx([11.36, 28.58, 0.254], rel=2e-3)
    assert found.latents == 19353600
    assert found.state == 3 * 4 * found.latents  # two in turn, one at the change of experts


@pytest.mark.parametrize(
    ("design", "device", "hidden"),
    [("exact", "cuda", 0), ("host", "cuda", 75600 * 5120 * 2), ("host", "cpu", 0)],
)
def test_what_the_host_holds_beside_the_weights(design: str, device: str, hidden: int) -> None:
    schedule = make_schedule("unipc", steps=40, shift=12.0)
    shape = latent_shape(81, 720, 1280, channels=16)
    given = replace(networks(), device=device, memory=DESIGNS[design])
    found = cost.make_forecast(plan_of(schedule, "4", "3"), given, shape, solver="unipc")
    latents = 4 * 16 * 21 * 90 * 160
    assert found.hidden == hidden
    # Three states of four latents each: the sample, and what UniPC remembers. Three latents beside.
    assert found.host == hidden + 3 * 4 * latents + 3 * latents
    assert found.image == 81 * 720 * 1280 * 3 * 4
    (told,) = (line for line in cost.forecast_lines(found) if line.startswith("memory of the host"))
    assert told.endswith("a few at a time, as one IMAGE they take 896 MB")
    if device == "cpu":
        assert "memory of the host: that of the device, which is the CPU; frames go" in told
    else:
        assert f"about {'1.06 GB' if hidden else '290 MB'} in sampling" in told
        assert ("774 MB hidden state" in told) == bool(hidden)
        assert "232 MB states on their way to the disk, 58.1 MB noise and latents" in told


def test_a_measurement_of_another_shape_is_scaled_by_operations() -> None:
    told = cost.Measurement(seconds=2.0, flops=100, source="a test")
    assert told.seconds_for(250) == 5.0


def test_what_was_measured_is_used_as_near_as_it_is() -> None:
    kept = cost.Measured()
    kept.keep("exact", 1, 1000, seconds=2.0, flops=100)
    kept.keep("exact", 1, 4000, seconds=9.0, flops=500)
    kept.keep("int8", 1, 2000, seconds=7.0, flops=220)
    same = kept.same("exact", 1, 1000)
    assert same == kept.nearest("exact", 1, 1000)
    assert same is not None
    assert (same.seconds, same.source) == (2.0, "the last run of this kind and size")
    # (clips, tokens of each) -> seconds of the nearest, and what is said of it.
    for size, wanted in {
        (1, 1900): (2.0, "a run of another size"),
        (1, 2100): (9.0, "a run of another size"),
        (2, 500): (2.0, "a run of another size"),
        (1, 8000): (9.0, "a run of another size"),
        (1, 8100): (9.0, "a run of another size, which may be far off"),
        (1, 36): (2.0, "a run of another size, which may be far off"),
    }.items():
        assert kept.same("exact", *size) is None
        found = kept.nearest("exact", *size)
        assert found is not None
        assert (found.seconds, found.source) == wanted
    assert kept.nearest("compiled", 1, 1000) is None
    kept.keep("exact", 1, 1000, seconds=3.0, flops=100)
    assert getattr(kept.same("exact", 1, 1000), "seconds", None) == 3.0


def test_measurements_do_not_pile_up() -> None:
    kept = cost.Measured()
    for number in range(200):
        kept.keep("first" if number < 100 else "last", 1, 10 + number, seconds=1.0, flops=1)
    assert kept.nearest("first", 1, 10) is None
    assert kept.same("last", 1, 209) is not None


def test_without_a_measurement_no_seconds_are_told() -> None:
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    shape = latent_shape(5, 64, 64, channels=16)
    found = cost.make_forecast(plan_of(schedule, "1", "1"), networks(), shape, solver="euler")
    assert found.seconds is None
    lines = cost.forecast_lines(found)
    assert any(line.startswith("time: not known") for line in lines)


def test_a_tiny_decoder_is_told_by_its_own_need(tmp_path: Path) -> None:
    tiny = open_checkpoint(write_tiny(tmp_path / "taew2_1.safetensors"), "vae")
    shape = latent_shape(5, 64, 96, channels=16)
    plan = plan_of(make_schedule("unipc", steps=4, shift=5.0), "1", "1")
    stood_in, own = (
        cost.make_forecast(
            plan,
            cost.read_networks(None, None, vae=vae, dtype=torch.bfloat16, device="cuda"),
            shape,
            solver="euler",
        ).phases[-1]
        for vae in (tiny, None)
    )
    assert stood_in.working == 4 * 16 * 2 * 8 * 12 + tiny_bytes(8, 12, torch.bfloat16)
    assert stood_in.working < own.working / 3


def test_decoding_is_told_in_the_dtype_and_plan_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(make_schedule("unipc", steps=4, shift=5.0), "1", "1")
    shape = latent_shape(5, 720, 1280, channels=16)

    def working(device: str) -> int:
        given = cost.read_networks(None, None, dtype=torch.bfloat16, device=device)
        found = cost.make_forecast(plan, given, shape, solver="euler")
        return found.phases[-1].working - found.latents

    def need(dtype: torch.dtype, way: DecodePlan) -> int:
        return decode_bytes(720, 1280, T2V_A14B.vae, dtype, way)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert working("cpu") == need(torch.float32, PLANS[0])
    assert working("cuda") == need(torch.bfloat16, PLANS[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(forecast, "device_bytes", lambda _: 44 * 10**8)
    assert working("cpu") == need(torch.float32, PLANS[0])
    assert working("cuda") == need(torch.bfloat16, PLANS[3])


def test_what_a_forecast_leaves_out_is_told() -> None:
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    shape = latent_shape(5, 64, 64, channels=16)
    alone = replace(networks(), text=None, vae=None)
    lines = {
        len(given.all): cost.forecast_lines(
            cost.make_forecast(plan_of(schedule, "1", "1"), given, shape, solver="euler")
        )
        for given in (networks(), alone)
    }
    told = "not counted: the text encoder, which runs before, the VAE, which runs after"
    assert lines[2][-1] == told
    assert not any(line.startswith("not counted") for line in lines[4])


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (130, "2 min 10 s"),
     (3599.7, "1 h 00 min"), (3900, "1 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float, wanted: str) -> None:
    assert cost.duration(seconds) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(28.577e9, "28.6 GB"), (0, "0 B"), (999.9e6, "1.00 GB"), (999, "999 B"), (1.5e3, "1.50 kB"),
     (9.996e9, "10.0 GB"), (522e15, "522 PB")],
)  # fmt: skip
def test_quantities(value: float, wanted: str) -> None:
    assert cost.quantity(value, "B") == wanted


OWN = SamplingConfig()


def told(
    plan: RunPlan | None = None,
    *,
    size: tuple[int, int, int] = (81, 720, 1280),
    own: SamplingConfig = OWN,
    **given: object,
) -> list[str]:
    """What is told of a run; the official one unless something is given."""
    plan = plan or plan_of(make_schedule("unipc", steps=40, shift=12.0), "4", "3")
    shape = latent_shape(*size, channels=16)
    return list(cost.advice(plan, cost.Circumstances(own=own, shape=shape, **given)))


def test_the_official_runs_need_no_advice() -> None:
    assert not told(fps=16, negative=True, loras={"high noise": 1, "low noise": 1})
    assert not told(size=(81, 480, 832))
    fast = replace(plan_of(make_schedule("lightning", steps=4, shift=5.0), "1", "1"), shift=5.0)
    assert not told(fast)
    assert not told(size=(17, 64, 64), own=TINY.sampling)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": (121, 720, 1280)}, "121 frames are more than the 81"),
        ({"size": (81, 240, 320)}, "320x240 is smaller"),
        ({"size": (81, 1088, 1920)}, "1920x1088 is larger"),
        ({"fps": 24}, "1.5 times faster"),
        ({"fps": 8}, "2 times slower"),
        ({"loras": {"high noise": 1, "low noise": 0}}, "low noise has none"),
        ({"own": replace(OWN, shift=3.0)}, "shift 12 is unusual for this model, whose own is 3"),
    ],
)
def test_what_looks_odd_is_told_in_one_sentence(given: dict[str, object], words: str) -> None:
    (sentence,) = told(**given)
    assert words in sentence


def test_an_unread_negative_prompt_and_a_wrong_shift_of_few_steps_are_told() -> None:
    plan = plan_of(make_schedule("shifted", steps=4, shift=12.0), "1", "1")
    assert "negative prompt is not read" in told(plan, negative=True)[1]
    assert "unusual for 4 steps" in told(plan)[0]


def test_the_shift_of_few_steps_is_not_odd_for_a_guided_phase_before_them() -> None:
    schedule = make_schedule("shifted", steps=8, shift=3.0)
    ends = ((0.965, "3.5"), (0.8, "1"), (0.0, "1"))
    stages = tuple(
        StageSpec(name=f"{end:g}", boundary=end, guidance=parse_guidance(scale))
        for end, scale in ends
    )
    assert not told(RunPlan(schedule=schedule, shift=3.0, stages=stages))


def test_guidance_of_a_step_decides_not_that_of_its_stage() -> None:
    stage = StageSpec(name="all", boundary=0.0, guidance=Guidance(((0.5, 4.0), (0.4, 1.0))))
    schedule = make_schedule("shifted", steps=40, shift=12.0)
    plan = RunPlan(schedule=schedule, shift=12.0, stages=(stage,))
    assert not told(plan, negative=True)
