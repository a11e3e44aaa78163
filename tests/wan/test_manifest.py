"""The record of a run: fast hashes, one spelling, and differences that tell the truth."""

from __future__ import annotations

import json
import os
import time
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file
from wanexperts.wan.cli.record import record, with_result
from wanexperts.wan.guidance import Guidance
from wanexperts.wan.manifest import (
    LoraMark,
    Manifest,
    Mark,
    StageRecord,
    canonical,
    differences,
    file_mark,
    files_mark,
    from_json,
    tensors_digest,
    to_json,
    verdict,
)
from wanexperts.wan.manifest.compare import DETAILS, OTHER, SAME, UNKNOWN
from wanexperts.wan.pipeline import Pipeline, Request
from wanexperts.wan.schedule import make_schedule
from wanexperts.wan.switch import Switch

from .family import write_family

SCHEDULE = make_schedule("unipc", steps=6, shift=5.0)


def stage(name, boundary, scale, **changes):
    given = {
        "name": name,
        "boundary": boundary,
        "guidance": Guidance.constant(scale).points,
        "weights": Mark(name=f"{name}.safetensors", digest=f"{name} numbers"),
        "dtype": "bfloat16",
    }
    return StageRecord(**{**given, **changes})


HIGH, LOW = stage("high noise", 0.875, 4.0), stage("low noise", 0.0, 3.0)
RUN = Manifest(
    stages=(HIGH, LOW),
    sigmas=tuple(SCHEDULE.sigmas.tolist()),
    timesteps=tuple(SCHEDULE.timesteps.tolist()),
    schedule="unipc",
    shift=5.0,
    solver="unipc",
    seed=7,
    noise="comfy",
    shape=(1, 16, 3, 8, 8),
    attention="pytorch",
    device="cpu",
    inputs={"noise": "n", "positive": "p", "negative": "q"},
    texts={"positive": "a 红 circle", "negative": "dark"},
    files={"text_encoder": Mark(name="umt5", digest="t")},
    versions={"wan": "1", "torch": "2"},
    result="r",
)


def with_stage(index, **changes):
    stages = list(RUN.stages)
    stages[index] = replace(stages[index], **changes)
    return replace(RUN, stages=tuple(stages))


def test_a_record_has_one_spelling_and_keeps_every_bit():
    text = canonical(RUN)
    assert from_json(json.loads(text)) == RUN
    assert canonical(from_json(to_json(RUN))) == text
    assert "红" in text
    assert from_json(to_json(RUN)).sigmas == tuple(SCHEDULE.sigmas.tolist())


@pytest.mark.parametrize("name", [field.name for field in fields(Manifest)])
@pytest.mark.parametrize("wrong", [None, "x", -1, [], {}, [[]], float("nan")])
def test_a_damaged_record_is_told_or_read_but_never_crashes(name, wrong):
    content = to_json(RUN)
    content[name] = wrong
    refused = ""
    try:
        made = from_json(content)
    except ValueError as error:
        refused = str(error)
    else:
        assert isinstance(verdict(RUN, made), str)
    assert "\n" not in refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift": float("nan")},
        {"timesteps": [-1.0] * 6},
        {"sigmas": [1.0]},
        {"shape": [1, 2]},
        {"stages": []},
        {"stages": [{**to_json(RUN)["stages"][0], "guidance": [[2.0, 1.0]]}]},
    ],
    ids=str,
)
def test_a_record_that_cannot_be_a_runs_is_refused(wrong):
    with pytest.raises(ValueError, match="the record of the run is damaged"):
        from_json({**to_json(RUN), **wrong})


def test_a_record_of_a_newer_form_is_told():
    with pytest.raises(ValueError, match="update ComfyUI-WanExperts"):
        from_json({**to_json(RUN), "form": 2, "more": 1})


SHARP = make_schedule("unipc", steps=6, shift=8.0)
CURVE = Guidance(((1.0, 4.0), (0.5, 4.0), (0.2, 1.0))).points
LORA = LoraMark(file=Mark(name="l", digest="l"), strength=1.0)


@pytest.mark.parametrize(
    ("other", "words", "effect"),
    [
        (replace(RUN, seed=8, inputs={**RUN.inputs, "noise": "m"}), "seed: 7 against 8", OTHER),
        (replace(RUN, seed=8), "seed of the same noise", SAME),
        (replace(RUN, inputs={**RUN.inputs, "noise": "m"}), "although the seeds are", OTHER),
        (replace(RUN, noise="official"), "drawn as comfy against official", SAME),
        (replace(RUN, sigmas=tuple(SHARP.sigmas.tolist()), shift=8.0),
         "different from step 1 on", OTHER),
        (replace(RUN, sigmas=RUN.sigmas[:-1], timesteps=RUN.timesteps[:-1]), "steps: 6 against 5", OTHER),
        (replace(RUN, schedule="custom"), "the same noise levels", SAME),
        (replace(RUN, timesteps=tuple(t + 0.5 for t in RUN.timesteps)), "timesteps told", OTHER),
        (replace(RUN, solver="euler"), "solver: unipc against euler", OTHER),
        (with_stage(0, boundary=0.88), "boundary: 0.875 against 0.88, the same steps", SAME),
        (with_stage(0, boundary=0.95), "switch: after step 3 against 2", OTHER),
        (with_stage(0, guidance=CURVE), "guidance of high noise: 4 against", SAME),
        (with_stage(1, guidance=CURVE), "guidance of low noise: 3 against", OTHER),
        (with_stage(0, weights=Mark(name="renamed", digest="high noise numbers")), "the same numbers", SAME),
        (with_stage(0, weights=replace(HIGH.weights, digest="x")), "weights of high noise", OTHER),
        (with_stage(0, weights=replace(HIGH.weights, in_memory=True)), "by its weights in memory", UNKNOWN),
        (with_stage(1, loras=(LORA,)), "LoRAs on low noise: none against l (l) at 1", OTHER),
        (with_stage(1, patches=("attn2",)), "patches on low noise: none against attn2", OTHER),
        (with_stage(1, dtype="float16"), "precision of low noise", DETAILS),
        (replace(RUN, stages=(LOW,)), "stages: 2 against 1", OTHER),
        (replace(RUN, texts={**RUN.texts, "positive": "b"}), "prompt: 'a 红 circle' against 'b'", OTHER),
        (replace(RUN, inputs={**RUN.inputs, "negative": "z"}), "negative prompt as the text encoder", OTHER),
        (replace(RUN, inputs={**RUN.inputs, "latent": "z"}), "latent the run started from", OTHER),
        (replace(RUN, files={"text_encoder": Mark(name="umt5", digest="u")}), "text encoder", SAME),
        (replace(RUN, shape=(1, 16, 5, 8, 8)), "clip: 64 x 64, 9 frames against 64 x 64, 17 frames", OTHER),
        (replace(RUN, changed=True), "after the run: nothing against", OTHER),
        (replace(RUN, device="NVIDIA H100"), "device: cpu against NVIDIA H100", DETAILS),
        (replace(RUN, attention="sage"), "attention", DETAILS),
        (replace(RUN, versions={"wan": "1", "torch": "3"}), "version of torch: 2 against 3", DETAILS),
    ],
)  # fmt: skip
def test_each_difference_is_named_with_its_effect(other, words, effect):
    (line,) = differences(RUN, other)
    assert words in line
    assert line.endswith(f"; {effect}")
    assert len(differences(other, RUN)) == 1


def test_equal_runs_have_no_differences():
    assert differences(RUN, RUN) == []
    assert verdict(RUN, RUN) == "the same latents, bit for bit"
    swapped = with_stage(0, loras=(LORA, replace(LORA, file=Mark(name="m", digest="m"))))
    again = with_stage(0, loras=swapped.stages[0].loras[::-1])
    assert differences(swapped, again) == []
    (line,) = differences(RUN, replace(RUN, result="other"))
    assert "although nothing that was written down" in line


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    parts = write_family(tmp_path_factory.mktemp("family"))
    return Pipeline.load(**parts, device="cpu")


def made(pipeline, switch=Switch(), seed=1, guidance_low=None, **sampling):  # noqa: B008 - frozen
    given = replace(pipeline.defaults, num_frames=5, height=32, width=32, steps=5, **sampling)
    request = Request(
        prompt="a red circle", sampling=given, seed=seed, switch=switch, guidance_low=guidance_low
    )
    return with_result(record(pipeline, request, pipeline.plan(request)), pipeline.sample(request))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"boundary": 0.88},
        {"boundary": 0.5},
        {"switch": Switch("step", 2)},
        {"guidance_low": Guidance(((1.0, 9.0), (0.9, 1.5)))},
        {"guidance_low": Guidance(((1.0, 1.5), (0.3, 7.0)))},
        {"seed": 2},
        {"seed": 2**32 + 1},
        {"solver": "euler"},
        {"shift": 3.0},
        {"schedule": "dpm++"},
        {"negative_prompt": "blue"},
    ],
    ids=str,
)
def test_what_is_said_of_the_picture_is_true(pipeline, change):
    before, after = made(pipeline), made(pipeline, **change)
    lines = differences(before, after)
    if before.result == after.result:
        assert all(line.endswith(SAME) for line in lines), lines
    else:
        assert any(line.endswith(OTHER) for line in lines), lines
    assert change == {} or lines


def test_a_changed_weight_is_named(pipeline, tmp_path):
    parts = write_family(tmp_path)
    low = parts["low"]
    raw = bytearray(low.read_bytes())
    raw[-2048:-1024] = bytes(1024)
    low.write_bytes(raw)
    changed = Pipeline.load(**parts, device="cpu")
    request = Request(prompt="a", sampling=replace(pipeline.defaults, num_frames=5))
    one, other = (record(p, request, p.plan(request)) for p in (pipeline, changed))
    (line,) = differences(one, other)
    assert line.startswith("weights of low-noise expert")
    assert line.endswith(OTHER)


def test_a_large_file_is_hashed_in_a_moment(tmp_path):
    path = tmp_path / "experts.safetensors"
    size = 28 * 2**30
    with path.open("wb") as file:
        file.write((200).to_bytes(8, "little") + b"{" + b" " * 198 + b"}")
        file.truncate(size)
    start = time.perf_counter()
    first = file_mark(path)
    # 14 ms were measured; a slow disk seeks 1024 times.
    assert time.perf_counter() - start < 1.0
    start = time.perf_counter()
    assert file_mark(path) == first
    assert time.perf_counter() - start < 0.01
    with path.open("r+b") as file:
        file.seek(size // 3)
        file.write(b"\x01" * (52 * 2**20))  # one matrix of 5120 x 5120 in bfloat16
    assert file_mark(path).digest != first.digest


def test_a_hash_follows_content_not_names(tmp_path):
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(b"0123" * 1000)
    other.write_bytes(b"0123" * 1000)
    assert file_mark(one).digest == file_mark(other).digest
    other.write_bytes(b"0123" * 999 + b"0124")
    os.utime(other, ns=(1, 1))
    assert file_mark(one).digest != file_mark(other).digest
    other.write_bytes(b"0123" * 1001)
    assert file_mark(one).digest != file_mark(other).digest
    assert files_mark("x", [one]).digest == file_mark(one).digest
    assert files_mark("x", [one, other]).digest != files_mark("x", [other, one]).digest


def test_a_long_header_is_read_whole_and_metadata_do_not_count(tmp_path):
    path = tmp_path / "a.safetensors"
    names = [f"blocks.{i}.self_attn.q.weight" for i in range(3000)]

    def digest(tensors, metadata=None):
        save_file(tensors, path, metadata=metadata)
        os.utime(path, ns=(len(seen), len(seen)))
        seen.append(file_mark(path).digest)
        return seen[-1]

    seen = []
    weights = {name: torch.ones(1) for name in names}
    first = digest(weights)
    assert path.stat().st_size > 200_000
    assert digest(weights, {"a": "1", "b": "2", "c": "3"}) == first
    assert digest({**weights, names[-1]: torch.ones(1, dtype=torch.int32)}) != first
    assert digest({name.replace("2999", "3000"): torch.ones(1) for name in names}) != first


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": 1', b"{" * 5000])
def test_what_is_no_header_is_hashed_as_bytes(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    assert len(file_mark(path).digest) == 32


def test_weights_in_memory_are_known_by_names_types_and_numbers():
    weights = {"a": torch.arange(100.0), "b": torch.zeros(3, 4)}
    digest = tensors_digest(weights.items())
    assert digest == tensors_digest(reversed(weights.items()))
    changed = [
        {**weights, "a": weights["a"] + 1},
        {**weights, "a": weights["a"].bfloat16()},
        {**weights, "b": torch.zeros(4, 3)},
        {"a": weights["a"], "c": weights["b"]},
        {**weights, "d": torch.zeros(0)},
    ]
    assert digest not in [tensors_digest(other.items()) for other in changed]
