"""Faults on the wire, each with how it begins and how it ends, over a door or a real server.

A scenario's ``begin`` is called while agents log, ``heal`` some time later. The tests check what is
stored afterwards; ``benchmarks/faults.py`` measures what callers feel meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.faultproxy import (
    Answer,
    BlackHole,
    CutBody,
    Fault,
    FaultProxy,
    SlowDrip,
    SwallowAnswer,
)
from support.nativeproxy import CutRows, DripEnd, LoseEnd
from support.servers import Server


@dataclass(frozen=True)
class Scenario:
    """A fault between the program and its server.

    ``from_start`` begins it before the first record; ``delivers`` says whether rows may arrive
    while it lasts.
    """

    name: str
    begin: Callable[[FaultProxy, Server], None]
    heal: Callable[[FaultProxy, Server], None]
    from_start: bool = False
    delivers: bool = False

    def __str__(self) -> str:
        return self.name


def _fault(name: str, fault: Fault, *, times: int | None = None, every: bool = False) -> Scenario:
    return Scenario(
        name,
        lambda proxy, _: proxy.fault(fault, times=times, every=every),
        lambda proxy, _: proxy.clear(),
        delivers=times is not None or isinstance(fault, SlowDrip | DripEnd),
    )


def _refuse(proxy: FaultProxy, _: Server) -> None:
    proxy.refuse()


def _accept(proxy: FaultProxy, _: Server) -> None:
    proxy.accept()


def _kill(_: FaultProxy, server: Server) -> None:
    server.kill()


def _start(_: FaultProxy, server: Server) -> None:
    server.start()


ON_THE_WIRE = [
    Scenario("refused at start", _refuse, _accept, from_start=True),
    Scenario("down in mid-run", _refuse, _accept),
    _fault("black hole", BlackHole(), every=True),
    _fault("cut in mid-body on a row boundary", CutBody(rows=5), times=3),
    _fault("cut in mid-body elsewhere", CutBody(after=100), times=3),
    _fault("answer lost after commit", SwallowAnswer(), times=3),
    _fault("429 with Retry-After", Answer(429, {"Retry-After": "1"})),
    _fault("500", Answer(500, body=b"Code: 999. Coordination error")),
    _fault("503", Answer(503)),
    _fault("slow drip", SlowDrip(step=8, interval=0.02)),
]

# The same, where the native protocol is spoken.
ON_THE_NATIVE_WIRE = [
    Scenario("refused at start", _refuse, _accept, from_start=True),
    Scenario("down in mid-run", _refuse, _accept),
    _fault("black hole", BlackHole(), every=True),
    _fault("cut before the rows", CutRows(0), times=3),
    _fault("cut in the rows", CutRows(150), times=3),
    _fault("end of stream lost after commit", LoseEnd(), times=3),
    _fault("slow drip", DripEnd()),
]

# For a server that the scenario may kill.
RESTARTED = Scenario("restarted in mid-batch", _kill, _start)
