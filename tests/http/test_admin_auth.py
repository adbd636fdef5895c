"""The admin port: who may do what, by the token that is shown."""

from pathlib import Path

import pytest

from tests.support.bridge import Files, registration, worker, write_files
from tests.support.facts import Connection
from tests.support.reloading import RELOAD, operator, with_tokens


@pytest.fixture
def files(database: str, tmp_path: Path) -> Files:
    return with_tokens(write_files(tmp_path, database, [registration("bot", None)]))


async def test_health_and_readiness_need_no_token(pg: Connection, files: Files) -> None:
    async with worker(files), operator(files, role=None) as nobody:
        for path in ("/health", "/ready", "/_appservice_bridge/v1/health"):
            assert (await nobody.ask("GET", path))[0] == 200


@pytest.mark.parametrize("role", [None, "wrong", ""])
async def test_without_a_token_of_ours_nothing_else_is_answered(
    pg: Connection, files: Files, role: str | None
) -> None:
    async with worker(files), operator(files, role=role) as nobody:
        for method in ("GET", "POST"):
            status, told = await nobody.ask(method, RELOAD)
            assert (status, told["errcode"]) == (401, "M_UNKNOWN_TOKEN")
        in_query = await nobody.ask("GET", f"{RELOAD}?access_token=secret-admin")
        assert in_query[0] == 401
        assert (await nobody.ask("GET", RELOAD, Authorization="Basic secret-admin"))[0] == 401


async def test_a_role_may_do_what_those_below_it_may_and_no_more(
    pg: Connection, files: Files
) -> None:
    async with worker(files):
        for role in ("viewer", "operator", "admin"):
            async with operator(files, role=role) as one:
                assert (await one.ask("GET", RELOAD))[0] == 200
        async with operator(files, role="viewer") as viewer:
            status, told = await viewer.ask("POST", RELOAD)
    assert (status, told["errcode"]) == (403, "M_FORBIDDEN")
    assert "operator" in told["error"]


async def test_a_token_file_is_read_anew_and_one_that_is_gone_lets_nobody_in(
    pg: Connection, files: Files
) -> None:
    token = files.config.parent / "viewer.token"
    async with worker(files), operator(files, role="viewer") as viewer:
        token.write_text("another\n")
        assert (await viewer.ask("GET", RELOAD))[0] == 401
        token.unlink()
        assert (await viewer.ask("GET", RELOAD))[0] == 401
        token.write_text("secret-viewer\n")
        assert (await viewer.ask("GET", RELOAD))[0] == 200


async def test_what_is_not_there_is_not_found_in_matrix_s_words(
    pg: Connection, files: Files
) -> None:
    async with worker(files), operator(files, role=None) as nobody:
        status, told = await nobody.ask("GET", "/_appservice_bridge/v1/nothing")
    assert (status, told["errcode"]) == (404, "M_UNRECOGNIZED")
