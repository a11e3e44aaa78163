"""Runs of the pipeline that end before their time: killed, interrupted, broken, without memory."""

from __future__ import annotations

import gc
import json
import logging
import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from wanexperts.tests.helpers import relative
from wanexperts.tests.wan import killed
from wanexperts.tests.wan.family import SMALL_VAE, write_expert, write_family
from wanexperts.tests.wan.test_pipeline_lora import write_lora
from wanexperts.wan.attention import plain, sdpa
from wanexperts.wan.checkpoint import load_text_encoder, load_transformer
from wanexperts.wan.config import NEGATIVE_PROMPT
from wanexperts.wan.files import read_header
from wanexperts.wan.guidance import Guidance, cfg, parse_guidance
from wanexperts.wan.noise import draw_noise
from wanexperts.wan.pipeline import Keep, LoraUse, Phase, Pipeline, Request, make_plan
from wanexperts.wan.pipeline.keys import branch_points
from wanexperts.wan.schedule import make_schedule
from wanexperts.wan.solvers import SOLVERS, SolverState
from wanexperts.wan.state import Store
from wanexperts.wan.switch import Switch
from wanexperts.wan.text import encode_prompt
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import denormalize

PROMPT = "a red circle moves left"
STEPS = 4


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def pipeline(parts: dict[str, Path]) -> Pipeline:
    return Pipeline.load(**parts, device="cpu")


@pytest.fixture
def read() -> Iterator[list[str]]:
    """Names of the weights as they are read."""
    names: list[str] = []

    class Journal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("reading "):
                names.append(Path(message).stem)

    logger, handler = logging.getLogger("wanexperts.wan.pipeline"), Journal()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield names
    logger.removeHandler(handler)
    logger.setLevel(level)


def _request(pipeline: Pipeline, **changed: object) -> Request:
    settings = {"steps": STEPS}
    own: dict[str, object] = {"prompt": PROMPT, "switch": Switch("step", 2)}
    names = {field.name for field in fields(pipeline.defaults)}
    for name, value in changed.items():
        (own if isinstance(value, Guidance) or name not in names else settings)[name] = value
    return Request(sampling=replace(pipeline.defaults, **settings), **own)


def _keep(folder: Path, **changed: object) -> Keep:
    return Keep(store=Store(folder=folder / "runs"), **changed)


class Stop(Exception):
    pass


def _stop_at(step: int) -> Callable[[object], None]:
    def callback(progress) -> None:
        if progress.step == step:
            raise Stop

    return callback


# Killed


@pytest.fixture(scope="module")
def killed_runs(parts, tmp_path_factory) -> dict[str, dict]:
    command = [sys.executable, killed.__file__, parts["high"].parent, tmp_path_factory.mktemp("k")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", killed.cases())
def test_a_killed_run_ends_with_the_same_bits(killed_runs: dict[str, dict], case: str) -> None:
    run, (_, deaths) = killed_runs[case], killed.cases()[case]
    assert run["ends"] == [signal.SIGKILL] * len(deaths) + [0]
    assert run["equal"]
    assert set(run["left"]) <= {"branch.state", "latent"}, "states of a finished run are removed"


@pytest.mark.parametrize("solver", SOLVERS)
def test_killed_runs_do_go_on(killed_runs: dict[str, dict], solver: str) -> None:
    """At the callback of step k the state after step k may not be written yet, that after k - 1 mostly is."""
    starts = []
    for told in killed_runs[f"{solver}, every step"]["told"]:
        starts += [int(line.split()[4]) for line in told if line.startswith("going on after step")]
    assert starts == sorted(starts)
    assert starts[-1] >= 1


def test_a_write_that_was_killed_leaves_what_was_there(killed_runs: dict[str, dict]) -> None:
    for moment in ("half written", "not on disk", "before its name"):
        for number in range(2, STEPS + 2):
            told = killed_runs[f"file {number} {moment}"]["told"][-1]
            assert told[0].startswith(f"going on after step {number - 1} of {STEPS}")
    for number in range(1, STEPS + 1):
        told = killed_runs[f"file {number} after its name"]["told"][-1]
        assert told[0].startswith(f"going on after step {number} of {STEPS}")
    (told,) = killed_runs[f"file {STEPS + 1} after its name"]["told"][-1]
    assert told.startswith("this run was finished before; its latents are in ")


# Going on


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_an_interrupted_run_goes_on_from_that_very_step(
    pipeline: Pipeline, tmp_path: Path, step: int, caplog
) -> None:
    request = _request(pipeline)
    with pytest.raises(Stop):
        pipeline.sample(request, _stop_at(step), keep=_keep(tmp_path))
    seen: list[int] = []
    got = pipeline.sample(request, lambda p: seen.append(p.step), keep=_keep(tmp_path))
    assert seen == list(range(step + 1, STEPS + 1))
    assert f"going on after step {step} of {STEPS}" in caplog.messages
    assert torch.equal(got, pipeline.sample(request))


def test_a_finished_run_is_not_run_again_unless_asked(
    pipeline: Pipeline, tmp_path: Path, read: list[str]
) -> None:
    request = _request(pipeline)
    first = pipeline.sample(request, keep=_keep(tmp_path))
    assert read == ["text", "high", "low"]
    assert torch.equal(pipeline.sample(request, keep=_keep(tmp_path)), first)
    assert read == ["text", "high", "low"]
    assert torch.equal(pipeline.sample(request, keep=_keep(tmp_path, fresh=True)), first)
    assert read == ["text", "high", "low"] * 2
    with pytest.raises(Stop):
        pipeline.sample(request, _stop_at(1), keep=_keep(tmp_path, fresh=True))
    seen: list[int] = []
    pipeline.sample(request, lambda p: seen.append(p.step), keep=_keep(tmp_path))
    assert seen == [2, 3, 4], "what was there before is forgotten, not only overlooked"


def test_final_latents_are_on_the_disk_before_decoding_starts(
    pipeline: Pipeline, tmp_path: Path, read: list[str]
) -> None:
    request, keep = _request(pipeline), _keep(tmp_path, manifest={"prompt": PROMPT})
    latents = pipeline.sample(request, keep=keep)
    assert read[-1] == "low", "the VAE was not read yet"
    (path,) = keep.store.folder.glob("*.latent")
    assert json.loads(read_header(path).metadata["wan"]) == {"prompt": PROMPT}
    kept = keep.store.latents(read_header(path).metadata["wan_run"])
    assert kept is not None
    assert torch.equal(kept, latents)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a blue square"},
        {"negative_prompt": "blue"},
        {"seed": 1},
        {"noise": "official"},
        {"shift": 4.0},
        {"steps": STEPS + 1},
        {"solver": "euler"},
        {"schedule": "dpm++"},
        {"num_frames": 9},
        {"height": 48},
        {"guidance_high": Guidance.constant(2.5)},
        {"guidance_high": parse_guidance("1:2, 0.9:2.5")},
        {"switch": Switch("step", 1)},
        {"switch": Switch("step", 3)},
    ],
    ids=str,
)  # fmt: skip
def test_another_run_does_not_go_on_from_this_one(
    pipeline: Pipeline, tmp_path: Path, changed: dict
) -> None:
    with pytest.raises(Stop):
        pipeline.sample(_request(pipeline), _stop_at(3), keep=_keep(tmp_path))
    seen: list[int] = []
    other = _request(pipeline, **changed)
    got = pipeline.sample(other, lambda p: seen.append(p.step), keep=_keep(tmp_path))
    assert seen[0] == 1
    assert torch.equal(got, pipeline.sample(other))


def test_other_weights_and_loras_are_another_run(parts, pipeline, tmp_path: Path) -> None:
    request = _request(pipeline)
    with pytest.raises(Stop):
        pipeline.sample(request, _stop_at(3), keep=_keep(tmp_path))
    high = write_expert(tmp_path / "high.safetensors", "high_noise", 9)
    lora = write_lora(tmp_path / "style_high_noise.safetensors", 1)
    others = [
        Pipeline.load(**(parts | {"high": high}), device="cpu"),
        pipeline.with_loras([LoraUse(path=lora)]),
        Pipeline.load(**parts, device="cpu", dtype=torch.bfloat16),
    ]
    for other in others:
        seen: list[int] = []
        other.sample(request, lambda p, seen=seen: seen.append(p.step), keep=_keep(tmp_path))
        assert seen[0] == 1


# Branches


@pytest.mark.parametrize("solver", SOLVERS)
def test_another_low_stage_goes_on_from_the_high_one(
    pipeline: Pipeline, parts, tmp_path: Path, read: list[str], solver: str, caplog
) -> None:
    """Another low expert, LoRA or guidance: the steps before it are not run again."""
    pipeline.sample(_request(pipeline, solver=solver), keep=_keep(tmp_path))
    lora = write_lora(tmp_path / "style_low_noise.safetensors", 1)
    low = write_expert(tmp_path / "low.safetensors", "low_noise", 9)
    others = {
        "guidance": (pipeline, {"guidance_low": 1.0}),
        "curve": (pipeline, {"guidance_low": parse_guidance("0.9:3, 0.1:1")}),
        "lora": (pipeline.with_loras([LoraUse(path=lora)]), {}),
        "expert": (Pipeline.load(**(parts | {"low": low}), device="cpu"), {}),
    }
    begin = 1 if solver == "heun" else 2
    for other, changed in others.values():
        request, seen = _request(pipeline, solver=solver, **changed), []
        caplog.clear()
        read.clear()
        got = other.sample(request, lambda p, seen=seen: seen.append(p.step), keep=_keep(tmp_path))
        # Heun's second step looks at the level of the low-noise expert: only the first one is common.
        assert seen == list(range(begin + 1, STEPS + 1))
        assert read == (["text", "high", "low"] if solver == "heun" else ["text", "low"])
        told = f"going on after step {begin} of {STEPS}, of a run with the same beginning"
        assert told in caplog.messages
        assert torch.equal(got, other.sample(request))


def test_branch_points_are_where_stages_change(pipeline: Pipeline) -> None:
    def points(**changed: object) -> list[int]:
        plan = make_plan(_request(pipeline, **changed), 16)
        return branch_points(plan.run, plan.solver)

    assert points(switch=Switch("step", 3)) == [3]
    assert points(switch=Switch("step", 3), solver="heun") == [2]
    assert points(switch=Switch("step", 1), solver="heun") == []
    assert points(switch=Switch("step", 0)) == points(switch=Switch("step", STEPS)) == []
    assert points(phases=_three()) == [1, 3]


# Any number of phases


def _three(loras: float = 0.0) -> tuple[Phase, ...]:
    return (
        Phase(
            expert="high", guidance=Guidance.constant(3.5), switch=Switch("step", 1), loras=loras
        ),
        Phase(expert="high", guidance=Guidance.constant(1.0), switch=Switch("step", 3)),
        Phase(expert="low", guidance=parse_guidance("1:3, 0:1")),
    )


@torch.no_grad()
def test_phases_equal_the_composition_by_hand(pipeline: Pipeline, parts, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "style_high_noise.safetensors", 1)
    distilled = pipeline.with_loras([LoraUse(path=lora, strength=0.5)])
    request = _request(pipeline, phases=_three(), solver="euler", schedule="shifted")
    got = distilled.sample(request)

    encoder, tokenizer = load_text_encoder(parts["text"])
    texts = [encode_prompt(encoder, tokenizer, text) for text in (PROMPT, NEGATIVE_PROMPT)]
    schedule = make_schedule("shifted", steps=STEPS, shift=request.sampling.shift)
    x, state = draw_noise((1, 16, 2, 4, 6), 0), SolverState()
    for step in range(STEPS):
        if step == 1:
            changed = next(iter(distilled.loras["high"]))[0].deltas
            ((name, delta),) = changed.items()
        model = load_transformer(parts["low" if step == 3 else "high"])
        if step in (1, 2):
            weight = model.get_parameter(name)
            weight.data = delta.apply(weight.data, 0.5)
        sigma = schedule.sigmas[step].item()
        scale = [3.5, 1.0, 1.0, 1 + 2 * sigma][step]

        def velocity(x: Tensor, sigma: float, model=model, scale=scale) -> Tensor:
            both = [model(x, torch.tensor([1000 * sigma]), text) for text in texts]
            return cfg(*both, scale)

        x, state = SOLVERS["euler"](velocity, x, schedule.sigmas, step, state)
    torch.testing.assert_close(got, denormalize(x, SMALL_VAE), rtol=1e-5, atol=1e-5)
    assert not torch.equal(distilled.sample(replace(request, phases=_three(1.0))), got)


# Broken numbers and missing memory


def _flawed(
    monkeypatch: pytest.MonkeyPatch, step: int, fails: Callable[[WanTransformer], object]
) -> list[str]:
    """Experts that fail at one step where ``fails`` says so: NaN for True, or the error it returns."""
    calls: list[str] = []
    forward = WanTransformer.forward

    def broken(self: WanTransformer, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        out = forward(self, x, timestep, context)
        if timestep[0].item() != _timesteps()[step]:
            return out
        failure = fails(self)
        if isinstance(failure, Exception):
            calls.append("no memory")
            raise failure
        calls.append("bad" if failure else "good")
        if failure:
            out[0, 3, 1, 2, 2] = math.nan
        return out

    monkeypatch.setattr(WanTransformer, "forward", broken)
    return calls


def _timesteps() -> list[float]:
    return make_schedule("unipc", steps=STEPS, shift=5.0).timesteps.tolist()


def _attention(model: WanTransformer) -> object:
    return model.blocks[0].self_attn.attention


@pytest.mark.parametrize("step", range(STEPS))
def test_a_step_that_fails_in_fused_attention_is_recovered(
    pipeline: Pipeline, monkeypatch, step: int, caplog
) -> None:
    request = _request(pipeline)
    wanted = pipeline.sample(request)
    calls = _flawed(monkeypatch, step, lambda model: _attention(model) is sdpa)
    got = pipeline.sample(request)
    assert relative(got, wanted) < 1e-5, "plain attention rounds elsewhere; 4e-7 measured"
    assert calls == ["bad"] * 2 + ["good"] * 2
    (told,) = (m for m in caplog.messages if m.startswith("step"))
    assert told.startswith(f"step {step + 1} of {STEPS} (sigma ")
    assert told.endswith(
        "gave NaN or infinity in 1 of 2 latent frames; it is done again with plain attention"
    )


@pytest.mark.parametrize("step", range(STEPS))
def test_a_step_that_fails_in_bfloat16_is_recovered_in_float32(
    parts, monkeypatch, step: int, caplog
) -> None:
    pipeline = Pipeline.load(**parts, device="cpu", dtype=torch.bfloat16)
    request = _request(pipeline)
    wanted = pipeline.sample(request)
    calls = _flawed(monkeypatch, step, lambda model: model.dtype == torch.bfloat16)
    got = pipeline.sample(request)
    assert torch.isfinite(got).all()
    assert relative(got, wanted) < 0.1, "one step in another precision; at most 0.02 measured"
    assert calls == ["bad"] * 4 + ["good"] * 2
    assert [m.rpartition(" with ")[2] for m in caplog.messages if m.startswith("step")] == [
        "plain attention", "float32",
    ]  # fmt: skip


@pytest.mark.parametrize("step", range(STEPS))
def test_where_nothing_helps_the_last_good_latents_can_be_decoded(
    pipeline: Pipeline, monkeypatch, tmp_path: Path, step: int
) -> None:
    keep, seen = _keep(tmp_path), []
    _flawed(monkeypatch, step, lambda model: True)
    with pytest.raises(FloatingPointError) as stop:
        pipeline.sample(_request(pipeline), seen.append, keep=keep)
    told = str(stop.value)
    assert told.startswith(f"step {step + 1} of {STEPS} (sigma ")
    rescued = list(keep.store.folder.glob("*.rescued.latent"))
    if step == 0:
        assert rescued == []
        return
    (path,) = rescued
    assert told.endswith(f"; the latents of step {step}, the last good one, are in {path}")
    from wanexperts.wan.cli.latents import read_latents

    latents = read_latents(path).latents
    assert torch.equal(latents, denormalize(seen[-1].denoised, SMALL_VAE))
    monkeypatch.undo()
    seen.clear()
    got = pipeline.sample(_request(pipeline), seen.append, keep=keep)
    assert [p.step for p in seen] == list(range(step + 1, STEPS + 1)), "and the run can go on"
    assert torch.equal(got, pipeline.sample(_request(pipeline)))


@pytest.mark.parametrize("step", range(STEPS))
def test_a_step_without_memory_is_done_in_parts(pipeline, monkeypatch, step: int, caplog) -> None:
    request = _request(pipeline)
    wanted = pipeline.sample(request)

    def fails(model: WanTransformer) -> object:
        return torch.OutOfMemoryError("no room. At all.") if model.chunk is None else False

    calls = _flawed(monkeypatch, step, fails)
    got = pipeline.sample(request)
    assert relative(got, wanted) < 1e-5, "other sizes of matrices round elsewhere; 3e-7 measured"
    assert calls == ["no memory"] * 2 + ["good"] * 2
    assert [m.rpartition(" with ")[2] for m in caplog.messages if m.startswith("step")] == [
        "memory tidied up", "256 tokens at a time",
    ]  # fmt: skip


def test_tokens_in_parts_take_loras_that_change_later(
    pipeline: Pipeline, tmp_path: Path, monkeypatch
) -> None:
    path, name = tmp_path / "style_high_noise.safetensors", "diffusion_model.blocks.0.ffn.0"
    up, down = torch.randn(64, 2) * 0.2, torch.randn(2, 128) * 0.2
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, path)
    distilled = pipeline.with_loras([LoraUse(path=path)])
    request = _request(pipeline, phases=_three())
    wanted = distilled.sample(request)

    def fails(model: WanTransformer) -> object:
        return torch.OutOfMemoryError("no room. At all.") if model.chunk is None else False

    _flawed(monkeypatch, 0, fails)
    assert relative(distilled.sample(request), wanted) < 1e-5


def test_plain_attention_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (
        torch.randn(2, n, 3, 8, generator=torch.Generator().manual_seed(n)) for n in (7, 5, 5)
    )
    for scores in (1, 60, 2**26):
        monkeypatch.setattr("wanexperts.wan.attention.PLAIN_SCORES", scores)
        assert relative(plain(q, k, v), sdpa(q, k, v)) < 1e-6, "1.5e-7 measured"
    half = plain(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16


# Interrupted


@pytest.mark.parametrize("kept", [False, True])
def test_fifty_interrupts_at_random_moments_leave_nothing_behind(
    pipeline: Pipeline, tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python drops an interrupt that falls into a destructor; pytest would keep it, and all its frames.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    request = _request(pipeline, steps=6)
    wanted = pipeline.sample(request)
    chance, interrupts = random.Random(4), 0

    fired: list[bool] = []

    def interrupt(*_: object) -> None:
        fired.append(True)
        raise Stop

    def things() -> tuple[int, int]:
        gc.collect()
        kinds = [type(thing) for thing in gc.get_objects()]  # asking the things would wake some up
        return kinds.count(WanTransformer), sum(issubclass(kind, Tensor) for kind in kinds)

    before, threads = things(), threading.active_count()
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(400):
            keep = _keep(tmp_path / str(number), fresh=True) if kept else None
            if keep is not None:
                keep.store.folder.parent.mkdir()
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, 0.25))
                same = torch.equal(pipeline.sample(request, keep=keep), wanted)
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert same
            except Exception:
                if not fired:  # compiled code may turn an interrupt into an error of its own
                    raise
                fired.clear()
                interrupts += 1
            if interrupts == 50:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert interrupts == 50
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)  # an interrupt may fall into the wait for the thread that writes
    assert threading.active_count() == threads
    assert things() == before
    assert torch.equal(pipeline.sample(request), wanted)
