"""What Kestrel is told of when a rollout opens: its run, step and datapoint, each once.

Telling is a line in the journal, delivered like every other. Registering a thing again changes
nothing, so what is known here only saves lines, and may be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ._sanitize import encode

__all__ = ["Registrar"]

_MAX_KNOWN: Final = 8 << 20
_ABOUT_EACH: Final = 100  # bytes that an entry takes beside its line


class Registrar:
    """Writes the registrations that rollouts ask for; those of one process and one Kestrel."""

    __slots__ = ("_known", "_size")

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._size = 0

    def register(
        self, constants: Mapping[str, object], append: Callable[[bytes | bytearray], None]
    ) -> None:
        """Append a line for each thing that the rollout with these ``constants`` belongs to and
        that was not registered lately: in train and eval its run, its step and its datapoint; in
        prod its datapoint alone, in the project that ``run_id`` names."""
        phase = constants["phase"]
        run_id = constants.get("run_id")
        datapoint = {"kind": "datapoint", "datapoint_id": constants["datapoint_id"]}
        if phase == "prod":
            if run_id is not None:
                datapoint["project"] = run_id
        elif run_id is not None:
            self._once({"kind": "run", "run_id": run_id, "phase": phase}, append)
            step = constants.get("step_number")
            if step is not None:
                step_columns = {"kind": "run_step", "run_id": run_id, "step_number": step}
                self._once(step_columns | {"phase": phase}, append)
        self._once(datapoint | {"phase": phase}, append)

    def _once(
        self, columns: dict[str, object], append: Callable[[bytes | bytearray], None]
    ) -> None:
        line = encode(columns)
        if line in self._known:
            return
        append(line)
        if self._size > _MAX_KNOWN:
            self._known.clear()
            self._size = 0
        self._known.add(line)
        self._size += len(line) + _ABOUT_EACH
