"""Of a batch only what is for an appservice over its budget is refused, and all else is stored."""

from pathlib import Path
from typing import Any, Final

from tests.http.test_budget import LIMIT, PADDING, refuse, until
from tests.support.appservice import appservice, ok
from tests.support.bridge import registration, worker
from tests.support.facts import Connection
from tests.support.ingesting import ingest_files, message, sender

WAITING: Final = "select bytes_in from appservice_bridge.outbox_head where appservice_id = 'down'"
STORED: Final = "select count(*) from appservice_bridge.outbox where appservice_id = 'down'"


def down(n: int) -> dict[str, Any]:
    return message(n, to_user_id="@d_1:example.org", content={"n": n, "x": PADDING})


async def test_one_appservice_over_its_budget_is_refused_alone_and_loses_nothing(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    event = {"event_id": "$1", "type": "m", "content": {}}
    refused = [
        down(26),
        {"kind": "room_event", "appservice_id": "down", "event": event},
        {"kind": "ephemeral", "appservice_id": "down", "event": event},
    ]
    accepted: list[dict[str, Any]] = [
        {"kind": "device_list", "appservice_id": "down", "changed": ["@c:remote"]},
        {"kind": "room_event", "appservice_id": "up", "event": event},
        message(1, to_user_id="@u_1:example.org"),
        message(2, to_user_id="@both_1:example.org"),
    ]
    async with appservice() as dead, appservice() as up:
        dead.answer = refuse
        bots = [
            registration("down", dead.url, users=["@d_.*", "@both_.*"], exclusive=False),
            registration("up", up.url, users=["@u_.*", "@both_.*"], exclusive=False),
        ]
        files = ingest_files(tmp_path, database, bots, budget={"appservice_bytes": LIMIT})
        async with worker(files), sender(files.relay_url) as hs:
            assert (await hs.send("1", *map(down, range(1, 26)))).verdicts == ["accepted"] * 25
            await until(lambda: pg.fetchval(f"select ({WAITING}) > {LIMIT}"))
            mixed = [one for pair in zip(accepted, refused, strict=False) for one in pair]
            taken = await hs.send("2", *mixed, accepted[3])
            assert taken.verdicts == ["accepted", "M_LIMIT_EXCEEDED"] * 3 + ["accepted"]
            await up.until(lambda: len(up.to_device) == 2 and len(up.events) == 1)
            assert await pg.fetchval(STORED) == 26  # what was shared went on to both
            counted = "select sum(items) from appservice_bridge.ledger where outcome = 'refused'"
            assert await pg.fetchval(counted) == len(refused)

            dead.answer = ok
            await dead.until(lambda: len(dead.to_device) == 26)
            again = await hs.send("2", *mixed, accepted[3])
            assert again.raw == taken.raw  # what was said of it holds
            await until(
                lambda: pg.fetchval(
                    "select bytes_out > 0 from appservice_bridge.lane where appservice_id = 'down'"
                )
            )
            assert (await hs.send("3", *refused)).verdicts == ["accepted"] * 3
            await dead.until(lambda: len(dead.to_device) == 27 and len(dead.events) == 1)
    numbers = [item["content"]["n"] for item in dead.to_device]
    assert numbers == [*range(1, 26), 2, 26]
