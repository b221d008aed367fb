"""The runtime's life: loops, threads, forks, ends of processes, settings that change.

Most of it runs in processes of its own, as programs do, and looks at what they leave.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.faultproxy import BlackHole, CutBody, FaultProxy
from support.servers import DoorServer
from support.waiting import wait_until

import caribou
import caribou.sync
from caribou import _process
from caribou.journal.owner import owner_folders
from caribou.journal.reader import read_rows, segment_files

PREAMBLE = """
import asyncio, os, sys, threading
import caribou
import caribou.sync
from caribou import Message, log, trace_run

def meta(name="dp"):
    return {"datapoint_id": name, "run_id": "run", "phase": "train"}

async def rollout(name="dp", text="hello"):
    async with trace_run(meta(name)):
        log(Message(role="user", content=text))
        await asyncio.sleep(0)
        log(Message(role="assistant", content=text))
"""


def run(
    program: str, home: Path, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "CLICKHOUSE" not in name}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(program), *arguments],
        env=environment | {"CARIBOU_HOME": str(home)} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def rows(home: Path, table: str = "spans") -> list[dict[str, Any]]:
    """Every row in the journals below ``home``, whoever wrote it."""
    found: list[dict[str, Any]] = []
    for folder in owner_folders(home / "journal"):
        for segment in segment_files(folder):
            if segment.table == table:
                found += [json.loads(line) for line in read_rows(segment, 0).splitlines()]
    return found


def contents(home: Path) -> list[str]:
    return sorted(row["content"] for row in rows(home))


def assert_clean(ended: subprocess.CompletedProcess[str]) -> None:
    assert (ended.returncode, ended.stderr) == (0, "")


def test_several_loops_one_after_another(tmp_path: Path) -> None:
    program = """
    for number in range(4):
        asyncio.run(rollout(f"dp-{number}", str(number)))
    """
    assert_clean(run(program, tmp_path))
    assert contents(tmp_path) == sorted(["0", "1", "2", "3"] * 2)


def test_loops_in_several_threads_at_once(tmp_path: Path) -> None:
    program = """
    def work(number):
        asyncio.run(rollout(f"dp-{number}", str(number)))
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    """
    assert_clean(run(program, tmp_path))
    found = rows(tmp_path)
    assert sorted(row["content"] for row in found) == sorted([str(n) for n in range(8)] * 2)
    by_trace = {(row["trace_id"], row["content"]) for row in found}
    assert len(by_trace) == 8


@pytest.mark.parametrize("library", ["uvloop", "trio"])
def test_other_loops(tmp_path: Path, library: str) -> None:
    program = """
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.run(rollout())
    else:
        import trio
        async def main():
            async with trace_run(meta()):
                log(Message(role="user", content="hello"))
                await trio.sleep(0)
                log(Message(role="assistant", content="hello"))
            result = await caribou.flush()
            assert result.complete
            await caribou.shutdown()
        trio.run(main)
    """
    assert_clean(run(program, tmp_path, library))
    assert contents(tmp_path) == ["hello", "hello"]


def test_what_is_logged_just_before_the_loop_closes_arrives(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    assert_clean(run("asyncio.run(rollout())", tmp_path, **environ))
    (count,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(count["n"]) == 2
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_forked_child_and_its_parent_each_keep_their_own(tmp_path: Path) -> None:
    program = """
    async def main():
        async with trace_run(meta()):
            log(Message(role="user", content="before"))
            pid = os.fork()
            who = "parent" if pid else "child"
            for number in range(100):
                log(Message(role="assistant", content=f"{who} {number}"))
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
    asyncio.run(main())
    """
    assert_clean(run(program, tmp_path))
    both = [f"{who} {number}" for who in ("parent", "child") for number in range(100)]
    assert contents(tmp_path) == sorted(["before", *both])
    found = rows(tmp_path)
    assert len({row["trace_id"] for row in found}) == 1
    assert len({row["span_id"] for row in found}) == len(found)


def test_a_child_forked_while_threads_log_is_not_stuck(tmp_path: Path) -> None:
    program = """
    import caribou.sync
    stop = threading.Event()
    def work():
        with caribou.sync.trace_run(meta("busy")):
            while not stop.is_set():
                log(Message(role="user", content="busy"))
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    pids = []
    for number in range(20):
        pid = os.fork()
        if not pid:
            with caribou.sync.trace_run(meta(f"child {number}")):
                log(Message(role="user", content="child"))
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads: thread.join()
    """
    ended = run(program, tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = rows(tmp_path)
    assert sum(row["content"] == "child" for row in found) == 20


def child(name: str) -> None:
    with caribou.sync.trace_run({"datapoint_id": name, "run_id": "run", "phase": "train"}):
        caribou.log(caribou.Message(role="user", content=name))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_arrive_and_end(method: str, tmp_path: Path) -> None:
    program = """
    import multiprocessing, test_runtime
    if __name__ == "__main__":
        asyncio.run(rollout("parent", "parent"))
        context = multiprocessing.get_context(sys.argv[1])
        with context.Pool(2) as pool:
            pool.map(test_runtime.child, ["child 0", "child 1", "child 2", "child 3"])
            pool.close()
            pool.join()
    """
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = run(program, tmp_path, method, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr
    expected = ["parent", "parent", *(f"child {number}" for number in range(4))]
    assert contents(tmp_path) == sorted(expected)


def test_sigterm_leaves_everything_for_the_next_process(
    door: DoorServer, proxy: FaultProxy, database: str, tmp_path: Path
) -> None:
    environ = {"CLICKHOUSE_URL": proxy.url, "CLICKHOUSE_DATABASE": database}
    program = """
    async def main():
        async with trace_run(meta()):
            log(Message(role="user", content="hello"))
            os.kill(os.getpid(), 15)
    asyncio.run(main())
    """
    proxy.refuse()
    assert run(program, tmp_path, **environ).returncode == -signal.SIGTERM
    proxy.accept()
    assert_clean(run("asyncio.run(rollout('next', 'next'))", tmp_path, **environ))
    found = door.rows(f"SELECT content FROM {database}.spans ORDER BY content")
    assert [row["content"] for row in found] == ["hello", "next", "next"]


def test_a_program_that_raises_ends_as_it_would_without_caribou(tmp_path: Path) -> None:
    program = """
    async def main():
        async with trace_run(meta()):
            raise ValueError("mine")
    asyncio.run(main())
    """
    ended = run(program, tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("ValueError: mine")
    (trace,) = [row for row in rows(tmp_path, "traces") if row.get("version")]
    assert (trace["status"], trace["error_type"], trace["error_message"]) == (
        "ERROR",
        "ValueError",
        "mine",
    )


def test_ids_do_not_repeat_in_workers_seeded_alike_and_no_generator_is_moved(
    tmp_path: Path,
) -> None:
    program = """
    import random
    random.seed(7)
    before = random.getstate()
    asyncio.run(rollout())
    assert random.getstate() == before
    """
    for _ in range(3):
        assert_clean(run(program, tmp_path))
    found = rows(tmp_path)
    assert len({row["trace_id"] for row in found}) == 3
    assert len({row["span_id"] for row in found}) == len(found) == 6


def test_configuring_ten_times_makes_one_exporter(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    async def main():
        for number in range(10):
            caribou.configure(run_id=f"run-{number}")
            await rollout(f"dp-{number}", str(number))
        assert sum(thread.name == "caribou-io" for thread in threading.enumerate()) == 1
        assert (await caribou.flush()).complete
    asyncio.run(main())
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    assert_clean(run(program, tmp_path, **environ))
    (count,) = door.rows(f"SELECT count() AS n, uniqExact(span_id) AS ids FROM {database}.spans")
    assert (int(count["n"]), int(count["ids"])) == (20, 20)


def test_after_shutdown_the_next_rollout_starts_again(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    async def main():
        async with trace_run(meta("over shutdown")):
            log(Message(role="user", content="first"))
            assert (await caribou.shutdown()).complete
            log(Message(role="assistant", content="second"))
        await rollout("new", "third")
        caribou.configure(batch_age=0.1)
        await rollout("newer", "fourth")
    asyncio.run(main())
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    assert_clean(run(program, tmp_path, **environ))
    found = door.rows(f"SELECT content FROM {database}.spans ORDER BY content")
    assert [row["content"] for row in found] == [
        "first", "fourth", "fourth", "second", "third", "third",
    ]  # fmt: skip
    traces = door.rows(f"SELECT status, count() AS n FROM {database}.traces GROUP BY status")
    assert [(row["status"], int(row["n"])) for row in traces] == [("COMPLETED", 3)]


def test_a_lost_io_thread_is_noticed_and_replaced(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    from caribou import _process
    async def main():
        async with trace_run(meta()):
            log(Message(role="user", content="before"))
            _process.current()._io.stop(5)
            log(Message(role="user", content="after"))
        result = await caribou.flush(10)
        assert result.complete, result
        async with trace_run(meta()):
            log(Message(role="user", content="later"))
    asyncio.run(main())
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    assert_clean(run(program, tmp_path, **environ))
    found = door.rows(f"SELECT content FROM {database}.spans ORDER BY content")
    assert [row["content"] for row in found] == ["after", "before", "later"]


@pytest.fixture
def hole(door: DoorServer) -> Iterator[FaultProxy]:
    with FaultProxy(door.port) as proxy:
        proxy.fault(BlackHole(), every=True)
        yield proxy


def configure(url: str, database: str, home: Path) -> None:
    caribou.configure(
        run_id="run", phase="train", clickhouse_url=url, clickhouse_database=database, home=home
    )


async def rollout(text: str) -> None:
    async with caribou.trace_run({"datapoint_id": "dp"}):
        caribou.log(caribou.Message(role="user", content=text))


@pytest.mark.asyncio
async def test_flush_and_shutdown_keep_their_deadlines_before_a_black_hole(
    hole: FaultProxy, database: str, tmp_path: Path
) -> None:
    configure(hole.url, database, tmp_path)
    await rollout("hello")
    result = await caribou.flush(0.3)
    assert not result.complete
    assert result.seconds < 1.5
    assert result.pending == 3
    result = await caribou.shutdown(0.3)
    assert not result.complete
    assert result.seconds < 1.5


@pytest.mark.asyncio
async def test_a_cancelled_flush_loses_nothing(
    hole: FaultProxy, door: DoorServer, database: str, tmp_path: Path
) -> None:
    configure(hole.url, database, tmp_path)
    await rollout("hello")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await caribou.flush(30)
    hole.clear()
    assert (await caribou.flush(30)).complete
    (count,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(count["n"]) == 1
    await caribou.shutdown()


@pytest.mark.asyncio
async def test_shutdown_in_mid_backoff_is_prompt(database: str, tmp_path: Path) -> None:
    configure("http://127.0.0.1:1", database, tmp_path)
    await rollout("hello")
    await caribou.flush(0.1)
    result = await caribou.shutdown(0.2)
    assert result.seconds < 1.5
    # The rows stay for the next process.
    assert [row["content"] for row in rows(tmp_path)] == ["hello"]


@pytest.mark.asyncio
async def test_in_memory_nothing_touches_the_disk(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    caribou.configure(
        run_id="run",
        phase="train",
        clickhouse_url=door.url,
        clickhouse_database=database,
        home=tmp_path / "home",
        journal="memory",
    )
    await rollout("hello")
    assert (await caribou.shutdown()).complete
    assert not (tmp_path / "home").exists()
    (count,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(count["n"]) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("journal", ["disk", "memory"])
async def test_what_is_kept_nowhere_is_never_called_delivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, journal: str
) -> None:
    (tmp_path / "file").touch()
    caribou.configure(run_id="run", phase="train", home=tmp_path / "file", journal=journal)
    await rollout("hello")
    assert "lost with this process" in caplog.text
    for result in (await caribou.flush(), await caribou.shutdown()):
        assert not result.complete
        assert (result.sinks["local"].delivered, result.sinks["local"].pending) == (0, 3)


@pytest.mark.asyncio
async def test_the_bound_refuses_whole_traces_and_counts_them(
    hole: FaultProxy, database: str, tmp_path: Path
) -> None:
    caribou.configure(
        run_id="run",
        phase="train",
        clickhouse_url=hole.url,
        clickhouse_database=database,
        home=tmp_path,
        max_journal_bytes=1 << 20,
    )
    async with caribou.trace_run({"datapoint_id": "in progress"}):
        for number in range(4000):
            caribou.log(caribou.Message(role="user", content=f"{number} " + "x" * 1000))
        runtime = _process.current()
        await asyncio.to_thread(wait_until, lambda: not runtime.accepting)
        await rollout("refused")
        caribou.log(caribou.Message(role="user", content="the last"))
    account = caribou.stats().sinks["clickhouse"]
    # Its summary at entry and exit, and its message.
    assert account.dropped == {"journal_full": 3}
    assert account.logged == account.delivered + account.pending + 3 == 4001 + 2 + 3
    await caribou.shutdown(0.1)
    assert len(rows(tmp_path)) == 4001
    assert {row["datapoint_id"] for row in rows(tmp_path, "traces")} == {"in progress"}


@pytest.mark.asyncio
async def test_a_database_and_password_change_delivers_what_was_there_before(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    configure(door.url, database, tmp_path)
    await rollout("first")
    configure(door.url, database + "_b", tmp_path)
    await rollout("second")
    assert (await caribou.shutdown(30)).complete
    for name, text in ((database, "first"), (database + "_b", "second")):
        assert [r["content"] for r in door.rows(f"SELECT content FROM {name}.spans")] == [text]


@pytest.mark.asyncio
async def test_a_flush_after_configure_waits_for_the_replaced_one_and_not_in_the_loop(
    hole: FaultProxy, door: DoorServer, database: str, tmp_path: Path
) -> None:
    configure(hole.url, database, tmp_path)
    await rollout("behind the hole")
    configure(door.url, database, tmp_path)
    await rollout("delivered")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    results = await asyncio.gather(*(caribou.flush(2.0) for _ in range(8)))
    ticking.cancel()
    assert ticks > 10
    # The rows of the replaced one are said to be pending, those of the current one are there.
    assert {result.complete for result in results} == {False}
    assert results[0].sinks["clickhouse (replaced)"].pending == 3
    assert results[0].sinks["clickhouse"].pending == 0
    hole.clear()
    assert (await caribou.flush(30)).complete
    assert len(door.rows(f"SELECT content FROM {database}.spans")) == 2


@pytest.mark.asyncio
async def test_a_second_shutdown_does_not_call_the_first_complete(
    hole: FaultProxy, database: str, tmp_path: Path
) -> None:
    configure(hole.url, database, tmp_path)
    await rollout("hello")
    for _ in range(2):
        result = await caribou.shutdown(0.2)
        assert not result.complete
        assert result.pending == 3


@pytest.mark.asyncio
async def test_two_processes_in_memory_never_share_a_batch_id(
    door: DoorServer, proxy: FaultProxy, database: str, tmp_path: Path
) -> None:
    """Their rows have the same places in their journals; one's batch is not taken for the
    other's when its answer is lost."""
    for number, fault in enumerate((None, CutBody(after=10))):
        caribou.configure(
            run_id="run",
            phase="train",
            clickhouse_url=proxy.url,
            clickhouse_database=database,
            journal="memory",
        )
        if fault is not None:
            proxy.fault(fault, times=5)
        await rollout(f"text {number}")
        assert (await caribou.shutdown(30)).complete
    found = door.rows(f"SELECT content FROM {database}.spans ORDER BY content")
    assert [row["content"] for row in found] == ["text 0", "text 1"]


def test_threads_that_outlive_the_main_one_are_delivered(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    import caribou.sync
    started, ended = threading.Event(), threading.Event()
    def work():
        with caribou.sync.trace_run(meta()):
            for number in range(20):
                log(Message(role="user", content=str(number)))
                started.set()
                threading.Event().wait(0.02)
    threading.Thread(target=work).start()
    started.wait()
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    assert_clean(run(program, tmp_path, **environ))
    (count,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(count["n"]) == 20
    assert list((tmp_path / "journal").iterdir()) == []


def test_what_is_first_logged_when_the_program_has_ended_is_kept(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    """Python 3.12 starts no thread by then; the next process delivers."""
    program = """
    import atexit
    import caribou.sync
    def last():
        with caribou.sync.trace_run(meta()):
            log(Message(role="user", content="last words"))
    atexit.register(last)
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    assert_clean(run(program, tmp_path, **environ))
    assert_clean(run("asyncio.run(rollout())", tmp_path, **environ))
    found = door.rows(f"SELECT content FROM {database}.spans ORDER BY content")
    assert [row["content"] for row in found] == ["hello", "hello", "last words"]


def test_a_journal_that_is_deleted_under_its_process_is_made_anew(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    import shutil
    async def main():
        await rollout("before", "before")
        await caribou.flush()
        home = os.environ["CARIBOU_HOME"]
        shutil.rmtree(home)
        while not os.path.exists(home + "/journal"):
            await asyncio.sleep(0)
        await rollout("after", "after")
        assert (await caribou.flush(20)).complete
    asyncio.run(main())
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    ended = run(program, tmp_path / "home", **environ)
    assert ended.returncode == 0, ended.stderr
    found = door.rows(f"SELECT DISTINCT content FROM {database}.spans ORDER BY content")
    assert [row["content"] for row in found] == ["after", "before"]


def test_the_password_is_shown_nowhere(tmp_path: Path) -> None:
    program = """
    import logging
    logging.basicConfig(level=logging.DEBUG)
    async def main():
        await rollout()
        result = await caribou.flush(1)
        print(result, caribou.stats(), vars(caribou._process.current()))
        raise RuntimeError("for its traceback")
    asyncio.run(main())
    """
    url = "http://agent:hunter2@127.0.0.1:1"
    ended = run(program, tmp_path, CLICKHOUSE_URL=url)
    assert ended.returncode == 1
    assert "hunter2" not in ended.stdout + ended.stderr
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in everything


def test_a_running_loop_of_a_notebook_can_flush(tmp_path: Path) -> None:
    program = """
    async def cell():
        await rollout()
        caribou.sync.flush()
        result = await caribou.flush()
        assert result.complete
    import caribou.sync
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cell())
    loop.run_until_complete(cell())
    loop.close()
    """
    assert_clean(run(program, tmp_path))
    assert contents(tmp_path) == ["hello"] * 4


def test_the_io_thread_keeps_no_program_from_ending(tmp_path: Path) -> None:
    """Nobody shuts anything down, and the backend is not there."""
    program = """
    import caribou.sync
    with caribou.sync.trace_run(meta()):
        log(Message(role="user", content="hello"))
    """
    ended = run(program, tmp_path, CLICKHOUSE_URL="http://127.0.0.1:1")
    assert ended.returncode == 0
    assert contents(tmp_path) == ["hello"]


def test_threads_are_named_and_few(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    caribou.configure(home=tmp_path, run_id="run", phase="train")
    with caribou.sync.trace_run({"datapoint_id": "dp"}):
        started = set(threading.enumerate()) - before
    assert [thread.name for thread in started] == ["caribou-io"]
    assert all(thread.daemon for thread in started)
    caribou.sync.shutdown()
    assert set(threading.enumerate()) - before == set()


def test_the_callers_thread_touches_no_file_and_no_socket(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    touched = []
    main = threading.get_ident()
    def hook(event, arguments):
        inside = any(event.startswith(kind) for kind in ("open", "os.", "socket.", "fcntl."))
        if watching and inside and threading.get_ident() == main:
            touched.append((event, arguments))
    watching = False
    sys.addaudithook(hook)
    async def main_():
        global watching
        watching = True
        for number in range(20):
            async with trace_run(meta()):
                caribou.add_tags("tag")
                caribou.add_meta({"key": 1})
                async with caribou.span("step"):
                    for _ in range(200):
                        log(Message(role="user", content="x" * 400))
                        await asyncio.sleep(0)
        watching = False
        await caribou.shutdown()
        # Modules imported on the way are files too, and read once.
        print([e for e in touched if not str(e[1][0]).endswith((".py", ".pyc", ".so"))])
    asyncio.run(main_())
    """
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    ended = run(program, tmp_path, **environ)
    assert_clean(ended)
    assert ended.stdout.strip() == "[]"


def test_nothing_is_inherited_by_a_spawned_child(tmp_path: Path) -> None:
    caribou.configure(home=tmp_path, run_id="run", phase="train")
    with caribou.sync.trace_run({"datapoint_id": "dp"}):
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=int)
        process.start()
        process.join()
        assert process.exitcode == 0
    caribou.sync.shutdown()
