"""One lane and one appservice: the same transaction until it is taken, and then the next."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appservice_bridge.delivery import building
from appservice_bridge.delivery import lane as lane_module
from appservice_bridge.delivery.bodies import Bodies
from appservice_bridge.delivery.group_commit import GroupCommit
from appservice_bridge.delivery.lane import Lane
from appservice_bridge.storage import outbox
from appservice_bridge.storage.turns import Following, Turn, Turned
from tests.support.appservice import Request, appservice, by_hand, next_body, ok
from tests.support.bridge import registration, worker, write_files
from tests.support.facts import Connection, capture, relay, wait_until

BOT = "@b_1:example.org"
DEVICE_LIST = """
insert into appservice_bridge.device_list_update (appservice_id, user_id, change)
values ('bot', $1, 'changed') on conflict do nothing
"""


@pytest.fixture
def all_bodies(monkeypatch: pytest.MonkeyPatch) -> list[Bodies]:
    """Of every worker that is started."""
    start, all_of_them = Bodies.__init__, list[Bodies]()

    def kept(self: Bodies, *arguments: int) -> None:
        start(self, *arguments)
        all_of_them.append(self)

    monkeypatch.setattr(Bodies, "__init__", kept)
    return all_of_them


def numbers(items: list[dict[str, object]]) -> list[object]:
    return [item["content"]["n"] for item in items]  # type: ignore[index]


async def test_a_key_and_the_message_it_opens_come_in_one_transaction_or_in_order(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        await capture(pg, BOT, 1)
        await relay(pg, "bot", "$1")
        async with worker(files):
            await bot.until(lambda: len(bot.events) == 1)
    first = bot.requests[0]
    assert first.method == "PUT"
    assert first.path.startswith("/_matrix/app/v1/transactions/ab")
    assert first.token == "hs_bot"
    assert json.loads(first.body) == {
        "events": [{"event_id": "$1", "type": "m"}],
        "de.sorunome.msc2409.to_device": [
            {
                "to_user_id": BOT,
                "to_device_id": "DEV",
                "type": "m.test",
                "sender": "@alice:example.org",
                "content": {"n": 1},
            }
        ],
    }


async def test_case_13_a_refused_transaction_comes_again_with_the_same_id_and_bytes(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (500 if len(bot.requests) < 3 else 200, {}, b"{}")
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) >= 1)
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.to_device) == 2)
    assert len({(request.path, request.body) for request in bot.requests[:3]}) == 1
    assert numbers(bot.to_device) == [1, 2]


async def test_case_15_the_next_is_not_sent_while_a_slow_appservice_still_works(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.delay_seconds = 0.5
        files = write_files(
            tmp_path,
            database,
            [registration("bot", bot.url, users=["@b_.*"])],
            delivery={"timeout_seconds": 0.2, "max_items": 1},
        )
        async with worker(files):
            for n in range(1, 4):
                await capture(pg, BOT, n)
            await bot.until(lambda: len(bot.requests) >= 3)
            assert len({request.txn_id for request in bot.requests}) == 1
            bot.delay_seconds = 0
            await bot.until(lambda: len(bot.to_device) == 3)
    assert numbers(bot.to_device) == [1, 2, 3]


async def test_case_16_an_appservice_that_was_down_for_long_gets_everything_in_order(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        down = registration("bot", bot.url, users=["@b_.*"])
    files = write_files(tmp_path, database, [down], delivery={"max_items": 300})
    async with worker(files):
        for n in range(1, 1001):
            await capture(pg, BOT, n)
        await wait_until(pg, "select failed_attempts > 2 from appservice_bridge.lane")
    # a day of failures, as the next worker finds it
    await pg.execute("update appservice_bridge.lane set failed_attempts = 1440")
    async with worker(files):
        await wait_until(pg, "select failed_attempts > 1441 from appservice_bridge.lane")
        async with appservice(int(down["url"].rpartition(":")[2])) as back:
            await back.until(lambda: len(back.to_device) == 1000)
    assert numbers(back.to_device) == list(range(1, 1001))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_case_19_a_redirect_is_a_failure_and_is_never_followed(
    pg: Connection, database: str, tmp_path: Path, status: int
) -> None:
    async with appservice() as elsewhere, appservice() as bot:
        to = {"Location": f"{elsewhere.url}/_matrix/app/v1/transactions/1"}
        bot.answer = lambda _: (status, to, b"")
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 2)
            bot.answer = ok
            await bot.until(lambda: len(bot.to_device) == 1)
    assert elsewhere.requests == []


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"\xff\xfe"])
@pytest.mark.parametrize("status", [200, 204])
async def test_case_20_any_2xx_is_an_ack_whatever_its_body(
    pg: Connection, database: str, tmp_path: Path, status: int, body: bytes
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (status, {}, body if status != 204 else b"")
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.to_device) == 2)
            await wait_until(pg, "select acked_to = 2 from appservice_bridge.lane")
    assert len({request.txn_id for request in bot.requests}) == len(bot.requests)


async def test_an_answer_that_asks_for_a_rest_gets_it_up_to_the_ceiling(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (429, {"Retry-After": "86400"}, b"")
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 2)
    assert 0.3 < bot.requests[1].began - bot.requests[0].began < 60  # the ceiling here is 0.4 s


async def test_the_legacy_path_is_taken_only_where_v1_is_unrecognized(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    def old(request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.path.startswith("/_matrix"):
            return 404, {}, b'{"errcode":"M_UNRECOGNIZED"}'
        return ok(request)

    async with appservice() as bot:
        bot.answer = old
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
    v1, legacy = bot.requests
    assert legacy.path == v1.path.removeprefix("/_matrix/app/v1")
    assert (legacy.txn_id, legacy.body) == (v1.txn_id, v1.body)


async def test_transactions_stay_below_the_caps_and_keep_the_order(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(
            tmp_path,
            database,
            [registration("bot", bot.url, users=["@b_.*"])],
            delivery={"max_items": 50, "max_body_bytes": 4000},
        )
        for n in range(1, 201):
            await capture(pg, BOT, n)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 200)
    assert numbers(bot.to_device) == list(range(1, 201))
    assert all(len(request.body) <= 4000 for request in bot.requests)
    assert all(len(r.items("de.sorunome.msc2409.to_device")) <= 50 for r in bot.requests)


async def test_what_comes_after_the_next_is_built_while_the_next_is_sealed(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, turn, done = building.build_ahead, GroupCommit.turn, list[tuple[str, int]]()

    async def built(*arguments: Any) -> Any:
        done.append(("builds", arguments[-1].number))
        return await build(*arguments)

    async def turned(self: GroupCommit, one: Turn) -> Turned | None:
        if one.following is None:
            return await turn(self, one)
        done.append(("seals", one.following.sealed.number))
        await asyncio.sleep(0.05)
        taken = await turn(self, one)
        done.append(("sealed", one.following.sealed.number))
        return taken

    monkeypatch.setattr(lane_module, "build_ahead", built)
    monkeypatch.setattr(GroupCommit, "turn", turned)
    async with appservice() as bot:
        delivery = {"max_items": 10}
        registered = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path, database, registered, delivery=delivery)
        for n in range(1, 101):
            await capture(pg, BOT, n)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 100)
    assert numbers(bot.to_device) == list(range(1, 101))
    one = max(number for what, number in done if what == "seals") // 2
    began, ended = done.index(("seals", one)), done.index(("sealed", one))
    assert ("builds", one + 1) in done[began:ended]


async def test_what_is_acked_and_sealed_and_built_behind_it_counts_all_the_while(
    pg: Connection,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    all_bodies: list[Bodies],
) -> None:
    build, turn, built, counted = building.build_ahead, GroupCommit.turn, {}, list[list[int]]()

    async def noted(*arguments: Any) -> Following | None:
        following = await build(*arguments)
        if following is not None:
            built[following.sealed.number] = len(following.sealed.body)
        return following

    async def turned(self: GroupCommit, one: Turn) -> Turned | None:
        if one.taken is not None and one.following is not None:
            await asyncio.sleep(0.05)
            sealed = one.following.sealed
            held = [len(one.taken.body), len(sealed.body), built.get(sealed.number + 1, 0)]
            assert all_bodies[0].total == sum(held)
            counted.append(held)
        return await turn(self, one)

    monkeypatch.setattr(lane_module, "build_ahead", noted)
    monkeypatch.setattr(GroupCommit, "turn", turned)
    async with appservice() as bot:
        delivery = {"max_items": 10}
        registered = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path, database, registered, delivery=delivery)
        for n in range(1, 101):
            await capture(pg, BOT, n)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 100)
    assert any(all(held) for held in counted)


async def test_what_was_built_behind_a_seal_that_did_not_come_about_is_built_anew(
    pg: Connection,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    all_bodies: list[Bodies],
) -> None:
    """A device list that waits goes with the next transaction, which is then another one."""
    turn = GroupCommit.turn

    async def turned(self: GroupCommit, one: Turn) -> Turned | None:
        if one.following is not None and one.following.sealed.number % 3 == 0:
            changed = f"@alice_{one.following.sealed.number}:example.org"
            await pg.execute(DEVICE_LIST, changed)
        return await turn(self, one)

    monkeypatch.setattr(GroupCommit, "turn", turned)
    async with appservice() as bot:
        delivery = {"max_items": 10}
        registered = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path, database, registered, delivery=delivery)
        for n in range(1, 101):
            await capture(pg, BOT, n)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) == 100)
            await wait_until(pg, "select count(*) = 0 from appservice_bridge.sealed")
    assert numbers(bot.to_device) == list(range(1, 101))
    assert any(b"alice_" in request.body for request in bot.requests)
    assert [one.total for one in all_bodies] == [0]


async def test_a_transaction_that_does_not_match_its_seal_is_never_sent(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (500, {}, b"")
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) >= 1)
        sealed = len(bot.requests)
        await pg.execute("update appservice_bridge.outbox set payload = '{}'")
        bot.answer = ok
        async with worker(files):
            await wait_until(pg, "select last_outcome = 'altered' from appservice_bridge.lane")
            await capture(pg, BOT, 2)
    assert len(bot.requests) == sealed


async def test_delivered_payloads_leave_the_database(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            for n in range(1, 4):
                await capture(pg, BOT, n)
            await bot.until(lambda: len(bot.to_device) == 3)
            await wait_until(pg, "select count(*) = 0 from appservice_bridge.outbox")
    assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 0


async def test_a_url_of_null_means_no_request_and_no_growing_outbox(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(
            tmp_path,
            database,
            [
                registration("bot", bot.url, users=["@b_.*"]),
                registration("puppets", None, users=["@.*"], exclusive=False),
            ],
        )
        async with worker(files):
            await capture(pg, "@alice:example.org", 1)
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.to_device) == 1)
    outboxes = await pg.fetch("select appservice_id from appservice_bridge.outbox_head")
    assert [row["appservice_id"] for row in outboxes] == ["bot"]


async def test_a_database_that_was_restored_gives_out_no_id_again(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
        # what a restore onto another timeline looks like, numbers rewound
        await pg.execute("update appservice_bridge.database_identity set timeline = timeline - 1")
        await pg.execute("update appservice_bridge.lane set next_number = 1")
        async with worker(files):
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.to_device) == 2)
    assert len({request.txn_id for request in bot.requests}) == 2


async def test_a_200_whose_body_never_ends_is_an_ack_all_the_same(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    requests = 0

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(30)

    async with by_hand(drip) as url:
        files = write_files(tmp_path, database, [registration("bot", url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await wait_until(pg, "select acked_to = 1 from appservice_bridge.lane")
    assert requests == 1


async def test_one_connection_serves_one_transaction_after_the_other(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    connections = 0

    async def keep_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while await next_body(reader):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)  # the body comes in a packet of its own
                writer.write(b"{}")

    async with by_hand(keep_alive) as url:
        ours = [registration("bot", url, users=["@b_.*"])]
        files = write_files(tmp_path, database, ours, delivery={"max_items": 1})
        async with worker(files):
            for n in range(1, 11):
                await capture(pg, BOT, n)
            await wait_until(pg, "select acked_to = 10 from appservice_bridge.lane")
    assert connections == 1


async def test_an_answer_that_nobody_asked_for_acknowledges_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    bodies: list[bytes] = []

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while body := await next_body(reader):
                bodies.append(body)
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
                writer.write(answer)
                await asyncio.sleep(0.2)
                writer.write(answer)

    async with by_hand(twice) as url:
        files = write_files(tmp_path, database, [registration("bot", url, users=["@b_.*"])])
        async with worker(files):
            for n in range(1, 4):
                await capture(pg, BOT, n)
                await wait_until(pg, f"select acked_to = {n} from appservice_bridge.lane")
                await asyncio.sleep(0.4)
    assert len(bodies) == 3


@pytest.mark.parametrize(
    "asked", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2024 99999999999:00:00 GMT", "x"]
)
async def test_an_unreadable_retry_after_costs_nobody_the_worker(
    pg: Connection, database: str, tmp_path: Path, asked: str
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (503, {"Retry-After": asked}, b"")
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 2)
            bot.answer = ok
            await bot.until(lambda: len(bot.to_device) == 1)


async def test_an_appservice_that_takes_no_part_in_encryption_gets_events_only(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        plain = registration("bot", bot.url, users=["@b_.*"]) | {"org.matrix.msc3202": False}
        files = write_files(tmp_path, database, [plain])
        async with worker(files):
            await capture(pg, BOT, 1)
            await relay(pg, "bot", "$1")
            await bot.until(lambda: len(bot.events) == 1)
    assert bot.to_device == []


async def test_what_an_idle_lane_is_handed_it_does_not_read_again(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = outbox.next_items, 0

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments, **options)

    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        monkeypatch.setattr(outbox, "next_items", counted)
        async with worker(files):
            n, before = 0, -1
            while before != reads:  # the lane may be at work still when a message comes
                n, before = n + 1, reads
                assert n < 30
                await capture(pg, BOT, n)
                await bot.until(lambda: len(bot.to_device) == n)  # noqa: B023 - waited for here
    assert numbers(bot.to_device) == list(range(1, n + 1))


async def test_what_is_handed_over_too_early_is_read_where_it_stands(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that another worker made, whose word comes late or never."""
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files) as one:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            with monkeypatch.context() as deaf:
                deaf.setattr(one._lanes, "appended", lambda _: True)
                await capture(pg, BOT, 2)
                await wait_until(pg, "select count(*) = 0 from appservice_bridge.capture_log")
            await capture(pg, BOT, 3)
            await bot.until(lambda: len(bot.to_device) == 3)
    assert numbers(bot.to_device) == [1, 2, 3]


async def test_who_waits_for_room_when_the_worker_ends_seals_nothing(
    pg: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = asyncio.Event()
    leave = Lane.leave

    async def no_room_yet(*_: object) -> bool:
        await free.wait()
        return True

    def leave_and_free(lane: Lane) -> None:
        leave(lane)
        free.set()

    monkeypatch.setattr(Bodies, "room", no_room_yet)
    monkeypatch.setattr(Lane, "leave", leave_and_free)
    async with appservice() as bot:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with worker(files):
            await relay(pg, "bot", "$1")
            await wait_until(pg, "select count(*) = 1 from appservice_bridge.outbox")
        assert await pg.fetchval("select count(*) from appservice_bridge.sealed") == 0
        assert bot.requests == []
