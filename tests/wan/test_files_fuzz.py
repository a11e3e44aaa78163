"""Thousands of damaged files: each is read or refused in one sentence, in bounded time and memory.

The readers run in a process of their own, so that a crash or a hang of native code is a failed test and
not the end of all tests. ``python tests/wan/test_files_fuzz.py KIND SEED COUNT`` runs one alone.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5.0
"""Of processor time for one case; the slowest takes 0.01 s."""
MEGABYTES = 256
"""By which the address space may grow over all cases; it grows by 1 to 20."""
HUGE = (
    0,
    1,
    2**7,
    2**8 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
)
ODD = (None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 10**30, "", "F64", "BOOL", [], [[]], {}, [0, 2**62],
       [-1, 4], [1] * 70, {"dtype": "F32"}, "\ud800")  # fmt: skip
OPCODES = (
    b"(", b"t", b"\x85", b"\x86", b"\x87", b")", b"]", b"}", b"R", b"b", b"Q", b"s", b"u", b"a", b"e",
    b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"q\x00", b"h\x00", b"h\x05", b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"X\x01\0\0\0a", b"U\xff",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n", b"cos\nsystem\n", b"\x81", b".",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch\nfloat8_e4m3fn\n", b"\x80\x04", b"\x94", b"0", b"2",
)  # fmt: skip


def safetensors_seed() -> bytes:
    import torch
    from safetensors.torch import save

    state = {f"blocks.{i}.weight": torch.ones(i + 1, 3, dtype=dtype) for i, dtype in enumerate(
        (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool))}  # fmt: skip
    return save(state, metadata={"format": "pt", "note": "text"})


def pickle_seed() -> bytes:
    import torch

    base, stream = torch.arange(24.0).reshape(4, 6), io.BytesIO()
    state = {"a": base, "rows": base[1:3], "columns": base[:, 1:2], "half": base.half(),
             "f8": torch.ones(5).to(torch.float8_e5m2), "p": torch.nn.Parameter(torch.ones(2)), "n": 3}  # fmt: skip
    torch.save({"model_state": state, "epoch": 3}, stream)
    return stream.getvalue()


def gguf_seed() -> bytes:
    import gguf
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        file = gguf.GGUFWriter(f"{folder}/x.gguf", "t5encoder")
        file.add_tokenizer_model("t5")
        file.add_token_list(["<pad>", "</s>", "<unk>", "▁a", "b"])
        file.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0])
        file.add_token_types([3, 3, 2, 1, 1])
        file.add_eos_token_id(1)
        file.add_bool("flag", True)
        file.add_array("comfy.gguf.orig_shape.conv", [2, 3, 2])
        file.add_tensor("conv", np.ones((2, 6), np.float32))
        file.add_tensor("half", np.ones((3, 4), np.float16))
        file.add_tensor(
            "packed", np.zeros((2, 68), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
        )
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return Path(f"{folder}/x.gguf").read_bytes()


def flip(random: random.Random, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)
    return bytes(out)


def overwrite(random: random.Random, content: bytes) -> bytes:
    """A number somewhere becomes another."""
    size = random.choice((1, 2, 4, 8))
    place = random.randrange(max(1, len(content) - size))
    value = (random.choice(HUGE) % 256**size).to_bytes(size, "little")
    return content[:place] + value + content[place + size :]


def cut(random: random.Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content))]


def remove(random: random.Random, content: bytes) -> bytes:
    place, length = random.randrange(len(content)), random.choice((1, 2, 8, 40))
    return content[:place] + content[place + length :]


def insert(random: random.Random, content: bytes) -> bytes:
    place = random.randrange(len(content))
    return content[:place] + random.randbytes(random.choice((1, 8, 64))) + content[place:]


def repeat(random: random.Random, content: bytes) -> bytes:
    begin, end = sorted(random.randrange(len(content)) for _ in range(2))
    return content[:end] + content[begin:end] + content[end:]


ANY = (flip, overwrite, cut, remove, insert, repeat)


def within(begin: int, end: int, random: random.Random, content: bytes) -> bytes:
    """One of the above on a part of the file alone."""
    mutate = random.choice(ANY)
    return content[:begin] + mutate(random, content[begin:end]) + content[end:]


def swap_values(random: random.Random, content: bytes) -> bytes:
    """Values of the JSON header become odd ones; its length is told right, mostly."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for _ in range(random.choice((1, 1, 3))):
        holder, key = header, random.choice(list(header))
        while isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.7:
            holder = holder[key]
            key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if random.random() < 0.2 and isinstance(holder, dict) and len(holder) > 1:
            del holder[key]
        else:
            holder[key] = deepcopy(random.choice(ODD))
    raw = json.dumps(header).encode()
    told = random.choice((len(raw), len(raw), len(raw), *HUGE)) % 2**64
    return told.to_bytes(8, "little") + raw + content[8 + length :]


def mutate_safetensors(random: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if random.random() < 0.5:
        return swap_values(random, content)
    header = within(0, len(content[8 : 8 + length]), random, content[8 : 8 + length])
    if random.random() < 0.5:
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    return random.choice(ANY)(random, content)


def mutate_pickle(random: random.Random, content: bytes) -> bytes:
    """The pickle inside, with its checksum made good, or the archive around it."""
    if random.random() < 0.3:
        return within(
            content.rindex(b"PK\x01\x02", 0, len(content) // 2 * 2), len(content), random, content
        )
    if random.random() < 0.3:
        return random.choice(ANY)(random, content)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for one in old.infolist():
            data = old.read(one)
            if one.filename.endswith("data.pkl"):
                for _ in range(random.choice((1, 1, 2, 4))):
                    data = mutate_opcodes(random, data)
            elif random.random() < 0.05 and data:
                data = random.choice(ANY)(random, data)
            new.writestr(one.filename, data)
    return out.getvalue()


def mutate_opcodes(random: random.Random, data: bytes) -> bytes:
    """Whole opcodes go, come twice, change places or meet new ones, so that the pickle still reads."""
    try:
        places = [place for _, _, place in pickletools.genops(data)]
    except ValueError:
        return data
    begin, end = sorted(random.sample([*places[1:], len(data)], 2)) if len(places) > 2 else (0, 0)
    end = min(end, begin + 60)
    end = max((place for place in places if place <= end), default=end)
    middle = data[begin:end]
    new = b"".join(random.choices(OPCODES, k=random.choice((1, 1, 2, 4))))
    other = random.choice(places)
    way = random.randrange(6)
    if way == 0:
        return data[:begin] + data[end:]
    if way == 1:
        return data[:begin] + middle + middle + data[end:]
    if way == 2:
        return data[:begin] + new + data[begin:]
    if way == 3:
        return data[:begin] + new + data[end:]
    if way == 4:
        return data[:other] + middle + data[other:]
    return random.choice(ANY)(random, data) if data else data


def mutate_gguf(random: random.Random, content: bytes) -> bytes:
    if random.random() < 0.3:
        place = random.choice((4, 8, 16))
        value = struct.pack("<Q", random.choice(HUGE))[: 4 if place == 4 else 8]
        return content[:place] + value + content[place + len(value) :]
    return within(4, content.index(b"packed") + 40, random, content)


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[random.Random, bytes], bytes]]] = {
    "safetensors": (safetensors_seed, mutate_safetensors),
    "pickle": (pickle_seed, mutate_pickle),
    "gguf": (gguf_seed, mutate_gguf),
}


def read_all(path: Path) -> None:
    """Everything the readers offer, down to the last byte."""
    import torch

    from wan.files import DTYPES, read_header, read_tensors, read_tokenizer

    header = read_header(path)
    tensors = read_tensors(path, header.tensors)
    for name, info in header.tensors.items():
        tensor = tensors[name]
        if info.dtype in DTYPES and info.dtype != "F4":
            assert (tensor.dtype, tuple(tensor.shape)) == (DTYPES[info.dtype], info.shape)
        assert tensor.nbytes <= path.stat().st_size
        tensor.flatten().view(torch.uint8).sum()
    read_tokenizer(path)


def judge(path: Path) -> str | None:
    """None if the file was read, else the refusal; AssertionError if it is no proper one."""
    began = time.process_time()
    try:
        read_all(path)
    except (ValueError, OSError) as error:
        told = str(error)
        assert told.isprintable(), told
        assert told.startswith(str(path)), told
        assert len(told) < 1500, told
        return told
    finally:
        assert time.process_time() - began < SECONDS, "slow"
    return None


def run(kind: str, seed: int, count: int) -> None:
    """Judge ``count`` cases; ends with an error at the first bad one."""
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("error")
    # Of pickletools, for a backslash in a name; silent where nobody asked for such warnings.
    warnings.filterwarnings("ignore", "invalid escape sequence", DeprecationWarning)
    make, mutate = KINDS[kind]
    chance = random.Random(seed)
    sound = make()
    told: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(sound)
        assert judge(path) is None, "the sound file was refused"
        space = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        soft = address_space() + MEGABYTES * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        for case in range(count):
            path.write_bytes(mutate(chance, sound))
            try:
                told.add(judge(path) or "")
            except BaseException:
                sys.stderr.write(f"case {case} of seed {seed}: {path.read_bytes()[:3000]!r}\n")
                raise
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - space
    sys.stdout.write(f"{len(told)} different outcomes, {grown / 1024:.0f} MB more")


def address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the address space as Linux tells it")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_a_sentence(kind):
    if kind == "gguf":
        pytest.importorskip("gguf")
    done = subprocess.run(
        [sys.executable, __file__, kind, "1", "1500"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    outcomes = int(done.stdout.split()[0])
    assert outcomes > 20, "the damage is too much alike"


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
