"""A server as the service's store: what its user must be let do, and that asking blocks nobody."""

from __future__ import annotations

import pytest
from blockbuster import blockbuster_ctx
from support.kestrel import api, remote_backend
from support.servers import DoorServer, OldServer

from caribou._settings import Settings
from caribou.errors import StoreError
from caribou.server.remote import RemoteBackend

pytestmark = pytest.mark.asyncio


async def test_the_loop_is_not_held_up(door: DoorServer) -> None:
    backend = remote_backend(door)
    with blockbuster_ctx("caribou"):
        # The tables are missing: the whole schema is looked for, and made.
        assert await backend.rows("SELECT count() AS runs FROM runs") == [{"runs": 0}]
        await backend.insert("projects", [{"project_id": "x", "name": "n", "version": 1}])
        assert await backend.rows("SELECT name FROM projects") == [{"name": "n"}]
    await backend.aclose()


async def test_a_user_who_may_set_nothing_is_told_what_is_missing(
    old_server: OldServer, caplog: pytest.LogCaptureFixture
) -> None:
    old_server.sql("CREATE DATABASE caribou")
    settings = Settings(
        clickhouse_url=old_server.url, clickhouse_user="reader", clickhouse_password="secret-r"
    )
    backend = RemoteBackend(settings)
    with pytest.raises(StoreError) as caught:
        await backend.rows("SELECT 1")
    await backend.aclose()
    assert "secret-r" not in str(caught.value)
    backend = remote_backend(
        old_server, "caribou", clickhouse_user="reader", clickhouse_password="r"
    )
    with pytest.raises(StoreError, match=r"profile .*CLICKHOUSE_USER.* readonly = 2"):
        await backend.rows("SELECT 1 AS one")
    await backend.aclose()
    backend = remote_backend(
        old_server, "caribou", clickhouse_user="reader", clickhouse_password="r"
    )
    async with api(backend) as client:
        answer = await client.get("/projects")
        assert (answer.status_code, "readonly" in answer.text) == (500, False)
    assert "readonly = 2" in caplog.text


async def test_a_user_who_may_not_store_is_told_which_right_is_missing(
    door: DoorServer, caplog: pytest.LogCaptureFixture
) -> None:
    backend = remote_backend(door)
    async with api(backend) as client:
        assert (await client.get("/projects")).status_code == 200
        door.control(deny=["INSERT"])
        assert (await client.post("/projects", json={"name": "p"})).status_code == 500
        assert "INSERT" in caplog.text
        assert (await client.get("/projects")).json()["items"] == []
