"""`audit`: both sides agree, and each kind of difference is found where it is made by hand."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest

from appservice_bridge.cli import audit as command_module
from appservice_bridge.cli.context import owners
from appservice_bridge.delivery import operating
from appservice_bridge.delivery.purge import purge_once
from appservice_bridge.domain.ledger_outcomes import LedgerOutcome
from appservice_bridge.routing.announcing import announce
from appservice_bridge.routing.intake import Intake
from appservice_bridge.sources.missing_facts import untaken
from appservice_bridge.sources.reconciler import reconcile_once
from appservice_bridge.storage import audit as books
from appservice_bridge.storage import inbox, synapse
from appservice_bridge.storage.database import Database, connect
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker_process, write_files
from tests.support.command import command
from tests.support.dead_letters import BY, set_aside
from tests.support.delivered import add_device
from tests.support.facts import Connection, capture, make_synapse_tables, relay, send
from tests.support.intake import nobody, registered

BOT: Final = "@b_1:example.org"
ROOM: Final = "!room"


def written(directory: Path, database: str, *, url: str = "http://127.0.0.1:9") -> Files:
    return write_files(
        directory, database, [registration("bot", url, users=["@b_.*"])], capture="triggers"
    )


def without_homeserver(directory: Path, database: str, url: str, **delivery: Any) -> Files:
    some = [registration("bot", url, users=["@b_.*"])]
    return write_files(directory, database, some, delivery=delivery)


@pytest.fixture
async def files(pg: Connection, db: Database, database: str, tmp_path: Path) -> Files:
    """Synapse's tables with the capture on them, and an appservice that is attached."""
    await make_synapse_tables(pg)
    await pg.execute("set search_path = appservice_bridge, public")
    await synapse.install(pg)
    found = written(tmp_path, database)
    await announce(db, owners(found.load()), epoch="test", present=inbox.present)
    await add_device(pg, BOT)
    return found


async def routed(db: Database, files: Files) -> None:
    intake = Intake(db, owners(files.load()), nobody)
    while not (await intake.consume_once()).done:
        pass


async def audited(files: Files, *, wait: float = 0.0) -> command_module.Audited:
    of = files.load()
    conn = await connect(of.config.dsn())
    try:
        return await command_module._audit(conn, of, print, since=86_400, wait=wait)
    finally:
        await conn.close()


async def test_a_bridge_that_did_nothing_yet_agrees(files: Files) -> None:
    found = await audited(files)
    assert (found.agrees, found.balances) == (True, [])


async def test_what_waits_is_counted_in_the_outbox_by_kind(
    pg: Connection, db: Database, files: Files
) -> None:
    for n in (1, 2, 3):
        await send(pg, BOT, n, n=n)
    await relay(pg, "bot", "$1", "$2", "$1")
    await routed(db, files)
    found = await audited(files)
    assert found.agrees
    assert [(each.kind, each.waiting) for each in found.balances] == [
        ("event", 2),
        ("to_device", 3),
    ]


async def test_more_than_a_page_of_waiting_rows_is_counted_whole(
    pg: Connection, db: Database, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "PAGE", 4)
    for n in range(1, 13):
        await send(pg, BOT, n, n=n)
        await relay(pg, "bot", f"${n}")
    await routed(db, files)
    found = await audited(files)
    assert found.agrees
    assert [each.waiting for each in found.balances] == [12, 12]


async def test_a_row_that_went_from_an_outbox_is_found(
    pg: Connection, db: Database, files: Files
) -> None:
    for n in (1, 2, 3):
        await send(pg, BOT, n, n=n)
    await routed(db, files)
    await pg.execute("delete from appservice_bridge.outbox where position = 2")
    found = await audited(files)
    assert (found.agrees, found.lacking) == (False, 1)
    assert [each.difference for each in found.balances] == [1]


@pytest.mark.parametrize(
    ("outcome", "difference"),
    [
        ("routed", 1),
        ("redriven", 1),
        ("replayed", 1),
        ("delivered", -1),
        ("buried", -1),
        ("dropped", -1),
        ("expired", -1),
        ("removed", -1),
        ("refused", 0),
        ("discarded", 0),
        ("cleaned", 0),
        ("repeated", 0),
    ],
)
async def test_a_count_too_many_is_found_where_the_balance_has_a_place_for_it(
    pg: Connection, db: Database, files: Files, outcome: str, difference: int
) -> None:
    await send(pg, BOT, 1, n=1)
    await routed(db, files)
    await pg.execute(
        "insert into appservice_bridge.ledger values ('bot', 'to_device', $1, 1)"
        " on conflict (appservice_id, kind, outcome) do update set items = ledger.items + 1",
        outcome,
    )
    found = await audited(files)
    assert [each.difference for each in found.balances] == [difference]
    assert (found.agrees, found.lacking) == (difference == 0, 0)


async def test_a_message_that_nobody_took_is_found(
    pg: Connection, db: Database, files: Files
) -> None:
    await send(pg, BOT, 1, n=1)
    await send(pg, "@carol:example.org", 2, n=2)
    await routed(db, files)
    await send(pg, BOT, 3, n=3)  # waits in the log
    assert (await audited(files)).agrees
    await pg.execute("delete from appservice_bridge.capture_log")
    found = await audited(files)
    assert (found.agrees, found.messages) == (False, 1)
    await pg.execute("delete from appservice_bridge.taken")
    assert (await audited(files)).messages == 2
    await pg.execute("delete from public.devices")
    assert (await audited(files)).messages == 0


async def test_what_is_older_than_the_attachment_or_below_the_floor_is_not_missed(
    pg: Connection, db: Database, files: Files
) -> None:
    await send(pg, BOT, 1, n=1)
    await pg.execute("truncate appservice_bridge.capture_log")
    await pg.execute("update appservice_bridge.attached set stream_id = 1")
    assert (await audited(files)).messages == 0
    await pg.execute("update appservice_bridge.attached set stream_id = 0")
    assert (await audited(files)).messages == 1
    await pg.execute("update appservice_bridge.stream_floor set settled = 1")
    found = await audited(files)
    assert found.messages == 0
    assert any("up to stream position 1:" in one for one in found.unknown)


async def test_each_appservice_misses_only_what_came_since_it_is_attached(
    pg: Connection, db: Database, files: Files
) -> None:
    await pg.execute("insert into appservice_bridge.attached values ('cat', 3)")
    for n, user in enumerate((BOT, "@c_1:example.org", BOT, "@c_1:example.org"), start=1):
        await send(pg, user, n, n=n)
    await add_device(pg, "@c_1:example.org")
    await pg.execute("truncate appservice_bridge.capture_log")
    both = registered(("bot", "@b_.*"), ("cat", "@c_.*"))
    conn = await connect(files.load().config.dsn())
    look = await untaken(conn, both, lambda _: None)
    await conn.close()
    assert sorted(key.stream_id for key in look.keys) == [1, 3, 4]


async def test_what_the_reconciler_still_finds_in_time_is_not_missing(
    pg: Connection, db: Database, files: Files
) -> None:
    await send(pg, BOT, 1, n=1)
    await pg.execute("truncate appservice_bridge.capture_log")
    waiting = asyncio.create_task(audited(files, wait=60))
    await asyncio.sleep(1)
    assert not waiting.done()
    await reconcile_once(db)
    assert (await asyncio.wait_for(waiting, 60)).agrees


async def test_an_appservice_that_was_never_attached_is_named(pg: Connection, files: Files) -> None:
    await pg.execute("update appservice_bridge.attached set stream_id = null")
    found = await audited(files)
    assert "to-device messages of bot: never attached" in found.unknown


async def say(pg: Connection, at: int, *, type_: str = "m.x", days_ago: float = 0.0) -> None:
    """A room event of a user of the appservice."""
    await pg.execute(
        "insert into public.events (stream_ordering, topological_ordering, event_id, type,"
        " room_id, processed, outlier, sender, received_ts)"
        " values ($1, $1, $6, $2, $3, true, false, $4,"
        "         (extract(epoch from now()) - $5::float8 * 86400) * 1000)",
        at,
        type_,
        ROOM,
        BOT,
        days_ago,
        f"${at}",
    )


async def compared_to(pg: Connection, settled: int, *, began: int = 0) -> None:
    await pg.execute(
        "insert into appservice_bridge.event_cursor (appservice_id, settled, began)"
        " values ('bot', $1, $2)",
        settled,
        began,
    )


async def test_a_room_event_that_never_came_is_found(
    pg: Connection, db: Database, files: Files
) -> None:
    for at in range(1, 8):
        await say(pg, at, days_ago=2 if at == 2 else 0)
    await say(pg, 8, type_="m.room.redaction")
    await compared_to(pg, 8, began=1)
    await relay(pg, "bot", "$4")
    await routed(db, files)
    await relay(pg, "bot", "$5")  # waits in the log
    await pg.execute(
        "insert into appservice_bridge.dead_letter (appservice_id, kind, reason, payload)"
        " values ('bot', 'event', 'the homeserver shows $6 to no user', null),"
        "        ('bot', 'event', 'not JSON', '{\"event_id\":\"$7\"')"
    )
    found = await audited(files)
    assert dict(found.events.missing) == {"bot": 1}  # $3; $1 is from before, $2 is too long ago
    assert (found.events.withheld, found.agrees) == (1, False)
    await relay(pg, "bot", "$3")
    await routed(db, files)
    assert (await audited(files)).agrees


async def test_a_lost_event_whose_letter_an_operator_discarded_is_missed_no_more(
    pg: Connection, db: Database, files: Files
) -> None:
    await say(pg, 1)
    await say(pg, 2)
    await compared_to(pg, 2)
    reason = "forgotten by the homeserver, which shows {} to no user of this one"
    letters = [
        UUID(await set_aside(pg, n, kind="event", reason=reason.format(id_), redrivable=False))
        for n, id_ in enumerate(("$1", "$2"))
    ]
    assert (await audited(files)).agrees
    await operating.discard(db, "bot", letters[:1], by=BY)
    assert (await audited(files)).agrees


async def test_events_are_compared_in_more_than_one_stretch(
    pg: Connection, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appservice_bridge.sources.missing_facts.STRETCH", 3)
    monkeypatch.setattr("appservice_bridge.sources.missing_facts.SLICE", 2)
    for at in range(1, 21):
        await say(pg, at)
    await compared_to(pg, 20)
    assert dict((await audited(files)).events.missing) == {"bot": 20}


async def test_the_command_says_it_in_a_table_or_as_json_and_ends_1_on_a_difference(
    pg: Connection, db: Database, files: Files
) -> None:
    await send(pg, BOT, 1, n=1)
    await routed(db, files)
    at = ("--config", str(files.config), "--wait", "0s")
    code, said, _ = await command("audit", *at)
    assert (code, said.splitlines()[-1]) == (0, "both sides agree")
    await pg.execute("delete from appservice_bridge.outbox")
    code, said, _ = await command("audit", *at, "--json")
    told = json.loads(said)
    assert (code, told["version"], told["agrees"]) == (1, 1, False)
    assert told["lacking_positions"] == 1
    [balance] = told["balances"]
    assert (balance["routed"], balance["waiting"], balance["difference"]) == (1, 0, 1)
    code, said, _ = await command("audit", *at)
    assert (code, said.splitlines()[-1]) == (1, "both sides differ")


async def test_what_could_not_be_read_is_named_and_does_not_pass_for_agreement(
    pg: Connection, files: Files
) -> None:
    at = ("--config", str(files.config), "--wait", "0s")
    await pg.execute("alter table public.device_inbox rename user_id to who")
    code, said, _ = await command("audit", *at)
    *_, why, verdict = said.splitlines()
    assert code == 1
    assert verdict.startswith("what went in agrees with what came out; not all")
    assert why.startswith("not compared: what the homeserver holds: sqlstate 42")
    code, said, _ = await command("audit", *at, "--json")
    told = json.loads(said)
    assert (code, told["agrees"]) == (1, True)
    assert told["could_not_compare"] == told["not_compared"] != []


async def test_without_a_homeserver_to_read_only_the_one_side_is_said_to_agree(
    database: str, tmp_path: Path
) -> None:
    files = without_homeserver(tmp_path, database, "http://127.0.0.1:9")
    code, said, _ = await command("audit", "--config", str(files.config))
    assert code == 0
    why, verdict = said.splitlines()
    assert why.startswith("not compared: what the homeserver holds: its tables are not read")
    assert verdict == "what went in agrees with what came out; the homeserver's side is not read"


async def test_nothing_is_said_of_positions_before_the_first(pg: Connection, files: Files) -> None:
    assert not any("stream position" in one for one in (await audited(files)).unknown)
    await pg.execute("update appservice_bridge.stream_floor set settled = 1")
    assert any("stream position 1:" in one for one in (await audited(files)).unknown)


async def test_beside_workers_that_are_killed_it_agrees_at_every_moment(
    pg: Connection, db: Database, database: str, tmp_path: Path
) -> None:
    facts = 300

    async def feed() -> None:
        for n in range(1, facts + 1):
            await capture(pg, BOT, n)
            if n % 10 == 0:
                await relay(pg, "bot", f"${n}", f"${n - 10}")
            await asyncio.sleep(0.005)

    async with appservice() as bot:
        bot.delay_seconds = 0.01
        bot.answer = lambda _: (500 if len(bot.requests) % 7 == 0 else 200, {}, b"{}")
        files = without_homeserver(
            tmp_path, database, bot.url, max_items=7, keep_delivered_seconds=3600
        )
        async with worker_process(files) as killed:
            feeding = asyncio.create_task(feed())
            looks = []
            for pause in (0.3, 0.7, 0.2):
                await asyncio.sleep(pause)
                looks += [await audited(files) for _ in range(5)]
                await killed.kill()
                async with db.transaction() as conn:  # `pg` is the feeder's
                    await conn.execute("update appservice_bridge.worker set alive_until = now()")
                looks.append(await audited(files))
                await killed.start()
            await feeding
            await bot.until(lambda: len(bot.to_device) >= facts, within=120)
            more = ("--since", "1h", "--config", str(files.config))
            assert (await command("replay", "bot", *more))[0] == 0
            looks += [await audited(files) for _ in range(5)]
    assert [look for look in looks if not look.agrees] == []
    assert any(each.waiting for look in looks for each in look.balances)
    await purge_once(db, asyncio.Event())
    last = await audited(files)
    assert last.agrees
    counts = {each.kind: each.counts for each in last.balances}
    assert counts["to_device"][LedgerOutcome.ROUTED] == facts
    assert counts["event"][LedgerOutcome.ROUTED] == facts // 10 + 1
