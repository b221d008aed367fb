"""Work on rows stands still while a caller is kept by system calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.waiting import wait_until

from caribou import _pace
from caribou._pace import Pace, in_a_hurry
from caribou.journal.segment import Segment
from caribou.journal.stream import Stream


class Worker:
    """A thread that works at a pace, and counts."""

    def __init__(self) -> None:
        self.steps = 0
        self._stop = False
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        pace = Pace()
        while not self._stop:
            self.steps += 1
            pace.pause()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        wait_until(lambda: self.steps > 100)
        try:
            yield
        finally:
            self._stop = True
            self._thread.join()


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pace, "_LONGEST_HURRY", 60.0)


def stands_still(worker: Worker) -> bool:
    """Whether it does nothing in a time in which it would do thousands of steps, though it has the
    interpreter for itself."""
    before = worker.steps
    threading.Event().wait(0.02)
    return worker.steps <= before + 1


def test_who_works_at_a_pace_stands_still_in_a_hurry() -> None:
    worker = Worker()
    with worker.at_work():
        with in_a_hurry():
            assert stands_still(worker)
        after = worker.steps
        wait_until(lambda: worker.steps > after + 100)


def test_a_hurry_does_not_wait_for_the_end_of_a_stretch() -> None:
    paused: list[bool] = []
    with in_a_hurry():
        thread = threading.Thread(target=lambda: paused.append(Pace().pause()))
        thread.start()
        thread.join(0.02)
        assert paused == []
    thread.join()
    assert paused == [True]


def test_a_caller_that_makes_its_own_segment_is_in_a_hurry(tmp_path: Path) -> None:
    worker, seen = Worker(), list[bool]()

    def make(table: str, size: int) -> Segment:
        if stream_made:
            seen.append(stands_still(worker))
        return Segment(table, len(seen), size, tmp_path)

    stream_made = False
    stream = Stream("spans", make, lambda: None, lambda table: stream)
    stream_made = True
    with worker.at_work():
        while len(stream.segments) < 2:
            stream.append(b"x" * 10_000)
    assert seen == [True]
    for segment in stream.segments:
        segment.close()


def test_a_hurry_ends_whatever_becomes_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pace, "_LONGEST_HURRY", 0.02)
    left_open = in_a_hurry()
    left_open.__enter__()
    worker = Worker()
    with worker.at_work():
        assert worker.steps > 100
    left_open.__exit__(None, None, None)
