"""The queue client against a ComfyUI that has every mishap: nothing is lost, nothing is made or fetched twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from wanexperts.wan.queue import (
    Batch,
    Catalog,
    Job,
    Ledger,
    Pace,
    Pool,
    Refused,
    Server,
    Unavailable,
    Wishes,
    first_catalog,
    make_jobs,
    parse_address,
    run_batch,
)
from wanexperts.wan.workflow import parse_workflow

from .fake_comfy import INFO, FakeComfy, graph, result

FAST = Pace(poll=0.02, heartbeat=0.5, retry=0.02, longest=0.1, tries=3, patience=3.0)


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.done: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.at_finish: Callable[[], None] = lambda: None
        self.at_step: Callable[[], None] = lambda: None

    def step(self, server: str, job: Job, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))
        self.at_step()

    def finished(self, server: str, job: Job, files: list[Path]) -> None:
        self.done.append((server, job.name))
        self.at_finish()

    def say(self, server: str, sentence: str) -> None:
        self.told.append(sentence)


def make(count: int, first: int = 1) -> list[Job]:
    given = graph()
    del given["1"]["inputs"]["clip"], given["2"]["inputs"]["clip"]
    return make_jobs(
        parse_workflow(given), Wishes(seeds=range(first, first + count)), Catalog(INFO)
    )


def queue(
    fakes: Sequence[FakeComfy],
    jobs: Sequence[Job],
    folder: Path,
    notes: Notes | None = None,
    pace: Pace = FAST,
) -> Pool:
    servers = [Server(parse_address(fake.url, fake.login or None), timeout=5) for fake in fakes]
    batch = Batch(jobs=jobs, canvas=lambda _: {"nodes": []})
    return run_batch(batch, servers, Ledger(folder), notes or Notes(), pace)


def lines(folder: Path) -> list[dict]:
    return [
        json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()
    ]


def assert_whole(folder: Path, jobs: Sequence[Job]) -> None:
    """One file and one line for each job, and each file holds what its job asked for."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["manifest.jsonl", *(f"{job.name}.mp4" for job in jobs)]
    )
    for job in jobs:
        assert (folder / f"{job.name}.mp4").read_bytes() == result(job.graph)
    assert sorted(line["digest"] for line in lines(folder)) == sorted(job.digest for job in jobs)


def test_prompts_become_files_lines_and_progress(tmp_path: Path) -> None:
    jobs, notes = make(3), Notes()
    with FakeComfy() as fake:
        pool = queue([fake], jobs, tmp_path, notes)
        assert [body["prompt_id"] for body in fake.posted] == [job.prompt(0) for job in jobs]
        assert {
            body["extra_data"]["extra_pnginfo"]["workflow"]["nodes"] == [] for body in fake.posted
        } == {True}
        assert len({body["client_id"] for body in fake.posted}) == 1
        assert (fake.ran, len(fake.fetched), fake.cancelled) == ([1, 2, 3], 3, [])
    assert_whole(tmp_path, jobs)
    assert (pool.done, pool.failed) == (jobs, {})
    assert notes.steps == [("Run it", step, 3) for _ in jobs for step in (1, 2, 3)]
    line = lines(tmp_path)[0]
    assert line == {
        "name": jobs[0].name, "digest": jobs[0].digest, "prompt_id": jobs[0].prompt(0), "seed": 1,
        "settings": {"seed": 1}, "server": f"127.0.0.1:{fake.port}", "seconds": 1.5,
        "files": [{"name": f"{jobs[0].name}.mp4", "bytes": len(result(jobs[0].graph)), "node": "4",
                   "on_server": "output/video/clip_00000_.mp4"}],
        "texts": {"3": "a plan"},
    }  # fmt: skip


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        queue([fake], make(2), tmp_path)
        queue([fake], make(3), tmp_path)
        assert fake.ran == [1, 2, 3]
        assert queue([fake], make(3), tmp_path).jobs == ()
        (tmp_path / f"{make(1)[0].name}.mp4").write_bytes(b"half")
        queue([fake], make(3), tmp_path)  # fetched again from the history, not made again
        assert (fake.ran, len(fake.fetched)) == ([1, 2, 3], 4)
    assert (tmp_path / f"{make(1)[0].name}.mp4").read_bytes() == result(make(1)[0].graph)


def test_a_line_cut_off_by_a_crash_is_made_again(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        queue([fake], make(2), tmp_path)
        path = tmp_path / "manifest.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
        queue([fake], make(2), tmp_path)
        assert fake.ran == [1, 2]
    cut, *whole = path.read_text("utf-8").splitlines()[1:]
    assert not cut.endswith("}")
    assert [json.loads(line)["seed"] for line in whole] == [2]


@pytest.mark.parametrize("mishap", ["no websocket", "silent websocket"])
def test_without_events_the_history_is_polled(tmp_path: Path, mishap: str) -> None:
    with FakeComfy() as fake:
        fake.sockets, fake.silent = mishap != "no websocket", True
        queue([fake], make(2), tmp_path)
    assert_whole(tmp_path, make(2))


def test_a_websocket_that_drops_is_opened_again(tmp_path: Path) -> None:
    notes = Notes()
    with FakeComfy(seconds=0.3) as fake:
        notes.at_step = lambda: fake.drop() if len(notes.steps) == 1 else None
        queue([fake], make(2), tmp_path, notes)
        assert fake.ran == [1, 2]
    assert_whole(tmp_path, make(2))
    assert len(notes.steps) > 3


def test_an_unwell_server_is_asked_again(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        fake.unwell = 4
        queue([fake], make(2), tmp_path)
        assert fake.ran == [1, 2]


def test_a_lost_answer_queues_nothing_twice(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        fake.deaf = 1
        queue([fake], make(2), tmp_path)
        assert (fake.ran, len(fake.posted)) == ([1, 2], 2)
    assert_whole(tmp_path, make(2))


def test_a_download_that_breaks_off_is_done_again_and_leaves_nothing(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        fake.cut = 1
        queue([fake], make(2), tmp_path)
        assert fake.ran == [1, 2]
    assert_whole(tmp_path, make(2))


def test_a_restart_that_forgets_all_is_survived(tmp_path: Path) -> None:
    with FakeComfy(seconds=0.2) as fake:
        notes = Notes()
        notes.at_step = lambda: fake.forget() if len(notes.steps) == 1 else None
        queue([fake], make(2), tmp_path, notes)
        assert fake.ran == [1, 2]
    assert_whole(tmp_path, make(2))


def test_one_of_two_servers_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    jobs, notes = make(8), Notes()
    with FakeComfy() as first, FakeComfy(seconds=0.1) as second:
        killer = threading.Thread(target=second.kill)
        notes.at_finish = lambda: killer.start() if len(notes.done) == 3 else None
        pool = queue([first, second], jobs, tmp_path, notes)
        killer.join()
        assert len(first.fetched) + len(second.fetched) == 8
    assert_whole(tmp_path, jobs)
    assert (len(pool.done), pool.failed) == (8, {})
    by_server = [line["server"] for line in lines(tmp_path)]
    assert 0 < by_server.count(f"127.0.0.1:{second.port}") < 4
    assert any("its prompts go to others until it is back" in told for told in notes.told)


def test_a_server_that_comes_back_drops_what_others_have_and_works_on(tmp_path: Path) -> None:
    """It was only out of reach: it still runs a prompt that another server has made meanwhile."""
    jobs, notes = make(6), Notes()
    with FakeComfy() as first, FakeComfy() as second:
        second.hold.clear()
        first.seconds = 0.2
        ways = threading.Event()

        def cut_off() -> None:
            while not second.queued:
                time.sleep(0.005)
            second.unwell = 10**6
            while not any("go to others" in told for told in notes.told):
                time.sleep(0.005)
            while second.queued[0] not in {body["prompt_id"] for body in first.posted}:
                time.sleep(0.005)
            second.unwell = 0
            ways.set()

        helper = threading.Thread(target=cut_off)
        helper.start()
        threading.Timer(1.5, second.hold.set).start()
        pool = queue([first, second], jobs, tmp_path, notes)
        helper.join()
        assert ways.is_set()
        assert second.cancelled[0] == second.posted[0]["prompt_id"]
        assert second.posted[0]["prompt"]["3"]["inputs"]["seed"] not in second.ran
        assert sorted(first.ran + second.ran) == [1, 2, 3, 4, 5, 6]
        assert len(second.ran) > 0, "it should have worked again"
    assert_whole(tmp_path, jobs)
    assert len(pool.done) == 6


def test_a_server_that_starts_late_joins_in(tmp_path: Path) -> None:
    notes = Notes()
    with FakeComfy() as probe:
        port = probe.port
    late: list[FakeComfy] = []

    def start() -> None:
        if len(notes.done) == 2:
            late.append(FakeComfy(port=port).__enter__())

    notes.at_finish = start
    with FakeComfy(seconds=0.15) as fake:
        servers = [Server(parse_address(url), timeout=5) for url in (fake.url, f"127.0.0.1:{port}")]
        batch = Batch(jobs=make(10), canvas=lambda _: None)
        run_batch(batch, servers, Ledger(tmp_path), notes, FAST)
        late[0].kill()
        assert late[0].ran
    assert_whole(tmp_path, make(10))


def test_when_no_server_answers_any_more_it_says_so_and_goes_on_later(tmp_path: Path) -> None:
    notes = Notes()
    with FakeComfy() as fake:
        notes.at_finish = lambda: setattr(fake, "unwell", 10**6)
        with pytest.raises(
            OSError, match=r"no server has answered for 0 s .*the same command goes on"
        ):
            queue(
                [fake], make(3), tmp_path, notes, Pace(poll=0.02, retry=0.02, tries=2, patience=0.3)
            )
        fake.unwell = 0
        queue([fake], make(3), tmp_path)
        assert fake.ran == [1, 2, 3]
    assert_whole(tmp_path, make(3))


def test_a_prompt_that_ends_servers_is_given_up(tmp_path: Path) -> None:
    with FakeComfy(seconds=0.1) as fake:
        notes = Notes()

        def crash() -> None:
            if fake.posted[-1]["prompt"]["3"]["inputs"]["seed"] == 1:
                fake.forget()

        notes.at_step = crash
        pool = queue([fake], make(2), tmp_path, notes)
    assert [job.seed for job in pool.done] == [2]
    assert ["3 times a server ended" in why for why in pool.failed.values()] == [True]


def test_what_fails_on_the_server_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        fake.fails = {2}
        pool = queue([fake], make(3), tmp_path)
        assert {job.seed: why for job, why in pool.failed.items()} == {
            2: "node 3 (Sampler): out of memory"
        }
        assert [job.seed for job in pool.done] == [1, 3]
        fake.fails = set()
        assert queue([fake], make(3), tmp_path).failed == {}  # tried again under another id
        assert fake.posted[-1]["prompt_id"] == make(3)[1].prompt(1)
    assert_whole(tmp_path, make(3))


def test_a_refused_graph_is_told_in_words_before_anything_is_queued(tmp_path: Path) -> None:
    with FakeComfy() as first, FakeComfy() as second:
        for fakes in ([first], [first, second]):
            for fake in fakes:
                fake.refuses = {1, 2, 3}
            with pytest.raises(
                ValueError,
                match=r"^seed1-\w{8}: node 3 \(Run it\): Value not in list: sampler_name: 'x'$",
            ):
                queue(fakes, make(3), tmp_path)
        assert not first.ran + second.ran


def test_a_prompt_one_server_refuses_goes_to_the_other(tmp_path: Path) -> None:
    with FakeComfy() as first, FakeComfy() as second:
        first.refuses = {1, 2}
        second.refuses = {2, 3}
        pool = queue([first, second], make(4), tmp_path)
        assert sorted(job.seed for job in pool.done) == [1, 3, 4]
        assert [job.seed for job in pool.failed] == [2]
        assert (1 in second.ran, 3 in first.ran) == (True, True)


def test_a_graph_of_which_only_a_part_is_good_is_refused(tmp_path: Path) -> None:
    with FakeComfy(seconds=0.3) as fake:
        fake.partial = True
        with pytest.raises(ValueError, match=r"node 3 \(Run it\): Value not in list"):
            queue([fake], make(1), tmp_path)
        assert fake.cancelled == [make(1)[0].prompt(0)]


def test_a_file_the_server_has_no_more_is_told(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        queue([fake], make(1), tmp_path / "a")
        fake._files.clear()
        pool = queue([fake], make(1), tmp_path / "b")
    assert ["has no /view" in why for why in pool.failed.values()] == [True]


def test_an_interrupt_cancels_what_was_queued_and_a_later_command_goes_on(tmp_path: Path) -> None:
    notes, jobs = Notes(), make(4)
    with FakeComfy() as first, FakeComfy() as second:

        def interrupt() -> None:
            for fake in (first, second):
                fake.hold.clear()
            raise KeyboardInterrupt

        calls = []

        def wait(self: Pool, seconds: float) -> None:
            calls.append(seconds)
            if threading.current_thread() is threading.main_thread() and len(notes.done) >= 1:
                interrupt()
            time.sleep(0.01)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pool, "wait", wait)
            with pytest.raises(KeyboardInterrupt):
                queue([first, second], jobs, tmp_path, notes)
        deadline = time.monotonic() + 5
        while (first.queued or second.queued) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert first.queued + second.queued == []
        for fake in (first, second):
            fake.hold.set()
        queue([first, second], jobs, tmp_path)
        assert sorted(first.ran + second.ran) == [1, 2, 3, 4]
    assert_whole(tmp_path, jobs)


def test_a_folder_that_cannot_be_written_ends_it_at_once(tmp_path: Path) -> None:
    with FakeComfy() as fake:
        jobs = make(2)
        (tmp_path / f"{jobs[0].name}.mp4").mkdir()
        with pytest.raises(OSError, match="it is a folder; choose another place"):
            queue([fake], jobs, tmp_path)


def test_a_login_and_a_base_path_go_with_every_request(tmp_path: Path) -> None:
    with FakeComfy(base="/comfy", login="Bearer secret") as fake:
        queue([fake], make(1), tmp_path)
        with pytest.raises(Refused, match=r"wants a login \(status 401\); give it by --auth-env"):
            Server(parse_address(fake.url)).nodes()
        with pytest.raises(Refused, match="has no /object_info"):
            Server(parse_address(f"127.0.0.1:{fake.port}", "Bearer secret")).nodes()
    assert_whole(tmp_path, make(1))
    assert "secret" not in (tmp_path / "manifest.jsonl").read_text()


def test_a_server_without_the_nodes_is_left_out(tmp_path: Path) -> None:
    with FakeComfy() as first, FakeComfy() as second:
        second.info = {"Text": {}}
        queue([first, second], make(2), tmp_path)
        assert (first.ran, second.posted) == ([1, 2], [])
        first.info = second.info
        with pytest.raises(ValueError, match=r"has no node Sampler, Save; install its pack there"):
            queue([first, second], make(2, first=5), tmp_path)


def test_without_any_server_it_says_so_soon() -> None:
    servers = [Server(parse_address(f"127.0.0.1:{port}")) for port in (1, 2)]
    with pytest.raises(
        Unavailable, match=r"no ComfyUI answers at 127.0.0.1:1, 127.0.0.1:2; start it"
    ):
        first_catalog(servers, FAST)
