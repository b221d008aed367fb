"""What the service says of its API, held against what it does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import settings
from hypothesis import strategies as st
from schemathesis.checks import negative_data_rejection
from support.kestrel import remote_backend, serving
from support.servers import DoorServer

from caribou.server.app import API, DOCUMENT, ROUTES, create_app

KEY = "a key of this test's"
HEADERS = {"Authorization": f"Bearer {KEY}"}

_times = st.datetimes(datetime(1971, 1, 1), datetime(2261, 1, 1), timezones=st.just(UTC))
schemathesis.openapi.format("date-time", _times.map(datetime.isoformat))
# No text but an answer's is a cursor, save the empty one of the first page.
schemathesis.openapi.format("cursor", st.just(""))

# A stream has no end to wait for.
schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(path_regex="/live$")


@schema.hook
def map_body(context: Any, body: Any) -> Any:
    """JSON Schema takes 5.0 for a whole number, and the service takes 5."""
    items = body.get("items") if isinstance(body, dict) else None
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and isinstance(number := item.get("step_number"), float):
            item["step_number"] = int(number) if number.is_integer() else number
    return body


@schema.hook
def filter_body(context: Any, body: Any) -> bool:
    """Formats within alternatives are not heeded where data is made: any text is taken for one."""
    time = body.get("finished_at") if isinstance(body, dict) else None
    try:
        return not isinstance(time, str) or ("T" in time and bool(datetime.fromisoformat(time)))
    except ValueError:
        return False


@pytest.fixture(scope="module")
def address(_door: DoorServer) -> Iterator[str]:
    """A service with a key, in a loop of its own."""
    urls: list[str] = []
    ready = threading.Event()
    stop = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        backend = remote_backend(_door)
        async with serving(create_app(backend, api_key=KEY)) as url:
            urls.append(url)
            ready.set()
            await stop.wait()
        await backend.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield urls[0]
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(20)


@schema.parametrize()
@settings(max_examples=8, deadline=None)
def test_does_what_it_says(case: schemathesis.Case, address: str) -> None:
    parameters = DOCUMENT["paths"][case.operation.path][case.operation.method.lower()]["parameters"]
    # In a URL a number is a text, and that is a list of one: what is told of as wrong is not.
    repeated = any(each["schema"].get("type") in ("array", "object") for each in parameters)
    case.call_and_validate(
        base_url=address,
        headers=HEADERS,
        excluded_checks=[negative_data_rejection] if repeated else [],
    )


def test_the_document_is_served_and_names_every_route(address: str) -> None:
    answer = httpx.get(f"{address}{API}/openapi.json", headers=HEADERS)
    assert (answer.status_code, answer.json()) == (200, DOCUMENT)
    described = {
        (method, path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert described == {(route.method.lower(), API + route.path) for route in ROUTES}
    operations = [each for path in DOCUMENT["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
