"""Messages of 1 KB, and the tables filled with them as the homeserver and intake fill them.

Appservices are called `as0000`, `as0001` and so on, and own the users `@as0000_…`.
"""

import time
from typing import Final, Protocol

from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.notifications import wake_intake

MESSAGE_BYTES: Final = 1000
"""Of an item in a body."""

CHUNK: Final = 50_000
USERS: Final = 100  # of one appservice

_TYPE: Final = '"type":"m.room.encrypted","sender":"@alice:example.org"'
_RECIPIENT: Final = '{"to_user_id":"@as0000_0000000:example.org","to_device_id":"DEV",'
_CONTENT: Final = '"content":{"at":%19d,"ciphertext":"%s"}}'
_FILLING: Final = "x" * (MESSAGE_BYTES - len(_RECIPIENT + _TYPE + "," + _CONTENT % (0, "")))

FILL_OUTBOX: Final = """
-- bench.fill_outbox: numbers $1 to $2 of all, dealt out to $3 appservices, each with $4 users
insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id, captured_at,
                    payload)
select name, n / $3 + 1, 'to_device', user_id, 'DEV', n, clock_timestamp(),
       convert_to('{"to_user_id":"' || user_id || '","to_device_id":"DEV",' || $5::text, 'UTF8')
  from generate_series($1::bigint, $2::bigint) n,
       lateral (select 'as' || lpad((n % $3)::text, 4, '0') as name) a,
       lateral (select '@' || name || '_' || lpad((n / $3 % $4)::text, 7, '0') || ':example.org'
                    as user_id) u
"""

FILL_HEADS: Final = """
-- bench.fill_heads
insert into outbox_head (appservice_id, position, bytes_in)
select 'as' || lpad(a::text, 4, '0'), $2::bigint, $2::bigint * $3::int
  from generate_series(0, $1::int - 1) a
"""

NAIVE_TABLE: Final = """
create schema naive;
create table naive.outbox (
    id            bigint generated always as identity primary key,
    appservice_id text not null,
    payload       jsonb not null,
    created_at    timestamptz not null default now()
);
create index naive_outbox_next on naive.outbox (appservice_id, id);
"""

FILL_NAIVE: Final = """
-- bench.fill_naive
insert into naive.outbox (appservice_id, payload)
select name, ('{"to_user_id":"' || user_id || '","to_device_id":"DEV",' || $5::text)::jsonb
  from generate_series($1::bigint, $2::bigint) n,
       lateral (select 'as' || lpad((n % $3)::text, 4, '0') as name) a,
       lateral (select '@' || name || '_' || lpad((n / $3 % $4)::text, 7, '0') || ':example.org'
                    as user_id) u
"""

CAPTURE_MANY: Final = """
-- bench.capture_many: as the triggers write them, many in one DB transaction
insert into capture_log (kind, user_id, device_id, stream_id, body)
select 'to_device', user_id, 'DEV', stream_id, $3::bytea
  from unnest($1::text[], $2::bigint[]) as m(user_id, stream_id)
"""

APPEND_MANY: Final = """
-- bench.append_many: straight into the outboxes; positions begin behind $1
insert into outbox (appservice_id, position, kind, user_id, device_id, stream_id, captured_at,
                    payload)
select 'as' || lpad((n % $3)::text, 4, '0'), n / $3 + 1, 'to_device', '@any:example.org', 'DEV', n,
       clock_timestamp(), $4::bytea
  from generate_series($1::bigint, $2::bigint) n
"""

INSERT_NAIVE: Final = """
-- bench.insert_naive: one row a commit
with one as (insert into naive.outbox (appservice_id, payload) values ($1, $2::jsonb))
select pg_notify('naive_outbox', $1)
"""


def appservice(number: int) -> str:
    """Id of an appservice."""
    return f"as{number:04}"


def user(owner: str, number: int) -> str:
    """One of its users."""
    return f"@{owner}_{number:07}:example.org"


def stored(at_ns: int = 0) -> bytes:
    """A message as Synapse stores it; `at_ns` is when it was sent, on the monotonic clock."""
    content = _content(at_ns).removesuffix("}")
    return ("{" + content + "," + _TYPE + "}").encode()


def item(recipient: str, at_ns: int = 0) -> bytes:
    """A message as appservices get it, 1 KB."""
    to = f'{{"to_user_id":"{recipient}","to_device_id":"DEV",'
    return (to + _TYPE + "," + _content(at_ns)).encode()


def _content(at_ns: int) -> str:
    return _CONTENT % (at_ns or time.monotonic_ns(), _FILLING)


class Fill(Protocol):
    """Lets messages wait."""

    async def __call__(
        self, conn: Connection, *, appservices: int, messages: int, users: int = USERS
    ) -> None:
        """As many for each appservice."""


async def fill_outbox(
    conn: Connection, *, appservices: int, messages: int, users: int = USERS
) -> None:
    """Let messages wait in the outboxes, as many for each; the numbers must divide evenly."""
    await _fill(conn, FILL_OUTBOX, appservices, messages, users)
    each = messages // appservices
    await conn.execute(FILL_HEADS, appservices, each, MESSAGE_BYTES)
    await _settle(conn, "vacuum analyze outbox")


async def fill_more(conn: Connection, *, first: int, messages: int) -> None:
    """More for the first appservice, behind so many; the head is left to the caller."""
    rest = _TYPE + "," + _content(0)
    for low in range(first, first + messages, CHUNK):
        high = min(low + CHUNK, first + messages) - 1
        await conn.execute(FILL_OUTBOX, low, high, 1, USERS, rest)
    await _settle(conn, "vacuum analyze outbox")


async def fill_naive(
    conn: Connection, *, appservices: int, messages: int, users: int = USERS
) -> None:
    """The same for the naive outbox."""
    await _fill(conn, FILL_NAIVE, appservices, messages, users)
    await _settle(conn, "vacuum analyze naive.outbox")


async def _fill(
    conn: Connection, statement: str, appservices: int, messages: int, users: int
) -> None:
    if messages % appservices:
        raise ValueError(f"{messages} messages for {appservices} appservices")
    rest = _TYPE + "," + _content(0)
    for first in range(0, messages, CHUNK):
        last = min(first + CHUNK, messages) - 1
        await conn.execute(statement, first, last, appservices, users, rest)


async def _settle(conn: Connection, vacuum: str) -> None:
    """What was left to do for the rows is done before anyone is measured."""
    await conn.execute(vacuum)
    await conn.execute("checkpoint")


async def capture(conn: Connection, user_ids: list[str], first: int, body: bytes) -> None:
    """Capture a message for each of these users in one DB transaction, and wake intake."""
    async with conn.transaction():
        await conn.execute(CAPTURE_MANY, user_ids, [*range(first, first + len(user_ids))], body)
        await wake_intake(conn)
