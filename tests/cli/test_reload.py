"""Configuration and registrations change under a worker that runs; nothing stops for it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.storage.migrations import migrate
from tests.delivery.test_kills import held_at, its_lease_ran_out, somebody_waits
from tests.support.appservice import Appservice, Request, appservice, ok
from tests.support.bridge import Files, ready, registration, worker_process, write_files
from tests.support.facts import Connection, capture, make_synapse_tables
from tests.support.relaying import homeserver
from tests.support.reloading import (
    Sender,
    change,
    hang_up,
    in_order,
    operator,
    register,
    with_tokens,
)

HANGS_UP_ITSELF = """
import os, signal
from appservice_bridge.cli import main, run
load = run.loaded
run.loaded = lambda config: (os.kill(os.getpid(), signal.SIGHUP), load(config))[1]
main.app()
"""
BOT = "@b_1:example.org"
PATIENT = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}


def of_bot(url: str, **keys: object) -> dict[str, object]:
    return registration("bot", url, users=["@b_.*"]) | keys


def refuses(status: int):  # type: ignore[no-untyped-def]
    return lambda _request: (status, {}, b"{}")


def files_for(directory: Path, database: str, bot: Appservice, **settings: object) -> Files:
    return with_tokens(write_files(directory, database, [of_bot(bot.url)], **settings))  # type: ignore[arg-type]


async def test_case_25_a_lane_that_rests_goes_to_the_new_url_with_the_new_token_at_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as old, appservice() as new:
        old.answer = refuses(503)
        files = files_for(tmp_path, database, old, delivery=PATIENT)
        async with worker_process(files), operator(files) as op:
            await capture(pg, BOT, 1)
            await old.until(lambda: len(old.requests) == 1)
            await asyncio.sleep(0.5)  # the attempt is written down, and the lane rests
            register(files, of_bot(new.url, hs_token="hs_new"))
            assert await op.reload() == "reloaded"
            await capture(pg, BOT, 2)
            await new.until(lambda: len(new.to_device) == 2)
    told = await pg.fetchrow("select name, action from appservice_bridge.admin_audit")
    assert tuple(told or ()) == ("operator", "reload")
    assert [item["content"]["n"] for item in new.to_device] == [1, 2]
    assert {request.token for request in new.requests} == {"hs_new"}
    assert len(old.requests) == 1
    assert (new.requests[0].txn_id, new.requests[0].body) == (
        old.requests[0].txn_id,
        old.requests[0].body,
    )


async def test_case_17_a_wrong_hs_token_is_mended_by_a_reload(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        return ok(request) if request.token == "hs_right" else (403, {}, b"{}")

    async with appservice() as bot:
        bot.answer = answer
        files = files_for(tmp_path, database, bot, delivery=PATIENT)
        async with worker_process(files) as one:
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.requests) == 1)
            await asyncio.sleep(0.5)
            register(files, of_bot(bot.url, hs_token="hs_right"))
            hang_up(one)
            await bot.until(lambda: len(bot.to_device) == 1)
    wrong, right = bot.requests
    assert wrong.path.startswith("/_matrix/app/v1/")
    assert (wrong.path, wrong.body) == (right.path, right.body)


async def test_ten_reloads_fail_no_request_and_lose_double_and_reorder_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as odd, appservice() as even:
        files = files_for(tmp_path, database, even)
        sender = Sender(files=files)  # which goes on with the first hs_token
        async with worker_process(files), operator(files) as op:
            async with sender.sending():
                for n in range(1, 11):
                    register(files, of_bot((even, odd)[n % 2].url, hs_token=f"hs_{n}"))
                    assert await op.reload() == "reloaded"
                    await asyncio.sleep(0.2)
            async with asyncio.timeout(60):
                while await pg.fetchval(
                    "select max(position) > max(acked_to) from "
                    "appservice_bridge.outbox_head, appservice_bridge.lane"
                ):
                    await asyncio.sleep(0.1)
                while await pg.fetchval("select count(*) from appservice_bridge.capture_log"):
                    await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
    assert sender.failed == []
    assert sender.sent > 20
    assert events(odd, even) == [f"${n}" for n in range(1, sender.sent + 1)]
    assert odd.taken
    assert even.taken


async def test_an_old_attempt_that_hangs_holds_up_its_own_lane_alone(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as slow, appservice() as other, appservice() as new:
        slow.delay_seconds = 25
        ours = [of_bot(slow.url), registration("other", other.url, users=["@o_.*"])]
        files = with_tokens(write_files(tmp_path, database, ours))
        async with worker_process(files), operator(files) as op:
            await capture(pg, BOT, 1)
            await slow.until(lambda: len(slow.requests) == 1)
            register(files, of_bot(new.url))
            assert await op.reload() == "reloaded"
            await capture(pg, "@o_1:example.org", 2)
            await other.until(lambda: len(other.to_device) == 1, within=18)
            assert new.requests == []  # the lane is still the old attempt's
            await new.until(lambda: len(new.to_device) == 1)
    assert slow.requests[0].body == new.requests[0].body


@pytest.mark.parametrize(
    "change_of",
    [
        "insert on appservice_bridge.attached",  # the registrations are changing, before the commit
        "insert on appservice_bridge.worker",  # they have changed; who has them does not send yet
    ],
)
async def test_killed_in_the_midst_of_a_reload_it_starts_with_the_new_and_loses_nothing(
    pg: Connection, database: str, tmp_path: Path, change_of: str
) -> None:
    async with appservice() as old, appservice() as new:
        old.answer = refuses(500)
        files = files_for(tmp_path, database, old)
        async with worker_process(files) as killed:
            await capture(pg, BOT, 1)
            await old.until(lambda: len(old.requests) >= 1)
            async with held_at(pg, database, change_of):
                register(files, of_bot(new.url))
                hang_up(killed)
                await somebody_waits(pg)
                await capture(pg, BOT, 2)
                await killed.kill()
                await its_lease_ran_out(pg)
            seen = len(old.requests)
            await killed.start()
            await new.until(lambda: len(new.to_device) == 2)
    assert [item["content"]["n"] for item in new.to_device] == [1, 2]
    assert len(old.requests) == seen


async def test_a_faulty_file_keeps_what_was_in_force_and_is_told_once(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        async with worker_process(files) as one, operator(files) as op:
            await op.until_reload("unchanged")  # the watch has had its first look
            faulty = of_bot(bot.url)
            del faulty["hs_token"]
            register(files, faulty)
            await op.until_reload("refused")
            status, told = await op.ask("GET", "/ready")
            assert (status, told) == (200, {"ready": True, "reload": "refused"})
            await capture(pg, BOT, 1)
            await bot.until(lambda: len(bot.to_device) == 1)
            await asyncio.sleep(5)
            assert one.log.read_text().count("config.refused") == 1
            status, told = await op.ask("POST", "/_appservice_bridge/v1/reload")
            assert status == 422
            assert "registration_0.yaml" in told["reasons"][0]
            assert "hs_token" in told["reasons"][0]
            register(files, of_bot(bot.url))
            await op.until_reload("unchanged")
            assert await op.ask("GET", "/ready") == (200, {"ready": True})


async def test_a_change_of_a_file_is_noticed_by_itself_once_it_is_whole(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot, appservice() as late:
        files = files_for(tmp_path, database, bot)
        async with worker_process(files), operator(files) as op:
            await op.until_reload("unchanged")
            register(files, registration("late", late.url, users=["@l_.*"]), number=1)
            await op.until_reload("reloaded")
            await capture(pg, "@l_1:example.org", 1)
            await late.until(lambda: len(late.to_device) == 1)
            (tmp_path / "registration_1.yaml").unlink()
            async with asyncio.timeout(60):
                while await pg.fetchval("select count(*) from appservice_bridge.appservice") > 1:
                    await asyncio.sleep(0.1)


async def test_what_needs_a_restart_is_refused_by_name(database: str, tmp_path: Path) -> None:
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        async with worker_process(files), operator(files) as op:
            elsewhere = {"relay": "127.0.0.1:1"}
            change(files, data_dir="elsewhere", listen=elsewhere, log={"level": "debug"})
            status, told = await op.ask("POST", "/_appservice_bridge/v1/reload")
    assert status == 422
    assert [reason.split(": ", 1)[1] for reason in told["reasons"]] == [
        "data_dir: has changed, which needs a restart",
        "listen: has changed, which needs a restart",
        "log: has changed, which needs a restart",
    ]


async def test_another_server_name_needs_a_restart(database: str, tmp_path: Path) -> None:
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        async with worker_process(files), operator(files) as op:
            generic = {"kind": "generic", "server_name": "other.org"}
            change(files, homeserver=generic)
            status, told = await op.ask("POST", "/_appservice_bridge/v1/reload")
            assert status == 422
            (reason,) = told["reasons"]
            assert reason.endswith(
                "bridge.yaml: homeserver.server_name: has changed, which needs a restart"
            )
            change(files, homeserver=generic | {"server_name": "example.org"})
            assert await op.reload() == "reloaded"


async def test_a_capture_that_is_switched_on_beside_another_server_s_users_is_refused(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    await make_synapse_tables(pg)
    await pg.execute("insert into public.users (name) values ('@alice:other.org')")
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        async with worker_process(files), operator(files) as op:
            change(files, homeserver={"server_name": "example.org", "capture": "polling"})
            status, told = await op.ask("POST", "/_appservice_bridge/v1/reload")
            assert status == 422
            assert "set `homeserver.server_name: other.org`" in told["reasons"][0]
            await pg.execute("insert into public.users (name) values ('@alice:example.org')")
            assert await op.reload() == "reloaded"


async def test_a_database_that_is_away_is_waited_for_and_the_reload_is_done_then(
    tmp_path: Path,
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        conn = await asyncpg.connect(server.dsn())
        await migrate(conn)
        await conn.close()
        async with appservice() as old, appservice() as new:
            files = files_for(tmp_path / "bridge", server.dsn(), old)
            async with worker_process(files), operator(files) as op:
                os.kill(server.child.pid, signal.SIGKILL)
                await asyncio.sleep(1)
                register(files, of_bot(new.url))
                assert await op.reload() == "waits"
                assert (await op.ask("GET", "/ready"))[0] == 503
                await asyncio.to_thread(server.start)
                await op.until_reload("reloaded")
                async with homeserver(files) as hs:
                    assert await hs.push("1", b'{"events":[{"event_id":"$1"}]}') == 200
                await new.until(lambda: len(new.events) == 1)
    assert old.requests == []


async def test_a_reload_that_may_have_begun_is_undone_when_the_files_are_as_they_were(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    cut = """
        select pg_terminate_backend(pid) from pg_stat_activity
         where application_name = 'appservice_bridge' and datname = current_database()"""
    async with appservice() as old, appservice() as new:
        files = files_for(tmp_path, database, old)
        async with worker_process(files) as one, operator(files) as op:
            await op.until_reload("unchanged")
            async with held_at(pg, database, "insert on appservice_bridge.attached"):
                register(files, of_bot(new.url))
                hang_up(one)
                await somebody_waits(pg)
                register(files, of_bot(old.url))
                await pg.execute(cut)
                await op.until_reload("waits")
            await op.until_reload("reloaded")
            await capture(pg, BOT, 1)
            await old.until(lambda: len(old.to_device) == 1)
    assert new.requests == []


async def test_two_workers_that_reload_one_after_the_other_lose_and_double_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as old, appservice() as new:
        first, second = (files_for(tmp_path / name, database, old) for name in ("a", "b"))
        sender = Sender(files=second)
        changed = registration("bot", new.url, users=["@other_.*"])
        async with worker_process(first), worker_process(second), operator(first) as op:
            async with sender.sending():
                register(first, changed)
                assert await op.reload() == "reloaded"
                await asyncio.sleep(1)  # the second still has the old one, and relays
                register(second, changed)
                async with operator(second) as other:
                    await other.reload()
                await asyncio.sleep(0.5)
            await new.until(lambda: len(events(old, new)) == sender.sent)
    assert sender.failed == []
    assert events(old, new) == [f"${n}" for n in range(1, sender.sent + 1)]
    assert new.taken


def events(*receivers: Appservice) -> list[str]:
    taken = in_order(*(request for one in receivers for request in one.taken))
    return [event["event_id"] for one in taken for event in one.items("events")]


async def test_reloads_that_are_asked_for_at_once_become_few(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        async with worker_process(files) as one, operator(files) as op:
            register(files, of_bot(bot.url + "/x"))
            outcomes = await asyncio.gather(*(op.reload() for _ in range(20)))
            assert await one.terminate() == 0
    assert set(outcomes) <= {"reloaded", "unchanged"}
    assert one.log.read_text().count("config.reloaded") == 1


async def test_sighup_at_any_time_after_the_start_does_not_end_the_process(
    database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        files = files_for(tmp_path, database, bot)
        log = tmp_path / "early.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", HANGS_UP_ITSELF),
                *("run", "--config", str(files.config)),
                stdout=output,
                stderr=output,
            )
        try:
            for _ in range(20):
                if process.returncode is None and "worker" in log.read_text():
                    process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.05)
            await ready(files)
            async with asyncio.timeout(60):
                while "config.unchanged" not in log.read_text():
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGHUP)
            process.terminate()
            process.send_signal(signal.SIGHUP)
            assert await asyncio.wait_for(process.wait(), 60) == 0
        finally:
            if process.returncode is None:
                process.kill()
