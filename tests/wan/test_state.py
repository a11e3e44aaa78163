"""Kept runs as files: bit for bit back, whole or not there, bounded, and never the reason a run fails."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from wanexperts.wan.sentinel import check
from wanexperts.wan.solvers import SolverState
from wanexperts.wan.state import (
    Keeper,
    RunKeys,
    RunState,
    Store,
    read_state,
    run_key,
    write_state,
)
from wanexperts.wan.state import keeper as keeper_module

KEY = run_key({"seed": 1})
SHAPE = (1, 16, 3, 4, 6)


def _tensor(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _solver(step: int) -> SolverState:
    return SolverState(
        history=(_tensor(100 + step), _tensor(200 + step)), last=_tensor(300 + step),
        order=2, seed=2**64 - 1,
    )  # fmt: skip


def _state(step: int = 3, key: str = KEY) -> RunState:
    manifest = {"prompt": "一个红色的圆形", "steps": 8}
    return RunState(
        key=key,
        run=KEY,
        step=step,
        total=8,
        x=_tensor(step),
        solver=_solver(step),
        manifest=manifest,
    )


def _same(one: RunState, other: RunState) -> bool:
    pairs = zip(
        [one.x, one.solver.last, *one.solver.history],
        [other.x, other.solver.last, *other.solver.history],
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs) and (
        (one.key, one.run, one.step, one.total, dict(one.manifest), one.solver.order, one.solver.seed)
        == (other.key, other.run, other.step, other.total, dict(other.manifest), other.solver.order, other.solver.seed)
    )  # fmt: skip


def _store(folder: Path, **changed: int) -> Store:
    return Store(folder=folder / "runs", **changed)


def _keep(store: Store, steps: range, keys: RunKeys | None = None) -> None:
    with Keeper(store, keys or RunKeys(run=KEY), 8, {"prompt": "x"}) as keeper:
        for step in steps:
            keeper.keep(step, _tensor(step), _solver(step))
            keeper.flush()


# Keys


def test_a_key_counts_every_value_and_nothing_else() -> None:
    parts = {"seed": 1, "sigmas": torch.tensor([1.0, 0.5, 0.0]), "loras": [["a", 0.7]], "x": None}
    key = run_key(parts)
    assert len(key) == 64
    assert run_key(dict(reversed(parts.items()))) == key, "order does not count"
    assert run_key({**parts, "loras": (("a", 0.7),)}) == key
    strided = torch.tensor([[1.0, 9.0], [0.5, 9.0], [0.0, 9.0]])[:, 0]
    assert run_key({**parts, "sigmas": strided}) == key, "memory layout does not count"
    others = [
        {"seed": 2},
        {"seed": 1.0000001},
        {"sigmas": torch.tensor([1.0, 0.5000001, 0.0])},
        {"sigmas": torch.tensor([1.0, 0.5, 0.0]).double()},
        {"sigmas": torch.tensor([[1.0, 0.5, 0.0]])},
        {"loras": [["a", 0.8]]},
        {"more": 1},
    ]
    assert len({run_key({**parts, **other}) for other in others} | {key}) == len(others) + 1
    with pytest.raises(TypeError, match="Path has no canonical form"):
        run_key({"file": Path("x")})


def test_a_key_is_the_same_in_every_process() -> None:
    """Frozen: a key that changes with the program would lose every kept run."""
    parts = {
        "prompt": "红",
        "sigmas": torch.tensor([1.0, 0.0]),
        "steps": 2,
        "guidance": [[1.0, 3.5]],
    }
    digest = hashlib.sha256(b"\0\0\x80\x3f\0\0\0\0").hexdigest()
    text = (
        '{"guidance":[[1.0,3.5]],"prompt":"\\u7ea2",'
        f'"sigmas":{{"tensor":["torch.float32",[2],"{digest}"]}},"steps":2}}'
    )
    assert run_key(parts) == hashlib.sha256(text.encode()).hexdigest()


# Files


@pytest.mark.parametrize(
    "solver", [SolverState(), SolverState(history=(_tensor(1),), seed=7), _solver(1)]
)
def test_a_state_comes_back_bit_for_bit(tmp_path: Path, solver: SolverState) -> None:
    written = replace(_state(), solver=solver)
    written.x[0, 0, 0, 0, :2] = torch.tensor([-0.0, 1e-42])
    write_state(tmp_path / "a", written)
    read = read_state(tmp_path / "a", KEY)
    assert torch.equal(read.x.view(torch.int32), written.x.view(torch.int32))
    assert len(read.solver.history) == len(solver.history)
    assert (read.solver.last is None) == (solver.last is None)
    if solver.last is not None:
        assert _same(read, written)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_read_state_does_not_hang_on_its_file(tmp_path: Path) -> None:
    write_state(tmp_path / "a", _state(3))
    read = read_state(tmp_path / "a", KEY)
    write_state(tmp_path / "a", _state(4))
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(10)
    assert _same(read, _state(3))


def test_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_state(path, _state())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 7), *range(header, len(whole), 997), len(whole) - 1]
    unseen = []
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read = read_state(path, KEY)
        except ValueError:
            pass
        else:
            unseen.append((place, whole[place : place + 1], _same(read, _state())))
    # What is left are the blanks that fill up a header.
    assert all(same and byte == b" " for _, byte, same in unseen), unseen


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99999])
def test_a_state_that_was_cut_off_is_seen(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a"
    write_state(path, _state())
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ValueError, match=r"/a is damaged or cut off"):
        read_state(path, KEY)


def test_foreign_files_are_told_apart(tmp_path: Path) -> None:
    write_state(tmp_path / "other", _state(key=run_key({"seed": 2})))
    (tmp_path / "text").write_text("hello world, this is not a state")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"x": 1}))
    torch.save({"x": _tensor(1)}, tmp_path / "torch")
    save_file({"x": _tensor(1)}, tmp_path / "tensors")
    (tmp_path / "folder").mkdir()
    told = {}
    for path in tmp_path.iterdir():
        with pytest.raises((ValueError, OSError)) as error:
            read_state(path, KEY)
        told[path.name] = str(error.value).replace(str(path), "IT")
    assert told.pop("folder")
    assert told == {
        "other": "IT is the state of another run",
        "text": "IT is damaged or cut off",
        "pickle": "IT is damaged or cut off",
        "torch": "IT is damaged or cut off",
        "tensors": "IT was not kept by a run",
    }


def test_states_of_another_form_are_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("wanexperts.wan.state.files.FORM", 2)
    write_state(tmp_path / "a", _state())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="in the form of another version"):
        read_state(tmp_path / "a", KEY)


# The ring and the store


def test_two_files_in_turn_and_the_newest_is_found(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert store.find(RunKeys(run=KEY)) is None
    assert not store.folder.exists(), "looking leaves no trace"
    for last in range(1, 6):
        _keep(store, range(1, last + 1))
        files = sorted(store.folder.iterdir())
        assert [f.name for f in files] == [f"{KEY[:20]}.{n}.state" for n in "ab"[: min(last, 2)]]
        found = store.find(RunKeys(run=KEY))
        assert found is not None
        assert _same(found, replace(_state(last), manifest={"prompt": "x"}))
    assert store.find(RunKeys(run=run_key({"seed": 2}))) is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "folder", "other run"])
def test_a_bad_newest_state_falls_back_to_the_other_and_says_so(
    tmp_path: Path, damage: str, caplog
) -> None:
    store = _store(tmp_path)
    _keep(store, range(1, 5))
    newest = store.path(KEY, ".b.state")
    assert read_state(newest, KEY).step == 4
    whole = newest.read_bytes()
    if damage == "flipped":
        newest.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "cut":
        os.truncate(newest, len(whole) // 2)
    elif damage == "empty":
        os.truncate(newest, 0)
    elif damage == "foreign":
        newest.write_text("{}" * 100)
    elif damage == "folder":
        newest.unlink()
        newest.mkdir()
    else:
        write_state(newest, _state(7, key=run_key({"seed": 5})))
    found = store.find(RunKeys(run=KEY))
    assert found is not None
    assert found.step == 3
    (told,) = caplog.messages
    assert told.endswith("; the run does without it")
    os.truncate(store.path(KEY, ".a.state"), 100)
    assert store.find(RunKeys(run=KEY)) is None
    assert len(caplog.messages) == 3


def test_a_state_at_a_change_of_stages_has_its_own_file(tmp_path: Path) -> None:
    store = _store(tmp_path)
    start = run_key({"high": 1})
    keys = RunKeys(run=KEY, branches={3: start})
    _keep(store, range(1, 7), keys)
    assert sorted(f.name for f in store.folder.iterdir()) == sorted(
        [f"{start[:20]}.branch.state", f"{KEY[:20]}.a.state", f"{KEY[:20]}.b.state"]
    )
    newest = store.find(keys)
    assert newest is not None
    assert newest.step == 6
    other = RunKeys(run=run_key({"low": 2}), branches={3: start})
    branch = store.find(other)
    assert branch is not None
    assert _same(branch, replace(_state(3, key=start), manifest={"prompt": "x"}))


def test_a_finished_run_leaves_latents_and_branches(tmp_path: Path) -> None:
    store = _store(tmp_path)
    start = run_key({"high": 1})
    keys = RunKeys(run=KEY, branches={2: start})
    with Keeper(store, keys, 4) as keeper:
        for step in range(1, 5):
            keeper.keep(step, _tensor(step), _solver(step))
        path = keeper.finish(_tensor(9), {"wan": "{}"})
    assert sorted(f.name for f in store.folder.iterdir()) == sorted(
        [f"{start[:20]}.branch.state", f"{KEY[:20]}.latent"]
    )
    assert path == store.path(KEY, ".latent")
    latents = store.latents(KEY)
    assert latents is not None
    assert torch.equal(latents, _tensor(9))
    stored = load_file(path)
    assert set(stored) == {"latent_tensor", "latent_format_version_0"}
    assert store.latents(KEY[:20] + "0" * 44) is None, "a name is only the beginning of a key"
    os.truncate(path, 999)
    assert store.latents(KEY) is None


def test_a_store_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    size = len(_bytes_of(tmp_path))
    store = _store(tmp_path, limit=5 * size)
    keys = [run_key({"seed": seed}) for seed in range(8)]
    for age, key in enumerate(keys):
        _keep(store, range(1, 3), RunKeys(run=key))
        for path in store.folder.glob(f"{key[:20]}*"):
            os.utime(path, (1e9 + age, 1e9 + age))
    (store.folder / "notes.txt").write_text("not ours")
    _keep(store, range(1, 3), RunKeys(run=keys[-1]))
    left = {path.name.partition(".")[0] for path in store.folder.iterdir()} - {"notes"}
    assert left == {key[:20] for key in keys[4:]}, "its own two, five of others"
    total = sum(path.stat().st_size for path in store.folder.glob("*.state"))
    assert total <= 5 * size + 2 * size
    assert (store.folder / "notes.txt").exists()


def _bytes_of(folder: Path) -> bytes:
    write_state(folder / "one", _state())
    data = (folder / "one").read_bytes()
    (folder / "one").unlink()
    return data


# The thread


@contextmanager
def _slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    go, written = threading.Event(), []
    real = write_state

    def slow(path: Path, state: RunState) -> None:
        assert go.wait(60)
        written.append(state.step)
        real(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(keeper_module, "write_state", slow)
        yield go, written
        go.set()


def test_steps_never_wait_for_the_disk_and_the_newest_wins(tmp_path: Path, monkeypatch) -> None:
    store = _store(tmp_path)
    keys = RunKeys(run=KEY, branches={4: run_key({"high": 1})})
    with _slow_disk(monkeypatch) as (go, written), Keeper(store, keys, 50) as keeper:
        keeper.keep(1, _tensor(1), _solver(1))
        while keeper._newest is not None:
            time.sleep(0.001)
        for step in range(2, 50):
            keeper.keep(step, _tensor(step), _solver(step))
        assert written == []
        go.set()
        keeper.flush()
        assert written == [1, 4, 49], "the one under way, the change of stages, the newest"
    found = store.find(keys)
    assert found is not None
    assert found.step == 49


def test_a_bad_step_is_never_kept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    x = _tensor(2)
    x[0, 0, 0, 0, 0] = float("nan")
    with Keeper(store, RunKeys(run=KEY), 8) as keeper:
        keeper.keep(1, _tensor(1), _solver(1), check(_tensor(1), 0.5))
        keeper.flush()
        keeper.keep(2, x, _solver(2), check(x, 0.5, x=x))
    found = store.find(RunKeys(run=KEY))
    assert found is not None
    assert found.step == 1


def test_an_error_leaves_the_newest_state_and_is_told(tmp_path: Path, caplog) -> None:
    store = _store(tmp_path)

    def interrupted() -> None:
        with Keeper(store, RunKeys(run=KEY), 8) as keeper:
            for step in (1, 2, 3):
                keeper.keep(step, _tensor(step), _solver(step))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert caplog.messages == [f"the run is kept after step 3 of 8 in {store.folder}"]
    found = store.find(RunKeys(run=KEY))
    assert found is not None
    assert found.step == 3
    assert not [t for t in threading.enumerate() if t.name == "keep run"]


@contextmanager
def _file_size_limit(limit: int) -> Iterator[None]:
    """Files of this process grow no further, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 300, 3000])
def test_a_full_disk_costs_one_sentence(tmp_path: Path, room: int, caplog) -> None:
    store = _store(tmp_path)
    _keep(store, range(1, 4))
    with _file_size_limit(room), Keeper(store, RunKeys(run=KEY), 8) as keeper:
        for step in (4, 5, 6):
            keeper.keep(step, _tensor(step), _solver(step))
            keeper.flush()
        assert keeper.finish(_tensor(9)) is None
    (told,) = [m for m in caplog.messages if "is not kept" in m]
    assert told.startswith("the rest of this run is not kept: ")
    assert told.endswith("; the run goes on")
    assert sorted(path.name[20:] for path in store.folder.iterdir()) == [".a.state", ".b.state"]
    found = store.find(RunKeys(run=KEY))
    assert found is not None
    assert found.step == 3, "what was whole before is whole still"


def test_a_folder_that_cannot_be_written_costs_one_sentence(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "runs", tmp_path / "no" / "runs", tmp_path / "file"]
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o555)
        places.append(tmp_path / "shut" / "runs")
    for place in places:
        caplog.clear()
        store = Store(folder=place)
        assert store.find(RunKeys(run=KEY)) is None
        _keep(store, range(1, 4))
        (told,) = caplog.messages
        assert told.startswith("the rest of this run is not kept: ")


def test_a_folder_shut_to_this_user_costs_one_sentence(tmp_path: Path, caplog) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        _keep(Store(folder=folder), range(1, 4))
    finally:
        os.seteuid(0)
    assert caplog.messages == [
        "the rest of this run is not kept: Permission denied; the run goes on"
    ]
