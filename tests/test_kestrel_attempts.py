"""Hostile requests on the wire: what is no HTTP, bodies without end, keys that are nearly right."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard
from support.serving import Service, serving

pytest.importorskip("chdb", reason="the embedded engine is not installed")

KEY = "correct horse"
EVIL = "<script>alert(1)</script>"
LIMIT = 16 << 20  # bytes of a body

HEAD = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
AUTHORIZED = HEAD + f"Authorization: Bearer {KEY}\r\n".encode()
GET = b"GET /api/v1/projects"
POST = b"POST /api/v1/projects" + AUTHORIZED + b"Content-Type: application/json\r\n"
HIDDEN = KEY[2:]  # no part of the key that is as long as this one is seen anywhere


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home"), KESTREL_API_KEY=KEY) as service:
        yield service


def taken(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def guarded(headers: dict[str, str]) -> None:
    """An answer that no browser takes for a page, and that does not say what served it."""
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert "script-src 'self'" in policy
    assert not [rule for rule in policy if "unsafe" in rule or "*" in rule or "data:" in rule]
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Server"] == "kestrel"


def problem(answer: bytes, status: int) -> dict[str, Any]:
    found, headers, body = taken(answer)
    assert found == status, answer[:500]
    assert headers["Content-Type"] == "application/problem+json"
    guarded(headers)
    details = json.loads(body)
    assert details["status"] == status
    return details


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET + b"?name=" + b"x" * 70_000 + AUTHORIZED + b"\r\n", 431),
        (GET + AUTHORIZED + b"X: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (GET + AUTHORIZED + b"".join(b"X%d: y\r\n" % i for i in range(200)) + b"\r\n", 400),
        (f"{EVIL} / HTTP/1.1\r\n\r\n".encode(), 400),
        (b"EVIL /" + AUTHORIZED + b"\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (GET + AUTHORIZED + b"Ho st: x\r\n\r\n", 400),
        (GET + AUTHORIZED + f"{EVIL}: x\r\n\r\n".encode(), 400),
        (GET + AUTHORIZED[:-2] + b"\x01\r\n\r\n", 400),
        (GET + AUTHORIZED + b"Host: other\r\n\r\n", 400),
        (GET + b" HTTP/1.1\r\n\r\n", 400),
        (f"GET {KEY}".encode() + AUTHORIZED + b"\r\n", 400),
        (b"GET /\xff\xfe" + AUTHORIZED + b"\r\n", 400),
        (POST + b"Content-Length: -5\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}    ", 400),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (POST + b"Content-Length: 2\r\n\r\n{}GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_is_refused_like_all_else(
    service: Service, request_: bytes, status: int
) -> None:
    answer = service.send(request_)
    problem(answer, status)
    # The answer is for whoever asked; what they sent may hold a key all the same.
    assert HIDDEN.encode() not in answer
    assert b"alert" not in answer


def test_what_is_no_request_is_not_logged(service: Service, tmp_path: Any) -> None:
    with serving(tmp_path, KESTREL_API_KEY=KEY) as own:
        own.send(GET + AUTHORIZED[:-2] + b"\x01\r\n\r\n")
        own.send(POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk")
        own.send(b"POST /" + HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk")
        own.send(POST + b"Content-Length: 100\r\n\r\n{", end=True)
        assert own.end() == (0, "")


def test_a_path_is_said_back_as_data(service: Service) -> None:
    path = "/%3Cscript%3Ealert(1)%3C/script%3E"
    for where in (path, f"/api/v1{path}", f"/api/v1/runs{path}", f"/api/v1/runs?{EVIL}={EVIL}"):
        answer = service.send(b"GET " + where.encode() + AUTHORIZED + b"\r\n")
        assert EVIL in json.dumps(problem(answer, taken(answer)[0]))
    answer = service.send(GET + AUTHORIZED + f"Expect: {EVIL}\r\n\r\n".encode())
    status, headers, _ = taken(answer)
    assert (status, headers["Content-Type"]) == (417, "text/plain; charset=utf-8")
    guarded(headers)


def body(data: bytes, coding: bytes = b"") -> bytes:
    encoded = b"Content-Encoding: %s\r\n" % coding if coding else b""
    return POST + encoded + b"Content-Length: %d\r\n\r\n" % len(data) + data


LARGE = b'{"name":"' + b"x" * (4 * LIMIT) + b'"}'
CHUNK = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(POST + b"Content-Length: 99999999999\r\n\r\n{", id="said"),
        pytest.param(body(b" " * (LIMIT + 1)), id="sent"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 17, id="chunked"),
        pytest.param(body(gzip.compress(LARGE), b"gzip"), id="gzip"),
        pytest.param(body(zlib.compress(LARGE), b"deflate"), id="deflate"),
    ],
)
def test_a_body_past_the_limit_is_refused(service: Service, request_: bytes) -> None:
    before = memory(service)
    found = problem(service.send(request_), 413)
    assert str(LIMIT) in found["allowed"]
    assert memory(service) - before < 3 * LIMIT


def memory(service: Service) -> int:
    """Bytes in use by the service."""
    _, text = service.request("GET", "/metrics")
    [line] = [x for x in text.decode().splitlines() if x.startswith("process_resident")]
    return int(line.split()[1])


@pytest.mark.parametrize("coding", ["zstd", "br", "gzip, gzip", "evil", f"x-{EVIL}"])
def test_a_coding_that_is_not_known_is_refused(service: Service, coding: str) -> None:
    bomb = zstandard.compress(LARGE)
    found = problem(service.send(body(bomb, coding.encode())), 415)
    assert found["field"] == "Content-Encoding"
    assert found["allowed"] == ["gzip", "deflate"]


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"gzip", b"junk"),
        (b"deflate", b"junk"),
        (b"gzip", gzip.compress(b'{"name":"p"}')[:-8] + b"checksum"),
    ],
    ids=["gzip", "deflate", "checksum"],
)
def test_a_body_that_is_not_what_it_says_is_refused(
    service: Service, coding: bytes, data: bytes
) -> None:
    found = problem(service.send(body(data, coding)), 415)
    assert found["field"] == "Content-Encoding"


def test_a_body_that_is_what_it_says_is_taken(service: Service) -> None:
    for coding, pack in ((b"gzip", gzip.compress), (b"deflate", zlib.compress)):
        assert taken(service.send(body(pack(b'{"name":"p"}'), coding)))[0] == 200
    assert taken(service.send(body(b'{"name":"p"}', b"identity")))[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"name":' * 100_000,
        b'{"name":"p","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"config":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"name":"' + b"\\u0061" * 200_000 + b'"}',
        b'{"name":1' + b"0" * 1_000_000 + b"}",
        b'{"name":"p",' * 1000,
    ],
    ids=lambda data: data[:12].decode(),
)
def test_json_that_is_deep_or_endless_is_refused(service: Service, data: bytes) -> None:
    for path in (b"/projects", b"/runs"):
        problem(service.send(body(data).replace(b"/projects", path, 1)), 400)


def test_a_batch_has_a_limit_of_items(service: Service) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    for path, item in (
        ("/api/v1/datapoints", {"datapoint_id": "d"}),
        ("/api/v1/runs/r/steps", {"step_number": 1}),
    ):
        for count, status in ((10_000, 200), (10_001, 400)):
            items = {"items": [item] * count}
            assert service.request("PUT", path, items, **headers)[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/", "/healthz", "/metrics", "/static/app.js", "/api/v1/openapi.json", "/api/v1/projects",
        "/api/v1/runs", "/api/v1/datapoints", "/api/v1/traces", "/api/v1/aggregates/steps",
        "/api/v1/runs/unknown", "/api/v1/nothing", "/api/v1/runs?limit=0",
    ],
)  # fmt: skip
def test_head_answers_as_get_without_the_body(service: Service, path: str) -> None:
    answers = [
        taken(service.send(method + b" " + path.encode() + AUTHORIZED + b"\r\n"))
        for method in (b"GET", b"HEAD")
    ]
    (status, headers, body), (status_, headers_, body_) = answers
    for name in ("Date", "Content-Length"):
        headers.pop(name), headers_.pop(name)
    assert (status_, headers_, body_) == (status, headers, b"")
    assert body


def test_head_of_the_live_stream_ends(service: Service) -> None:
    answer = service.send(b"HEAD /api/v1/live" + AUTHORIZED + b"\r\n")
    status, headers, body = taken(answer)
    assert (status, body) == (200, b"")
    assert headers["Content-Type"] == "text/event-stream"


BASIC = base64.b64encode(f"user:{KEY}".encode()).decode()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("", ()),
        ("", ("Authorization: ",)),
        ("", ("Authorization: Bearer",)),
        ("", ("Authorization: Bearer ",)),
        ("", (f"Authorization: {KEY}",)),
        ("", (f"Authorization: Bearer {KEY[:-1]}",)),
        ("", (f"Authorization: Bearer {KEY}x",)),
        ("", (f"Authorization: Bearer x{KEY}",)),
        ("", (f"Authorization: Bearer {KEY.upper()}",)),
        ("", (f"Authorization: Bearer {KEY},{KEY}",)),
        ("", (f"Authorization: Bearer {KEY}, Bearer x",)),
        ("", ("Authorization: Bearer " + KEY.replace(" ", "\t"),)),
        ("", ("Authorization: Bearer " + KEY.replace("o", "о"),)),  # noqa: RUF001 - Cyrillic
        ("", (f"Authorization: Basic {BASIC}",)),
        ("", (f"Authorization: Token {KEY}",)),
        ("", (f"Authorization: Bearer  Bearer {KEY}",)),
        ("", (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}")),
        ("", (f"Authorization: Bearer {KEY}", "Authorization: Bearer wrong")),
        ("", ("Authorization: Bearer wrong", f"Authorization: Bearer {KEY}")),
        ("", (f"Proxy-Authorization: Bearer {KEY}",)),
        ("", (f"X-Api-Key: {KEY}",)),
        ("", (f"X-ClickHouse-Key: {KEY}",)),
        ("", (f"Cookie: Authorization=Bearer%20{KEY}; key={KEY}",)),
        ("?Authorization=Bearer%20correct%20horse", ()),
        ("?key=correct%20horse&api_key=correct%20horse&access_token=correct%20horse", ()),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_only_the_key_itself_in_its_place_lets_in(
    service: Service, method: str, path: str, headers: tuple[str, ...]
) -> None:
    lines = "".join(f"{line}\r\n" for line in headers).encode()
    for where in ("/projects", "/live", "/openapi.json", "/nothing"):
        start = f"{method} /api/v1{where}{path}".encode()
        answer = service.send(start + HEAD + lines + b"\r\n")
        status, told, _ = taken(answer)
        assert (status, told["WWW-Authenticate"]) == (401, "Bearer")
        assert HIDDEN.encode() not in answer
        guarded(told)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_no_part_of_the_key(service: Service, scheme: str) -> None:
    header = f"Authorization: {scheme} {KEY}\r\n\r\n".encode()
    assert taken(service.send(GET + HEAD + header))[0] == 200


def test_an_idempotency_key_holds_for_one_body(service: Service) -> None:
    def create(key: str, body: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": key}
        status, answer = service.request("POST", "/api/v1/runs", body, **headers)
        return status, json.loads(answer)

    first = create("again", {"name": "one"})
    assert create("again", {"name": "one"}) == first
    assert first[0] == 201
    # Another body with the same key, or another key, is another run; no key's is anybody's.
    ids = {first[1]["run_id"]}
    for key, name in (("again", "two"), ("other", "one"), ("' OR 1=1 --", "one"), ("", "one")):
        status, run = create(key, {"name": name})
        assert (status, run["name"]) == (201, name)
        ids.add(run["run_id"])
    assert len(ids) == 5
    assert create("x" * 257, {})[1]["field"] == "Idempotency-Key"
