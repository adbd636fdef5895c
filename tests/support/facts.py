"""Facts put where the homeserver would put them: into Synapse's own tables, or the log."""

import asyncio
import json
from importlib.resources import files
from typing import Any, TypeAlias

import asyncpg

from appservice_bridge.domain.supported import NEWEST_SCHEMA_VERSION
from appservice_bridge.storage import synapse

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SCHEMA = "storage/schema/main/full_schemas/72/full.sql.postgres"
COUNTS = "count_e2e_one_time_keys"
DELTAS = ("80/02_scheduled_tasks.sql", "82/02_scheduled_tasks_index.sql")
VERSIONS = "storage/schema/common/schema_version.sql"


async def make_synapse_tables(pg: Connection) -> None:
    """The tables of the Synapse release that is installed here, from its own schema file."""
    await pg.execute("set search_path = public")
    await pg.execute((files("synapse") / SCHEMA).read_text())
    await pg.execute((files("synapse") / VERSIONS).read_text())
    for delta in DELTAS:
        await pg.execute((files("synapse") / "storage/schema/main/delta" / delta).read_text())
    await pg.execute("reset search_path")
    await pg.execute("insert into public.stream_positions values ('to_device', 'master', 0)")
    await pg.execute(
        "insert into public.schema_version (version, upgraded) values ($1, false)",
        NEWEST_SCHEMA_VERSION,
    )


async def attach(pg: Connection) -> None:
    """Synapse's tables with the capture on them."""
    await make_synapse_tables(pg)
    await pg.execute("set search_path = appservice_bridge, public")
    await synapse.install(pg)


def message(**content: Any) -> str:
    """What Synapse stores of a to-device message, as it writes it."""
    whole = {"content": content, "type": "m.test", "sender": "@alice:example.org"}
    return json.dumps(whole, separators=(",", ":"))


def written_otherwise(n: int) -> bytes:
    """The same, and so that it cannot go from the log to an outbox as it is."""
    return json.dumps(json.loads(message(n=n))).encode()


async def send(pg: Connection, user: str, stream_id: int, **content: Any) -> None:
    """Insert into device_inbox as Synapse does."""
    await pg.execute(
        "insert into public.device_inbox (user_id, device_id, stream_id, message_json)"
        " values ($1, 'DEV', $2, $3)",
        user,
        stream_id,
        message(**content),
    )


async def change_device(pg: Connection, user: str, device: str, stream_id: int) -> None:
    """A row of the stream of device lists, as Synapse writes it."""
    await pg.execute(
        "insert into public.device_lists_stream (stream_id, user_id, device_id)"
        " values ($1, $2, $3)",
        stream_id,
        user,
        device,
    )


async def sign(pg: Connection, user: str, stream_id: int, *signed: str) -> None:
    """A row of the stream of signatures, as Synapse writes it."""
    await pg.execute(
        "insert into public.user_signature_stream (stream_id, from_user_id, user_ids)"
        " values ($1, $2, $3)",
        stream_id,
        user,
        json.dumps(signed),
    )


async def invalidate(pg: Connection, stream_id: int, *keys: str, cache: str = COUNTS) -> None:
    """What Synapse writes in the DB transaction that changes the keys of a device."""
    await pg.execute(
        "insert into public.cache_invalidation_stream_by_instance"
        " (stream_id, instance_name, cache_func, keys, invalidation_ts)"
        " values ($1, 'master', $2, $3, extract(epoch from clock_timestamp()) * 1000)",
        stream_id,
        cache,
        list(keys),
    )


async def add_device(pg: Connection, user: str, device: str) -> None:
    """A device that is there."""
    await pg.execute(
        "insert into public.devices (user_id, device_id, hidden) values ($1, $2, false)",
        user,
        device,
    )


async def schedule_deletion(
    pg: Connection, user: str, upto: int, task_id: str, *, at: str = "clock_timestamp()"
) -> None:
    """What Synapse writes when it deleted a device that had messages: the last of them."""
    await pg.execute(
        "insert into public.scheduled_tasks (id, action, status, timestamp, resource_id, params)"
        " values ($1, 'delete_device_messages', 'scheduled',"
        f"        extract(epoch from {at}) * 1000, 'DEV', $2)",
        task_id,
        json.dumps({"user_id": user, "device_id": "DEV", "up_to_stream_id": upto}),
    )


async def capture(pg: Connection, user: str, stream_id: int, body: bytes | None = None) -> None:
    """A row of the log, as the trigger would have written it."""
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, user_id, device_id, stream_id, body)"
        " values ('to_device', $1, 'DEV', $2, $3)",
        user,
        stream_id,
        body or message(n=stream_id).encode(),
    )


async def relay(pg: Connection, appservice_id: str, *event_ids: str) -> None:
    """A row of the log, as the relay would have written it."""
    body = json.dumps({"events": [{"event_id": one, "type": "m"} for one in event_ids]})
    await pg.execute(
        "insert into appservice_bridge.capture_log (kind, appservice_id, body)"
        " values ('transaction', $1, $2)",
        appservice_id,
        body.encode(),
    )


async def outbox(pg: Connection, appservice_id: str = "bot") -> list[Any]:
    """What waits, in order: a to-device message's `n`, an event's id."""
    rows = await pg.fetch(
        "select payload from appservice_bridge.outbox where appservice_id = $1 order by position",
        appservice_id,
    )
    items = [json.loads(row["payload"]) for row in rows]
    return [item.get("event_id") or item["content"].get("n") for item in items]


async def wait_until(pg: Connection, condition: str, within: float = 60) -> None:
    """Wait until a query says true."""
    async with asyncio.timeout(within):
        while not await pg.fetchval(condition):
            await asyncio.sleep(0.01)


# How a column is searched, and for what: bytes as bytes, an array as its elements joined.
_SEARCHED = {
    "bytea": ("{}", "convert_to($1::text, 'UTF8')"),
    "bytea[]": ("array_to_string({}, '')", "encode(convert_to($1::text, 'UTF8'), 'hex')"),
}


async def where_it_is(pg: Connection, text: str) -> set[str]:
    """Tables and columns of ours with this text in any row, as far as SQL shows them."""
    columns = await pg.fetch(
        "select c.relname, a.attname, a.atttypid::regtype::text as type"
        "  from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relnamespace = 'appservice_bridge'::regnamespace and c.relkind in ('r', 'p')"
        "   and a.attnum > 0 and not a.attisdropped"
    )
    found = set()
    for table, column, type_ in columns:
        of, sought = _SEARCHED.get(type_, ("{}::text", "$1::text"))
        query = (
            f'select exists (select from appservice_bridge."{table}"'
            f" where position({sought} in {of.format(column)}) > 0)"
        )
        if await pg.fetchval(query, text):
            found.add(f"{table}.{column}")
    return found
