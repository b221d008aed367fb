"""What ``trace_run`` is given: checked at the call, before anything is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import caribou.sync as caribou
from caribou import InvalidType, InvalidValue
from caribou.testing import Capture

META = {"datapoint_id": "d", "phase": "train"}

HEX = "0123456789abcdef0123456789ABCDEF"


@pytest.mark.parametrize(
    ("given", "kept"),
    [(HEX, HEX.lower()), ("0" * 32, None), ("conversation 42", None), ("\ud800", None)],
)
def test_a_trace_id_of_the_users_own(
    caribou_capture: Capture, given: str, kept: str | None
) -> None:
    ids = set()
    for _ in range(2):
        with caribou.trace_run(META | {"trace_id": given}) as trace_id:
            ids.add(trace_id)
    (trace_id,) = ids
    assert len(trace_id) == 32
    assert int(trace_id, 16)
    if kept is not None:
        assert trace_id == kept
        assert caribou_capture.metadata == []
    else:
        stored = "�" if given == "\ud800" else given
        assert [row["value"] for row in caribou_capture.metadata] == [stored, stored]
        assert caribou_capture.metadata[0]["key"] == "given_trace_id"
    # Two requests of one conversation are two roots of one trace.
    assert len({row["root_span_id"] for row in caribou_capture.traces}) == 2


def _wrong_meta() -> Iterator[Any]:
    good: dict[str, Any] = dict(META)
    yield {}, InvalidValue, ["datapoint_id is missing", "step_number", "model_name"]
    yield {"phase": "train"}, InvalidValue, ["datapoint_id is missing"]
    yield {"datapoint_id": "d"}, InvalidValue, ["phase is missing", "train, eval, prod"]
    yield good | {"phase": "test"}, InvalidValue, ["phase must be", "train, eval, prod", "'test'"]
    yield good | {"phase": []}, InvalidValue, ["phase must be"]
    yield good | {"datapoint": "x"}, InvalidValue, ["'datapoint'", "did you mean 'datapoint_id'"]
    yield good | {5: "x"}, InvalidValue, ["unknown key 5"]
    yield good | {"datapoint_id": 5}, InvalidType, ["datapoint_id must be a str, not int"]
    yield good | {"datapoint_id": ""}, InvalidValue, ["datapoint_id must not be empty"]
    yield good | {"datapoint_id": "x" * 2000}, InvalidValue, ["2000 characters"]
    yield good | {"step_number": -1}, InvalidValue, ["step_number must be from 0 up"]
    yield good | {"step_number": 2**63}, InvalidValue, ["step_number"]
    yield good | {"step_number": 1.0}, InvalidType, ["step_number must be an int, not float"]
    yield good | {"step_number": True}, InvalidType, ["step_number must be an int, not bool"]
    yield good | {"phase": "prod", "step_number": 1}, InvalidValue, ["step_number", "prod"]
    yield good | {"phase": "prod", "grader_name": "g"}, InvalidValue, ["grader_name", "prod"]
    yield good | {"trace_id": ""}, InvalidValue, ["trace_id must not be empty"]
    yield good | {"env_name": ["e"]}, InvalidType, ["env_name must be a str, not list"]
    yield "d", InvalidType, ["dict", "not str"]
    yield None, InvalidType, ["dict", "not NoneType"]


@pytest.mark.parametrize(("meta", "kind", "words"), list(_wrong_meta()))
def test_wrong_metadata_is_refused_at_the_call(
    caribou_capture: Capture, meta: Any, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as refused:
        caribou.trace_run(meta)
    assert all(word in str(refused.value) for word in words), refused.value
    assert caribou.stats().sinks["capture"].logged == 0


def test_none_is_as_good_as_no_key(caribou_capture: Capture) -> None:
    names = ("run_id", "step_number", "env_name", "model_name", "grader_name", "trace_id")
    with caribou.trace_run(META | dict.fromkeys(names)):
        pass
    assert not set(names[:-1]) & set(caribou_capture.traces[0])
