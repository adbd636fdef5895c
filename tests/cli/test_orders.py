"""`retry`, `pause`, `resume` and `transactions`: what is said of a lane."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.delivery import operating
from appservice_bridge.delivery.operating import NotInFlightError, PausedError, SeveralInFlightError
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.storage.database import Database
from tests.support.appservice import Appservice, appservice, ok
from tests.support.bridge import Files, registration, worker, write_files
from tests.support.command import command
from tests.support.dead_letters import BY, set_aside
from tests.support.facts import Connection, capture

BOT: Final = "@b_1:example.org"
LONG: Final = {"backoff": {"first_seconds": 300, "ceiling_seconds": 300}}
ASKED: Final = """select coalesce(array_agg(number), '{}') from appservice_bridge.sealed
                   where bury_asked_at is not null"""
LANE: Final = "select * from appservice_bridge.lane"


def written(
    directory: Path, database: str, url: str = "http://127.0.0.1:9", *ids: str, **delivery: Any
) -> Files:
    some = [registration(one, url, users=[f"@{one[0]}_.*"]) for one in ids or ("bot",)]
    return write_files(directory, database, some, delivery=delivery)


@pytest.fixture
async def files(tmp_path: Path, database: str, db: Database) -> Files:
    """A worker has run with it once, and does no more."""
    files = written(tmp_path, database)
    await announce(db, owners(files.load()), epoch="test")
    return files


async def run(files: Files, *arguments: str, typed: str = "") -> tuple[int, str, str]:
    return await command(*arguments, "--config", str(files.config), typed=typed)


async def seal(pg: Connection, **columns: Any) -> None:
    """A transaction that was sent and not acknowledged."""
    given = {
        "appservice_id": "bot",
        "number": 7,
        "txn_id": "abtest-7",
        "first_position": 1,
        "last_position": 3,
        "items": 3,
        "body_bytes": 4321,
        "builder": 1,
        "slots": [],
        "frame": [],
        "digest": b"",
    } | columns
    names, places = ", ".join(given), ", ".join(f"${n}" for n in range(1, len(given) + 1))
    await pg.execute(
        f"insert into appservice_bridge.sealed ({names}) values ({places})", *given.values()
    )


async def failing(pg: Connection, bot: Appservice) -> None:
    """The appservice refused once, and the lane rests for long."""
    await bot.until(lambda: len(bot.requests) == 1)
    while not await pg.fetchval("select failed_attempts > 0 from appservice_bridge.lane"):
        pass
    bot.answer = ok


async def test_after_retry_what_is_owed_is_sent_at_once_the_same_id_and_bytes(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (503, {}, b"{}")
        files = written(tmp_path, database, bot.url, **LONG)
        async with worker(files):
            await capture(pg, BOT, 1)
            await failing(pg, bot)
            assert await run(files, "retry", "bot") == (0, "bot is tried again now\n", "")
            await bot.until(lambda: len(bot.to_device) == 1)
    first, second = bot.requests
    assert (first.path, first.body) == (second.path, second.body)


async def test_retry_also_ends_the_rest_of_a_transaction_that_only_tells_of_devices(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with appservice() as bot:
        bot.answer = lambda _: (503, {}, b"{}")
        files = written(tmp_path, database, bot.url, **LONG)
        async with worker(files):
            await pg.execute(
                "insert into appservice_bridge.device_list_update (appservice_id, user_id, change)"
                " values ('bot', '@a:example.org', 'changed')"
            )
            await failing(pg, bot)
            assert (await run(files, "retry", "bot"))[0] == 0
            await bot.until(lambda: len(bot.taken) == 1)


async def test_retry_lets_a_halted_lane_try_again(pg: Connection, files: Files) -> None:
    await pg.execute("update appservice_bridge.lane set due_at = 'infinity'")
    code, out, _ = await run(files, "retry", "bot")
    assert code == 0
    assert out.startswith("bot has nothing in flight; what waits is sent now")
    assert "no worker runs that serves it" in out
    assert await pg.fetchval("select due_at <= now() from appservice_bridge.lane")


async def test_split_is_asked_for_where_something_is_in_flight(
    pg: Connection, files: Files
) -> None:
    asked = "select split_asked_at is not null from appservice_bridge.lane"
    code, _, err = await run(files, "retry", "bot", "--split")
    assert code == 1
    assert "nothing of bot is in flight" in err
    assert not await pg.fetchval(asked)
    await seal(pg)
    assert (await run(files, "retry", "bot"))[0] == 0
    assert not await pg.fetchval(asked)
    assert (await run(files, "retry", "bot", "--split"))[0] == 0
    assert await pg.fetchval(asked)


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ({"items": 1}, "one item"),
        ({"items": 0, "device_lists": 1}, "what is told of one user or device"),
    ],
)
async def test_what_holds_one_thing_is_not_split(
    pg: Connection, files: Files, holds: dict[str, int], told: str
) -> None:
    await seal(pg, **holds)
    code, out, err = await run(files, "retry", "bot", "--split")
    assert (code, out) == (1, "")
    assert f"abtest-7 holds {told}: it cannot be split" in err
    assert "`appservice-bridge retry bot --bury` sets it aside" in err
    assert not await pg.fetchval("select split_asked_at is not null from appservice_bridge.lane")


async def test_where_nobody_answers_nothing_is_buried_and_yes_is_named(
    pg: Connection, files: Files
) -> None:
    await seal(pg, items=1)
    code, out, err = await run(files, "retry", "bot", "--bury")
    assert (code, out.endswith("\n")) == (1, True)
    assert err.splitlines()[-1] == (
        "appservice-bridge: nothing was done, for nobody answered; --yes does it unasked"
    )
    assert await pg.fetchval(ASKED) == []


async def test_what_is_to_be_buried_is_named_and_asked_about(pg: Connection, files: Files) -> None:
    await seal(pg, items=1, doubtful=True)
    code, out, err = await run(files, "retry", "bot", "--bury", typed="n\n")
    assert code == 1
    assert "abtest-7, the one item in it, will not be delivered" in out + err
    assert "may have been processed. Bury it?" in out + err
    assert await pg.fetchval(ASKED) == []
    code, out, _ = await run(files, "retry", "bot", "--bury", typed="y\n")
    assert code == 0
    assert "abtest-7 becomes a dead letter instead of being sent to bot again" in out
    assert "no worker runs that serves it" in out
    assert await pg.fetchval(ASKED) == [7]
    assert "to be set aside since 20" in (await run(files, "transactions", "bot"))[1]
    assert await pg.fetchval("select due_at <= now() from appservice_bridge.lane")
    done = "select array[action, outcome] || subjects from appservice_bridge.admin_audit"
    assert await pg.fetchval(done) == ["retry", "rest ended, to be buried", "abtest-7"]
    assert (await run(files, "retry", "bot", "--bury", "--yes"))[0] == 0  # said twice is said


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ({"items": 3}, "it holds 3 items:"),
        ({"items": 1, "device_lists": 1}, "it holds 1 item and 1 update:"),
        (
            {"items": 0, "device_lists": 1, "device_keys": 1},
            "it holds 2 updates of users and devices:",
        ),
    ],
)
async def test_what_holds_more_than_one_thing_is_to_be_split_first(
    pg: Connection, files: Files, db: Database, holds: dict[str, int], told: str
) -> None:
    await seal(pg, **holds)
    said = re.escape(f"{told} `appservice-bridge retry bot --split` first")
    with pytest.raises(SeveralInFlightError, match=said):
        await operating.buriable(db, "bot")
    with pytest.raises(SeveralInFlightError, match=said):
        await operating.bury(db, "bot", "abtest-7", by=BY)
    assert await pg.fetchval(ASKED) == []


async def test_nothing_is_buried_of_a_lane_that_is_paused_or_owes_nothing(
    pg: Connection, files: Files, db: Database
) -> None:
    code, out, err = await run(files, "retry", "bot", "--bury", "--yes")
    assert (code, out) == (1, "")
    assert "nothing of bot is in flight, so there is nothing to bury" in err
    await seal(pg, items=0, device_keys=1)
    shown = await operating.buriable(db, "bot")
    await operating.pause(db, "bot", by=BY)
    with pytest.raises(PausedError):
        await operating.buriable(db, "bot")
    with pytest.raises(PausedError):
        await operating.bury(db, "bot", shown.txn_id, by=BY)
    assert await pg.fetchval(ASKED) == []


@pytest.mark.parametrize("words", [["--bury", "--split"], ["--yes"]])
async def test_to_split_and_to_bury_are_two_words(files: Files, words: list[str]) -> None:
    assert (await run(files, "retry", "bot", *words))[0] == 2


async def test_only_the_transaction_that_was_shown_is_buried(
    pg: Connection, files: Files, db: Database
) -> None:
    await seal(pg, items=1)
    shown = await operating.buriable(db, "bot")
    await pg.execute("delete from appservice_bridge.sealed")  # it was acknowledged
    with pytest.raises(NotInFlightError, match="abtest-7 is not in flight any more"):
        await operating.bury(db, "bot", shown.txn_id, by=BY)
    await seal(pg, items=1, number=8, txn_id="abtest-8")
    await pg.execute("update appservice_bridge.lane set due_at = 'infinity'")
    with pytest.raises(NotInFlightError):
        await operating.bury(db, "bot", shown.txn_id, by=BY)
    assert await pg.fetchval(ASKED) == []
    assert await pg.fetchval("select due_at = 'infinity' from appservice_bridge.lane")


async def test_one_that_is_being_acknowledged_is_neither_buried_nor_waited_for(
    pg: Connection, files: Files, db: Database
) -> None:
    await seal(pg, items=1)
    async with pg.transaction():  # an ack has the transaction first, and then wants the lane
        await pg.execute("delete from appservice_bridge.sealed")
        with pytest.raises(NotInFlightError):
            await operating.bury(db, "bot", "abtest-7", by=BY)
        await pg.execute("update appservice_bridge.lane set acked_to = 3")
    assert await pg.fetchval(ASKED) == []


async def test_a_lane_is_paused_until_it_is_resumed(pg: Connection, files: Files) -> None:
    paused = "select paused_at from appservice_bridge.lane"
    assert (await run(files, "pause", "bot"))[:2] == (
        0,
        "bot is paused; `appservice-bridge resume bot` makes it go on\n",
    )
    since = await pg.fetchval(paused)
    assert since is not None
    assert "was paused already" in (await run(files, "pause", "bot"))[1]
    assert await pg.fetchval(paused) == since
    code, _, err = await run(files, "retry", "bot")
    assert code == 1
    assert "`appservice-bridge resume bot` makes it go on" in err
    await pg.execute("update appservice_bridge.lane set due_at = 'infinity'")
    assert (await run(files, "resume", "bot"))[1].startswith("bot goes on;")
    assert await pg.fetchval(paused) is None
    assert await pg.fetchval("select due_at <= now() from appservice_bridge.lane")
    assert "was not paused" in (await run(files, "resume", "bot"))[1]


@pytest.mark.parametrize(
    "said", [["retry"], ["pause"], ["resume"], ["transactions"], ["dead-letters"], ["ping"]]
)
async def test_an_unknown_appservice_is_refused_and_the_nearest_is_named(
    files: Files, said: list[str]
) -> None:
    code, out, err = await run(files, *said, "bto")
    assert (code, out) == (1, "")
    assert err == "appservice-bridge: no appservice bto; did you mean bot?\n"


async def test_where_none_is_near_all_are_named_and_where_there_is_none_what_to_do(
    pg: Connection, files: Files
) -> None:
    assert "no appservice zzz; there are: bot" in (await run(files, "pause", "zzz"))[2]
    await pg.execute("delete from appservice_bridge.lane")
    assert "start `appservice-bridge run` once" in (await run(files, "pause", "bot"))[2]


async def test_transactions_shows_what_is_sealed_and_what_came_of_it(
    pg: Connection, files: Files
) -> None:
    code, out, _ = await run(files, "transactions", "bot")
    assert (code, out) == (0, "nothing is sealed and not acknowledged\nnothing was sent yet\n")
    await seal(pg, refusals=5, doubtful=True, part_of=6, device_lists=2, device_keys=1)
    await pg.execute(
        "update appservice_bridge.lane set failed_attempts = 5, last_outcome = 'M_BAD_JSON',"
        " last_status = 400, due_at = clock_timestamp() + interval '99999 s'"
    )
    out = (await run(files, "transactions", "bot"))[1]
    for shown in ("abtest-7", "4,321", "may have been processed", "part of 6", "counted"):
        assert shown in out
    assert "last answer: M_BAD_JSON (status 400), 5 attempts failed, again in 99" in out


async def test_transactions_as_json_names_everything(pg: Connection, files: Files) -> None:
    await seal(pg)
    await pg.execute("update appservice_bridge.lane set due_at = 'infinity'")
    shown = json.loads((await run(files, "transactions", "bot", "--json"))[1])
    assert shown["version"] == 1
    sealed_at = await pg.fetchval("select sealed_at from appservice_bridge.sealed")
    assert shown["transactions"] == [
        {
            "txn_id": "abtest-7",
            "number": 7,
            "items": 3,
            "device_lists": 0,
            "device_keys": 0,
            "body_bytes": 4321,
            "sealed_at": sealed_at.isoformat(),
            "refusals": 0,
            "refused_since": None,
            "doubtful": False,
            "part_of": None,
            "bury_asked_at": None,
        }
    ]
    assert shown["lane"]["rest_seconds"] is None  # it was halted
    assert set(shown["lane"]) == {
        "failed_attempts",
        "failing_since",
        "last_outcome",
        "last_status",
        "last_attempt_at",
        "last_ack_at",
        "paused_at",
        "split_asked_at",
        "body_cap_bytes",
        "rest_seconds",
    }


async def test_a_schema_that_is_not_this_release_s_is_refused(pg: Connection, files: Files) -> None:
    await pg.execute("delete from appservice_bridge.schema_version where number = 1")
    code, _, err = await run(files, "pause", "bot")
    assert code == 1
    assert "run `appservice-bridge migrate`" in err


@pytest.mark.parametrize("words", [["status"], ["audit"], ["top", "--once"]])
async def test_whatever_an_id_is_made_of_it_is_shown_as_it_is(
    pg: Connection, database: str, db: Database, tmp_path: Path, words: list[str]
) -> None:
    id_ = "[/b] " + "x" * 100
    one = registration("bot", "http://127.0.0.1:9", users=["@b_.*"]) | {"id": id_}
    files = write_files(tmp_path, database, [one])
    await announce(db, owners(files.load()), epoch="test")
    await pg.execute(
        "insert into appservice_bridge.ledger (appservice_id, kind, outcome, items)"
        " values ($1, 'event', 'routed', 0)",
        id_,
    )
    code, out, err = await run(files, *words)
    assert (code, err) == (0, "")
    assert id_ in [line.split("  ")[0] for line in out.splitlines()]


@pytest.mark.parametrize("words", [["status"], ["top", "--once"]])
async def test_who_should_connect_and_does_not_is_told_from_who_is_not_served(
    database: str, db: Database, tmp_path: Path, words: list[str]
) -> None:
    files = written(tmp_path, database, "websocket")
    await announce(db, owners(files.load()), epoch="test")
    await go_live(db, ["bot"])
    assert "disconnected" in (await run(files, *words))[1]


@pytest.mark.parametrize("words", [["status"], ["top", "--once"]])
async def test_what_was_buried_is_seen_beside_the_answer_that_came_last(
    pg: Connection, files: Files, words: list[str]
) -> None:
    await set_aside(pg, 1)
    await pg.execute("update appservice_bridge.lane set last_outcome = 'M_BAD_JSON'")
    heading, line, *_ = (await run(files, *words))[1].splitlines()
    assert "dead" in heading
    assert line.split()[-2:] == ["1", "M_BAD_JSON"]


async def test_what_a_worker_found_is_said_to_be_of_then_where_nobody_looked_since(
    pg: Connection, files: Files
) -> None:
    await pg.execute(
        "update appservice_bridge.capture_state set mode = 'none', looked_at = now(),"
        " problems = array['t is gone: mend it', 'u is gone: mend it', 'v: write']"
    )
    await pg.execute(
        "insert into appservice_bridge.worker (worker_id, name, alive_until)"
        " values (gen_random_uuid(), 'w', now() + interval '30 s')"
    )
    _, _, err = await run(files, "status")
    assert err.splitlines() == ["capture: t is gone and 1 more: mend it", "capture: v: write"]
    await pg.execute("update appservice_bridge.capture_state set looked_at = '2026-01-02 03:04Z'")
    _, _, err = await run(files, "status")
    assert err.startswith("capture as of 2026-01-02 03:04:00 UTC, nobody looked since: t is gone")
    await pg.execute("delete from appservice_bridge.worker")
    _, _, err = await run(files, "status")
    assert err.startswith("capture as of 2026-01-02 03:04:00 UTC, by a worker that has ended: t")


async def test_before_the_first_worker_status_says_so_and_names_the_config_s_appservices(
    database: str, tmp_path: Path
) -> None:
    files = written(tmp_path, database)
    code, out, err = await run(files, "status")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "no worker has run yet; the config names bot"


async def test_in_json_the_rest_of_a_halted_lane_has_no_end(pg: Connection, files: Files) -> None:
    await pg.execute("update appservice_bridge.lane set due_at = 'infinity'")
    [lane] = json.loads((await run(files, "status", "--json"))[1])["lanes"]
    assert lane["rest_seconds"] is None
