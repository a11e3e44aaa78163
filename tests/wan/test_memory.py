"""Memory while files load, run and are converted: what is not backed by the file stays small.

Each case runs in a process of its own. ``RssAnon`` is the memory that Linux cannot take back from it
by dropping pages of a file; elsewhere nothing tells the two apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wanexperts.tests.helpers import sentencepiece_model
from wanexperts.wan.config import T2V_A14B, TextConfig

pytest.importorskip("diffusers")
pytest.importorskip("gguf")

from wanexperts.tests.parity import networks
from wanexperts.tests.parity.layouts import (
    Kind,
    Scaled,
    State,
    Written,
    gguf_file,
    gguf_kind,
    plain,
    random_weights,
    single,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux counts memory that no file backs"
)

ROOT = Path(__file__).resolve().parents[2]
EXPERT = replace(
    T2V_A14B.transformer, dim=1024, ffn_dim=2816, num_heads=8, num_layers=2, text_dim=1024
)
DEEP = 6
TEXT = TextConfig(
    vocab_size=8192,
    dim=1024,
    attn_dim=1024,
    num_heads=16,
    ffn_dim=2816,
    num_layers=2,
    num_buckets=32,
)
BF16 = torch.bfloat16

WATCH = """
    import json, os, sys, threading
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    import torch
    from wan.checkpoint import check_pair, load_text_encoder, load_transformer, open_checkpoint
    from wan.convert import convert

    torch.set_num_threads(1)

    def anonymous():
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024

    class Peak:
        def __enter__(self):
            self.base = self.top = anonymous()
            self.done = threading.Event()
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
            return self

        def watch(self):
            while not self.done.wait(0.001):
                self.top = max(self.top, anonymous())

        def __exit__(self, *_):
            self.done.set()
            self.thread.join()
            told.append(max(self.top, anonymous()) - self.base)

    told = []
    linear = torch.nn.functional.linear
    linear(torch.ones(8, 64), torch.ones(64, 64))  # what the first product of a process allocates
"""
PAIR = (
    WATCH
    + """
    with Peak():
        check_pair(*(open_checkpoint(path, "transformer") for path in sys.argv[2:]))
        experts = [load_transformer(path, dtype=torch.bfloat16) for path in sys.argv[2:]]
    with Peak(), torch.no_grad():
        for expert in experts:
            context = torch.zeros(1, 8, expert.config.text_dim)
            expert(torch.zeros(1, 16, 1, 2, 2, dtype=torch.bfloat16), torch.zeros(1), context)
    print(json.dumps(told))
"""
)
ENCODER = (
    WATCH
    + """
    import ftfy

    ftfy.fix_text("its tables are read when they are first used")
    with Peak():
        encoder, tokenizer = load_text_encoder(sys.argv[2])
    with Peak(), torch.no_grad():
        encoder(torch.tensor([tokenizer.encode("a red circle")]), dtype=torch.float32)
    print(json.dumps(told))
"""
)
CONVERSION = (
    WATCH
    + """
    with Peak():
        out = Path(f"{sys.argv[3]}_{os.getpid()}")
        convert(open_checkpoint(sys.argv[2]), out, layout="diffusers", dtype=torch.bfloat16)
    print(json.dumps(told))
"""
)


def measure(script: str, *paths: Path) -> list[float]:
    """Peaks of anonymous memory of each phase, in bytes, above what the imports hold."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(ROOT), *map(str, paths)]
    # glibc would keep freed buffers of up to 32 MB for later: what it keeps differs from run to run.
    # Each thread of a product has buffers of its own.
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {
        **os.environ, **alone, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"
    }  # fmt: skip

    def once() -> list[float]:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # Linux may count pages some time after they were freed, never less than what is held.
    return [min(peaks) for peaks in zip(once(), once(), strict=True)]


FORMS: dict[str, Callable[[Path, State], Written]] = {
    "bf16": lambda path, state: single(path, state, plain(BF16)),
    "fp16": lambda path, state: single(path, state, plain(torch.float16)),
    "fp32": lambda path, state: single(path, state, plain(torch.float32)),
    "torch file": lambda path, state: single(path.with_suffix(".pth"), state, plain(BF16)),
    "fp8 scaled": lambda path, state: single(path, state, Scaled(dtype=torch.float8_e4m3fn)),
    "GGUF Q8_0": lambda path, state: gguf_file(
        path.with_suffix(".gguf"), "wan", state, gguf_kind(Kind.Q8_0, Kind.BF16), draw=True
    ),
}


@pytest.fixture(scope="module")
def states() -> dict[int, State]:
    """One expert, shallow and deep."""
    return {
        layers: random_weights(networks.expert_shapes(replace(EXPERT, num_layers=layers)), 1, BF16)
        for layers in (EXPERT.num_layers, DEEP)
    }


def in_float32(state: State) -> int:
    """Bytes of the largest weight when a layer computes in float32."""
    return 4 * max(weight.numel() for weight in state.values())


@pytest.mark.parametrize("form", FORMS)
def test_a_pair(tmp_path, states, form, record_property):
    loading, running, sizes = {}, {}, {}
    for layers, state in states.items():
        other = {key: 1.5 * weight for key, weight in state.items()}
        pair = [
            FORMS[form](tmp_path / f"{layers}_{role}.safetensors", weights).path
            for role, weights in (("high", state), ("low", other))
        ]
        sizes[layers] = pair[0].stat().st_size
        loading[layers], running[layers] = measure(PAIR, *pair)
        for path in pair:
            path.unlink()
    shallow = EXPERT.num_layers
    block = (sizes[DEEP] - sizes[shallow]) / (DEEP - shallow)
    limit = 1.1 * 2 * block
    record_property("memory_load_pair_over_two_blocks", loading[DEEP] / (2 * block))
    record_property("memory_run_over_limit", running[DEEP] / (limit + in_float32(states[DEEP])))
    assert loading[DEEP] < limit
    # Headers grow with the layers, 2 KB a tensor; weights must not.
    assert loading[DEEP] - loading[shallow] < 0.1 * 2 * (DEEP - shallow) * block
    assert running[DEEP] < limit + in_float32(states[DEEP])
    assert running[DEEP] - running[shallow] < block


def test_a_torch_file_of_the_text_encoder(tmp_path, record_property):
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(60))
    state = random_weights(networks.text_shapes(TEXT), 1, BF16)
    path = single(tmp_path / "umt5.pth", state, plain(BF16)).path
    loading, running = measure(ENCODER, path)
    layer = sum(t.nbytes for key, t in state.items() if key.startswith("blocks.0."))
    record_property("memory_load_umt5_over_two_blocks", loading / (2 * layer))
    assert loading < 1.1 * 2 * layer
    largest = max(w.numel() for key, w in state.items() if key != "token_embedding.weight")
    assert running < 1.1 * 2 * layer + 4 * largest


@pytest.mark.parametrize("form", ["bf16", "GGUF Q8_0"])
def test_a_conversion_holds_few_tensors(tmp_path, states, form, record_property):
    state = states[DEEP]
    path = FORMS[form](tmp_path / "high.safetensors", state).path
    (peak,) = measure(CONVERSION, path, tmp_path / "out")
    share = peak / sum(2 * weight.numel() for weight in state.values())
    record_property("memory_convert_over_whole_model", share)
    assert share < 0.12  # 0.06 to 0.08; the largest packed matrix is 0.03
