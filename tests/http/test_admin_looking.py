"""What operators see at the admin port: every appservice at one look, and one in full."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from appservice_bridge.storage import registrations
from appservice_bridge.storage.database import connect
from tests.support.appservice import Appservice, appservice
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.facts import Connection, capture
from tests.support.reloading import ROOT, Operator, operator, with_tokens

BOT: Final = "@b_1:example.org"
LONG: Final = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
ODD: Final = "a/b c%?ü"


@pytest.fixture
async def bot() -> AsyncIterator[Appservice]:
    async with appservice() as one:
        yield one


@pytest.fixture
def files(database: str, tmp_path: Path, bot: Appservice) -> Files:
    some = [
        registration("bot", bot.url, users=["@b_.*"]),
        registration(ODD, "http://127.0.0.1:9/SECRET", users=["@o_.*"])
        | {"as_token": "as_odd", "hs_token": "hs_odd"},
        registration("puppets", None),
        registration("socket", "websocket"),
    ]
    return with_tokens(write_files(tmp_path, database, some, delivery=LONG))


@pytest.fixture
async def viewer(pg: Connection, files: Files) -> AsyncIterator[Operator]:
    async with worker(files), operator(files, role="viewer") as one:
        while {"going_live", "unserved"} & {told["state"] for told in (await seen(one)).values()}:
            pass  # they are not live and served yet
        yield one


async def seen(viewer: Operator) -> dict[str, Any]:
    return {one["id"]: one for one in (await viewer.get("/appservices"))["appservices"]}


async def until_it_fails(pg: Connection, bot: Appservice) -> None:
    bot.answer = lambda _: (503, {}, b"{}")
    await capture(pg, BOT, 1)
    await bot.until(lambda: len(bot.requests) == 1)
    while not await pg.fetchval(
        "select failed_attempts from appservice_bridge.lane order by 1 desc limit 1"
    ):
        pass


async def test_whoever_shows_a_token_is_told_who_they_are(viewer: Operator) -> None:
    assert await viewer.get("/whoami") == {"version": 1, "name": "viewer", "role": "viewer"}


async def test_every_appservice_is_told_of_also_those_without_a_lane(viewer: Operator) -> None:
    told = await seen(viewer)
    assert set(told) == {"bot", ODD, "puppets", "socket"}
    assert (told["bot"]["state"], told["bot"]["well"], told["bot"]["why"]) == ("idle", True, None)
    assert told["bot"]["worker"] is not None
    puppets, socket = told["puppets"], told["socket"]
    assert (puppets["state"], puppets["well"], puppets["transport"]) == (
        "no_transport",
        True,
        "none",
    )
    assert (socket["state"], socket["well"], socket["transport"]) == (
        "disconnected",
        False,
        "websocket",
    )
    assert {frozenset(one) for one in told.values()} == {frozenset(told["bot"])}


async def test_of_a_url_nothing_but_host_and_port_is_shown(viewer: Operator) -> None:
    assert (await seen(viewer))[ODD]["url_host"] == "127.0.0.1:9"
    assert "SECRET" not in json.dumps(await viewer.get("/appservices"))


async def test_one_that_fails_rests_and_it_is_said_why_and_since_when(
    viewer: Operator, pg: Connection, bot: Appservice
) -> None:
    await until_it_fails(pg, bot)
    told = await viewer.get("/appservices/bot")
    assert (told["state"], told["well"], told["last_status"]) == ("failing", False, 503)
    assert "once" in told["why"]
    assert "its own log" in told["mend"]
    assert told["not_well_since"] <= told["last_attempt_ts"]
    assert told["backlog"] == 1
    assert told["waiting"] == {"to_device": 1}
    assert 0 <= told["oldest_to_device_seconds"] <= told["oldest_waiting_seconds"] + 1
    assert 0 < told["due_in_seconds"] <= 400
    flying = told["in_flight"]
    assert (flying["items"], flying["attempts"]) == (1, 1)
    assert (flying["txn_id"], flying["bury_asked_since"]) == (bot.requests[0].txn_id, None)


async def test_what_is_to_be_set_aside_says_since_when(
    viewer: Operator, pg: Connection, bot: Appservice
) -> None:
    await until_it_fails(pg, bot)
    asked = "update appservice_bridge.sealed set bury_asked_at = '2026-01-02T03:04:05Z'"
    await pg.execute(asked)
    told = await viewer.get("/appservices/bot")
    assert told["in_flight"]["bury_asked_since"] == 1_767_323_045_000


async def test_the_states_are_told_apart(viewer: Operator, pg: Connection) -> None:
    lane = "update appservice_bridge.lane set {} where appservice_id = 'bot'"
    for change, state, undo in (
        ("paused_at = now()", "paused", "paused_at = null"),
        ("due_at = 'infinity'", "halted", "due_at = '-infinity'"),
        ("failed_attempts = 3", "failing", "failed_attempts = 0"),
    ):
        await pg.execute(lane.format(change))
        told = (await seen(viewer))["bot"]
        await pg.execute(lane.format(undo))
        assert (told["state"], told["well"]) == (state, False)
        assert told["mend"]
    assert (await seen(viewer))["bot"]["state"] == "idle"


async def test_who_waits_for_long_is_behind_and_who_has_no_worker_is_unserved(
    database: str, tmp_path: Path, pg: Connection
) -> None:
    conn = await connect(database)
    for id_ in ("left", "gone"):
        await registrations.announce(conn, id_, b"", epoch="test")
    await registrations.go_live(conn, ["left", "gone"])
    await registrations.withdraw_others(conn, ["left"])
    await conn.close()
    files = with_tokens(
        write_files(
            tmp_path, database, [registration("bot", "http://127.0.0.1:9", users=["@b_.*"])]
        )
    )
    async with worker(files), operator(files, role="viewer") as viewer:
        assert (await seen(viewer))["gone"]["state"] == "unregistered"
        assert "registration remove gone" in (await seen(viewer))["gone"]["mend"]


async def test_an_id_may_hold_any_character(viewer: Operator) -> None:
    told = await viewer.get("/appservices/" + quote(ODD, safe=""))
    assert told["id"] == ODD
    assert (await viewer.get(f"/appservices/{quote(ODD, safe='')}/transactions"))[
        "transactions"
    ] == []


async def test_one_that_is_not_there_is_not_found(viewer: Operator) -> None:
    for id_ in ("bit", "%00", "%FF", "%ED%A0%80"):
        for more in ("", "/transactions", "/dead-letters"):
            status, told = await viewer.ask("GET", f"{ROOT}/appservices/{id_}{more}")
            assert (status, told["errcode"]) == (404, "M_NOT_FOUND")


async def test_transactions_are_told_of_in_flight_and_kept_never_what_is_in_them(
    viewer: Operator, pg: Connection, bot: Appservice, files: Files
) -> None:
    await capture(pg, BOT, 1)
    await bot.until(lambda: len(bot.taken) == 1)
    await until_it_fails_again(pg, bot)
    told = (await viewer.get("/appservices/bot/transactions"))["transactions"]
    assert [one["state"] for one in told] == ["in_flight"]
    assert told[0]["items"] == {"to_device": 1}
    assert told[0]["bytes"] == len(bot.requests[-1].body)
    assert "m.test" not in json.dumps(told)


async def until_it_fails_again(pg: Connection, bot: Appservice) -> None:
    bot.answer = lambda _: (503, {}, b"{}")
    await capture(pg, BOT, 2)
    await bot.until(lambda: len(bot.requests) == 2)


async def test_transactions_come_in_pages_the_newest_first(
    viewer: Operator, pg: Connection
) -> None:
    await pg.execute(
        "insert into appservice_bridge.kept (appservice_id, number, txn_id, first_position,"
        " last_position, items, payload_bytes)"
        " select 'bot', n, 'abx-' || n, n, n, 1, 10 from generate_series(1, 5) n"
    )
    first = await viewer.get("/appservices/bot/transactions?limit=3")
    assert [one["number"] for one in first["transactions"]] == [5, 4, 3]
    then = await viewer.get(f"/appservices/bot/transactions?limit=3&before={first['before']}")
    assert [one["number"] for one in then["transactions"]] == [2, 1]
    assert then["before"] is None
    assert {one["state"] for one in then["transactions"]} == {"acknowledged"}


async def test_a_query_that_is_not_understood_is_refused(viewer: Operator) -> None:
    for query in ("limit=0", "limit=501", "limit=x", "limit=-1", "limit=", "before=1.5"):
        path = f"{ROOT}/appservices/bot/transactions?{query}"
        status, told = await viewer.ask("GET", path)
        assert (status, told["errcode"]) == (400, "M_INVALID_PARAM")
    for path in ("/appservices/bot/dead-letters?after=1-2", "/history?minutes=61"):
        assert (await viewer.ask("GET", ROOT + path))[0] == 400


async def test_devices_that_run_out_of_keys_come_first(viewer: Operator, pg: Connection) -> None:
    await pg.executemany(
        "insert into appservice_bridge.device_key_state"
        " (appservice_id, user_id, device_id, waiting, recount, counts, fallback_types)"
        " values ('bot', $1, 'DEV', false, false, $2, $3)",
        [
            ("@b_1:example.org", b'{"signed_curve25519": 50}', b'["signed_curve25519"]'),
            ("@b_2:example.org", b'{"signed_curve25519": 3}', b"[]"),
        ],
    )
    low, enough = (await viewer.get("/appservices/bot"))["devices"]
    assert (low["user_id"], low["low"]) == ("@b_2:example.org", True)
    assert low["one_time_keys"] == {"signed_curve25519": 3}
    assert "3 one-time keys" in low["why"]
    assert (enough["low"], enough["why"]) == (False, None)
    assert enough["unused_fallback"] == ["signed_curve25519"]


async def test_the_homeserver_s_side_and_the_workers_are_told_of(viewer: Operator) -> None:
    told = await viewer.get("/appservices")
    assert told["homeserver"]["server_name"] == "example.org"
    assert told["homeserver"]["well"] is True
    assert told["homeserver"]["capture"]["problems"] == []
    assert [one["alive"] for one in told["workers"]] == [True]
    assert told["workers"][0]["lanes"] == 2
