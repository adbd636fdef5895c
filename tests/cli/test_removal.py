"""`registration remove`: an appservice and its backlog go only after an explicit word."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from appservice_bridge.cli import removing
from appservice_bridge.storage import audit, redriving, removal
from appservice_bridge.storage.database import Connection as DbConnection
from appservice_bridge.storage.database import Database
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker, worker_process, write_files
from tests.support.command import command
from tests.support.dead_letters import set_aside
from tests.support.facts import Connection, capture, relay, wait_until
from tests.support.reloading import ROOT, change, operator, register, with_tokens

BOT, OTHER = "@b_1:example.org", "@o_1:example.org"
OF_BOT = "select position::int from appservice_bridge.outbox where appservice_id = 'bot'"
TABLES = """
select table_name from information_schema.columns
 where table_schema = 'appservice_bridge' and column_name = 'appservice_id'
   and table_name <> 'admin_audit'  -- what operators did to it stays
"""


async def remove(files: Files, *more: str) -> tuple[int, str, str]:
    return await command("registration", "remove", "bot", *more, "--config", str(files.config))


async def rows_of(pg: Connection, appservice_id: str) -> dict[str, int]:
    """Rows by table, of all tables that have an appservice's id; none that are empty."""
    counts = {
        row["table_name"]: await pg.fetchval(
            f"select count(*) from appservice_bridge.{row['table_name']} where appservice_id = $1",
            appservice_id,
        )
        for row in await pg.fetch(TABLES)
    }
    return {name: count for name, count in counts.items() if count}


async def a_row_in_every_table(pg: Connection) -> None:
    """What no worker of this test would write by itself."""
    await pg.execute(
        """set search_path = appservice_bridge;
        insert into sealed (appservice_id, number, txn_id, first_position, last_position, items,
                            body_bytes, builder, slots, frame, digest)
        values ('bot', 99, 'x', 1, 1, 1, 1, 1, '{}', '{}', '') on conflict do nothing;
        insert into dead_letter (appservice_id, kind, reason) values ('bot', 'event', 'test');
        insert into relayed values ('bot', 'x');
        insert into seen_event values ('bot', 'x');
        insert into device_list_update values ('bot', '@a:example.org', 'changed');
        insert into device_key_state values ('bot', '@b_1:example.org', 'D', true, null, false);
        insert into deleted_device values ('bot', '@b_1:example.org', 'D', 1);
        insert into tracked values ('bot', '@a:example.org');
        insert into resident values ('bot', '!r', '@b_1:example.org');
        insert into inbox_delivered values ('bot', '@b_1:example.org', 'D', 1);
        insert into event_cursor values ('bot', 1);
        insert into kept values ('bot', 98, 'x', 1, 1, 1, 1);
        insert into capture_log (kind, appservice_id) values ('transaction', 'bot');
        reset search_path"""
    )


@pytest.fixture
async def files(pg: Connection, database: str, tmp_path: Path) -> Files:
    """Two appservices that are away, with three messages for each; then one is taken away."""
    ours = [registration("other", "http://127.0.0.1:9", users=["@o_.*"])]
    ours.append(registration("bot", "http://127.0.0.1:9", users=["@b_.*"]))
    files = write_files(tmp_path, database, ours, delivery={"max_items": 1})  # most is not sealed
    async with worker(files):
        for n in range(1, 4):
            await capture(pg, BOT, n)
            await capture(pg, OTHER, n)
        async with asyncio.timeout(60):
            while await pg.fetchval("select count(*) from appservice_bridge.outbox") < 6:
                await asyncio.sleep(0.05)
    (tmp_path / "registration_1.yaml").unlink()
    return files


async def test_what_waits_and_dead_letters_are_lost_only_by_an_explicit_word(
    pg: Connection, files: Files
) -> None:
    await pg.execute(
        "insert into appservice_bridge.dead_letter (appservice_id, kind, reason)"
        " values ('bot', 'event', 'test')"
    )
    before = await rows_of(pg, "bot")
    code, out, err = await remove(files)
    assert (code, out) == (1, "")
    assert "3 items, 1 dead letters would be lost" in err
    assert await rows_of(pg, "bot") == before


async def test_removed_it_has_no_row_left_in_any_table_and_its_neighbour_has_all(
    pg: Connection, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_row_in_every_table(pg)
    tables = {row["table_name"] for row in await pg.fetch(TABLES)}
    assert tables - (await rows_of(pg, "bot")).keys() == set()
    neighbour = await rows_of(pg, "other")
    code, out, _ = await remove(files, "--discard-backlog")
    lost = "3 items, 1 transactions, 2 device updates, 1 dead letters"
    assert (code, out) == (0, f"bot is removed; lost: {lost}\n")
    assert (await rows_of(pg, "bot")).keys() == {"attached"}
    assert await rows_of(pg, "other") == neighbour
    code, _, err = await remove(files)
    assert code == 1
    assert "nothing is known of it; there are: other" in err
    code, _, err = await command("registration", "remove", "othr", "--config", str(files.config))
    assert (code, "nothing is known of it; did you mean other?" in err) == (1, True)


async def test_many_rows_go_in_many_batches(
    pg: Connection, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "BATCH", 2)
    await removing._remove(files.load(), "bot", discard_backlog=True)
    assert (await rows_of(pg, "bot")).keys() == {"attached"}


async def test_the_last_file_takes_its_appservice_away_only_with_the_line_that_is_named(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    ours = [registration("bot", "http://127.0.0.1:9", users=["@b_.*"])]
    files = with_tokens(write_files(tmp_path, database, ours))
    async with worker_process(files), operator(files) as op:
        await op.until_reload("unchanged")  # the watch has had its first look
        await capture(pg, BOT, 1)
        (tmp_path / "registration_0.yaml").unlink()
        await op.until_reload("refused")
        await capture(pg, BOT, 2)  # it is still there, for the disk may just not be mounted
        async with asyncio.timeout(60):
            while len(await pg.fetch(OF_BOT)) < 2:
                await asyncio.sleep(0.05)
        _, told = await op.ask("POST", f"{ROOT}/reload")
        assert told["reasons"][0].endswith("write `registrations: []`")
        change(files, registrations=[])
        await op.until_reload("reloaded")
        code, _, err = await remove(files)
        assert (code, "2 items" in err) == (1, True)
        assert len(await pg.fetch(OF_BOT)) == 2
        assert (await remove(files, "--discard-backlog"))[0] == 0


async def test_while_it_is_configured_it_is_not_removed(pg: Connection, files: Files) -> None:
    bot = registration("bot", "http://127.0.0.1:9", users=["@b_.*"])
    register(files, bot, number=1)
    code, _, err = await remove(files, "--discard-backlog")
    assert code == 1
    assert "take it away first" in err
    assert (await rows_of(pg, "bot"))["outbox"] == 3


async def test_while_a_worker_has_it_it_is_not_removed_and_after_its_reload_it_is(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot, appservice() as other:
        ours = [registration("other", other.url), registration("bot", bot.url, users=["@b_.*"])]
        files = with_tokens(write_files(tmp_path, database, ours))
        async with worker_process(files), operator(files) as op:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            code, _, err = await remove(write_files(tmp_path / "without", database, ours[:1]))
            assert code == 1
            assert "let it reload first" in err
            (tmp_path / "registration_1.yaml").rename(tmp_path / "away")
            assert await op.reload() in ("reloaded", "unchanged")  # the watch may have been first
            async with asyncio.timeout(60):
                while await pg.fetchval(
                    "select worker_id is not null from appservice_bridge.lane"
                    " where appservice_id = 'bot'"
                ):
                    await asyncio.sleep(0.1)
            assert (await remove(files))[0] == 0
            (tmp_path / "away").rename(tmp_path / "registration_1.yaml")
            assert await op.reload() in ("reloaded", "unchanged")
            await capture(pg, BOT, 2)
            await bot.until(lambda: len(bot.to_device) == 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]
    assert len({request.txn_id for request in bot.requests}) == 2


async def test_a_removal_that_was_cut_short_sends_nothing_if_it_comes_back_and_can_be_run_again(
    pg: Connection, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "forget_discarded", die)
        with pytest.raises(KeyboardInterrupt):
            await removing._remove(files.load(), "bot", discard_backlog=True)
    assert (await rows_of(pg, "bot"))["outbox"] == 3
    async with appservice() as bot:
        register(files, registration("bot", bot.url, users=["@b_.*"]), number=1)
        async with worker(files):
            await capture(pg, BOT, 4)
            await bot.until(lambda: len(bot.to_device) == 1)
        assert [item["content"]["n"] for item in bot.to_device] == [4]
    (files.config.parent / "registration_1.yaml").unlink()
    await removing._remove(files.load(), "bot", discard_backlog=False)
    assert (await rows_of(pg, "bot")).keys() == {"attached"}


async def test_what_comes_after_its_return_is_not_forgotten_by_a_removal_at_work(
    pg: Connection, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, without = removing._forget, files.load()

    async def forget_late(database: Database, appservice_id: str) -> None:
        register(files, registration("bot", "http://127.0.0.1:9", users=["@b_.*"]), number=1)
        async with worker(files):
            await capture(pg, BOT, 4)
            await wait_until(pg, f"select exists ({OF_BOT} and position > 3)")
        await relay(pg, "bot", "$5")
        await forget(database, appservice_id)

    monkeypatch.setattr(removing, "_forget", forget_late)
    with pytest.raises(removing.NotRemovedError, match="come back"):
        await removing._remove(without, "bot", discard_backlog=True)
    assert await pg.fetchval(f"select array({OF_BOT} order by position)") == [4]
    async with appservice() as bot:
        register(files, registration("bot", bot.url, users=["@b_.*"]), number=1)
        async with worker(files):
            await bot.until(lambda: len(bot.to_device) + len(bot.events) == 2)


async def test_what_is_redriven_while_it_is_removed_goes_with_the_rest(
    pg: Connection, db: Database, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = UUID(await set_aside(pg, 7))
    forget_batch = removal.forget_batch

    async def forget_later(conn: DbConnection, step: int, *of: str, size: int) -> int:
        if removal._IN_BATCHES[step] is removal.FORGET_DEAD_LETTERS:
            await redriving.redrive(conn, "bot", [letter])
        return await forget_batch(conn, step, *of, size=size)

    monkeypatch.setattr(removal, "forget_batch", forget_later)
    await removing._remove(files.load(), "bot", discard_backlog=True)
    assert (await rows_of(pg, "bot")).keys() == {"attached"}


async def test_the_books_are_even_in_the_midst_of_a_removal_and_after_it_was_killed(
    pg: Connection, db: Database, files: Files
) -> None:
    async with db.transaction() as conn:
        await removing._discarded(conn, "bot", discard_backlog=True)
    async with db.transaction() as conn:
        balances, lacking = await audit.balances(conn, lambda _: None)
    assert [one.difference for one in balances] == [0] * len(balances)
    assert lacking == 0
