"""`dead-letters`, `redrive` and `discard`, with a real lane where something is delivered."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.routing.announcing import announce
from appservice_bridge.storage.database import Database
from tests.support.appservice import Appservice, appservice, ok
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.command import command
from tests.support.dead_letters import BOT, buried, ledger, set_aside
from tests.support.facts import Connection, capture, outbox

HOLD_AN_APPEND: Final = """
create function public.wait() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock(7); return null; end $$;
create trigger wait after insert on appservice_bridge.outbox
    for each statement execute function public.wait()
"""


@pytest.fixture
async def files(tmp_path: Path, database: str, db: Database) -> Files:
    """A worker has run with it once, and does no more."""
    files = write_files(tmp_path, database, [registration("bot", "http://127.0.0.1:9")])
    await announce(db, owners(files.load()), epoch="test")
    return files


async def run(files: Files, *arguments: str) -> tuple[int, str, str]:
    return await command(*arguments, "--config", str(files.config))


def numbers(bot: Appservice) -> list[int]:
    return [item["content"]["n"] for item in bot.to_device]


async def test_what_is_redriven_is_delivered_once_and_behind_all_that_waited(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (503, {}, b"{}")
        bots = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path, database, bots, delivery={"max_items": 2})
        async with worker(files):
            for n in (11, 12, 13):
                await capture(pg, BOT, n)
            await bot.until(lambda: len(bot.requests) == 1)
            sealed = bot.requests[0]
            for n in (2, 1):
                await set_aside(pg, n)
            done = await run(files, "redrive", "--appservice", "bot")
            assert done == (0, "2 dead letters will be delivered, behind all that waits\n", "")
            bot.answer = ok
            await bot.until(lambda: len(bot.to_device) == 5)
            assert (await run(files, "redrive", "--appservice", "bot"))[1].startswith("0 dead")
            await capture(pg, BOT, 14)
            await bot.until(lambda: len(bot.to_device) == 6)
    assert numbers(bot) == [11, 12, 13, 2, 1, 14]
    assert (bot.taken[0].path, bot.taken[0].body) == (sealed.path, sealed.body)


async def test_of_a_letter_without_an_answer_only_the_transaction_is_named(
    pg: Connection, files: Files
) -> None:
    await set_aside(pg, 1)
    assert "refused (400 M_BAD_JSON in abx-1)" in (await run(files, "dead-letters"))[1]
    await pg.execute("update appservice_bridge.dead_letter set status = null, errcode = null")
    assert "refused (in abx-1)" in (await run(files, "dead-letters"))[1]
    await pg.execute("update appservice_bridge.dead_letter set txn_id = null, status = 500")
    assert "refused (500)" in (await run(files, "dead-letters"))[1]


async def test_where_nobody_answers_nothing_is_discarded_and_yes_is_named(
    pg: Connection, files: Files
) -> None:
    await set_aside(pg, 1)
    code, _, err = await run(files, "discard", "--appservice", "bot")
    assert (code, await buried(pg)) == (1, 1)
    assert "nothing was done, for nobody answered; --yes does it unasked" in err


async def test_a_lane_that_has_nothing_to_do_delivers_a_redriven_letter_at_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"])]
        files = write_files(tmp_path, database, bots)
        async with worker(files):
            letter = await set_aside(pg, 1)
            assert (await run(files, "redrive", letter[:8]))[0] == 0
            await bot.until(lambda: numbers(bot) == [1])


async def test_case_14_a_redrive_that_is_killed_before_its_commit_leaves_everything(
    pg: Connection, database: str, files: Files
) -> None:
    for n in (1, 2):
        await set_aside(pg, n)
    holder = await asyncpg.connect(database)
    await holder.execute("select pg_advisory_lock(7)")
    await pg.execute(HOLD_AN_APPEND)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appservice_bridge", "redrive", "--appservice", "bot"),
        *("--config", str(files.config)),
    )
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    async with asyncio.timeout(60):
        while not await pg.fetchval(waiting):
            await asyncio.sleep(0.02)
    process.kill()
    await process.wait()
    await holder.close()
    async with asyncio.timeout(60):  # its backend finds out, and rolls back
        while await pg.fetchval("select count(*) from pg_locks where locktype = 'advisory'"):
            await asyncio.sleep(0.02)
    await pg.execute("drop function public.wait cascade")
    assert (await buried(pg), await outbox(pg), await ledger(pg)) == (2, [], {})
    assert (await run(files, "redrive", "--appservice", "bot"))[0] == 0
    assert (await buried(pg), await outbox(pg)) == (0, [1, 2])


async def test_what_cannot_be_redriven_is_refused_with_the_reason_and_the_others_go(
    pg: Connection, files: Files
) -> None:
    broken = await set_aside(pg, 1, redrivable=False, payload=b"{", reason="is no JSON object")
    sound = await set_aside(pg, 2)
    code, out, err = await run(files, "redrive", broken[:8], sound[:8])
    assert (code, out) == (1, "1 dead letter will be delivered, behind all that waits\n")
    assert err == (
        f"appservice-bridge: {broken[:8]} cannot be redriven: "
        "there is nothing in it that could be sent: is no JSON object\n"
    )
    assert (await buried(pg), await outbox(pg)) == (1, [2])
    code, out, _ = await run(files, "redrive", "--appservice", "bot")
    assert code == 0
    assert "1 dead letter cannot be, and stay" in out


async def test_nothing_is_redriven_where_one_of_the_ids_is_unknown(
    pg: Connection, files: Files
) -> None:
    letter = await set_aside(pg, 1)
    nobody = "00000000" if not letter.startswith("00000000") else "11111111"
    code, out, err = await run(files, "redrive", letter, nobody)
    assert (code, out) == (1, "")
    assert f"no dead letter {nobody}: `appservice-bridge dead-letters` lists" in err
    assert await buried(pg) == 1


@pytest.mark.parametrize("verb", ["redrive", "discard"])
async def test_neither_ids_nor_an_appservice_is_bad_usage_and_so_are_both(
    files: Files, verb: str
) -> None:
    for arguments in ([], ["abcd", "--appservice", "bot"]):
        code, _, err = await run(files, verb, *arguments)
        assert code == 2
        assert "--appservice ID" in err


async def test_discard_asks_and_without_a_yes_nothing_is_lost(pg: Connection, files: Files) -> None:
    letters = [await set_aside(pg, n) for n in (1, 2, 3)]
    code, out, _ = await run(files, "discard", "--appservice", "bot")
    assert code == 1
    assert "3 dead letters will be lost for good. Discard?" in out
    assert await buried(pg) == 3
    said = await run(files, "discard", letters[0][:8], "--yes")
    assert said == (0, "1 dead letter discarded\n", "")
    said = await run(files, "discard", "--appservice", "bot", "--yes")
    assert said == (0, "2 dead letters discarded\n", "")
    assert (await buried(pg), await ledger(pg)) == (0, {"discarded": 3})
    assert await outbox(pg) == []


async def test_letters_are_listed_without_what_is_in_them_or_was_answered(
    pg: Connection, files: Files
) -> None:
    letter = await set_aside(pg, 77)
    await set_aside(pg, 1, appservice_id="", redrivable=False, payload=b"77", reason="malformed")
    mine = (await run(files, "dead-letters", "bot"))[1]
    for everything in (mine, (await run(files, "dead-letters", "bot", "--json"))[1]):
        assert "SECRET" not in everything
        assert '"n": 77' not in everything
    assert letter[:8] in mine
    assert mine.endswith("1 dead letter\n")
    shown = (await run(files, "dead-letters", "--limit", "1"))[1]
    assert shown.endswith("the newest 1 of 2 dead letters; --limit shows more\n")
    assert letter[:8] not in shown


async def test_letters_as_json_name_everything(pg: Connection, files: Files) -> None:
    letter = await set_aside(pg, 1)
    at, size = await pg.fetchrow(
        "select buried_at, octet_length(payload) from appservice_bridge.dead_letter"
    ) or (None, None)
    shown = json.loads((await run(files, "dead-letters", "bot", "--json"))[1])
    assert at is not None
    assert shown == {
        "version": 1,
        "total": 1,
        "dead_letters": [
            {
                "appservice_id": "bot",
                "dead_letter_id": letter,
                "buried_at": at.isoformat(),
                "kind": "to_device",
                "reason": "refused",
                "status": 400,
                "errcode": "M_BAD_JSON",
                "txn_id": "abx-1",
                "user_id": BOT,
                "device_id": "DEV",
                "bytes": size,
                "redrivable": True,
            }
        ],
    }
