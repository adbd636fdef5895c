"""Room events that Synapse took and forgot: all arrive, once, and nothing else is recovered.

What dies, how and how often:

| test | process | how | times | when |
|---|---|---|---|---|
| forgotten | Synapse | SIGKILL | 3, or FORGET_ROUNDS | 50 events accepted, the bridge stopped |
| forgotten | the bridge | SIGSTOP, SIGCONT | 3, or FORGET_ROUNDS | while they are accepted |
| an orderly stop | Synapse | SIGTERM | 1 | the same |
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import pytest

from appservice_bridge.config.loading import load
from appservice_bridge.dev.parts import launched
from appservice_bridge.domain.room_interest import RoomEvent, RoomInterest
from appservice_bridge.sources.event_reader import EventReader, as_sent, replaced_state
from appservice_bridge.storage import room_events
from appservice_bridge.storage.database import Database
from tests.support.appservice import Appservice, appservice
from tests.support.homeserver import (
    SERVER,
    Account,
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)

ROUNDS: Final = int(os.environ.get("FORGET_ROUNDS", "3"))
EVENTS: Final = 50
COUNTED: Final = (
    "select coalesce(sum(items), 0)::int from appservice_bridge.ledger where outcome = %s"
)


@pytest.fixture(scope="module")
def forgetful(synapse_python: str) -> Iterator[Homeserver]:
    """A Synapse that may be killed, with two appservices."""
    appservices = [
        registered("rooms", users=["@rooms_.*"]),
        registered("aliases", namespaces={"aliases": [{"regex": "#al_.*", "exclusive": False}]}),
    ]
    with (
        postgres_on_disk() as server,
        homeserver(server, appservices, name="forgetful", python=synapse_python) as of,
    ):
        yield of


@pytest.fixture
async def on(forgetful: Homeserver) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Client(of=forgetful, http=http)


@asynccontextmanager
async def listening(of: Homeserver, appservice_id: str = "rooms") -> AsyncIterator[Appservice]:
    async with appservice(of.appservices[appservice_id].port.number) as seen:
        yield seen


def numbers(seen: Appservice, room_id: str, run: str) -> list[int]:
    """What came of a run's messages, in the order in which it came."""
    return [
        event["content"]["n"]
        for event in seen.events
        if event["room_id"] == room_id and event["content"].get("run") == run
    ]


async def kill_synapse(of: Homeserver, how: signal.Signals) -> None:
    os.kill(of.synapse.child.pid, how)
    await of.synapse.child.ended()


async def forget(on: Client, person: Account, room_id: str, run: str, how: signal.Signals) -> None:
    """Have 50 events accepted that Synapse cannot send, and end it; then all goes on."""
    bridge = on.of.bridge.child.pid
    os.kill(bridge, signal.SIGSTOP)
    try:
        for n in range(EVENTS):
            await on.say(person, room_id, {"run": run, "n": n})
        await kill_synapse(on.of, how)
    finally:
        os.kill(bridge, signal.SIGCONT)
    async with asyncio.timeout(60):
        await launched(on.of.synapse)


async def all_came(seen: Appservice, room_id: str, run: str, count: int = EVENTS) -> list[int]:
    await seen.until(lambda: len(numbers(seen, room_id, run)) >= count, within=100)
    return numbers(seen, room_id, run)


async def room_with_puppet(on: Client, name: str, seen: Appservice) -> tuple[Account, str]:
    """A room of a person and a user of the appservice, of which something has come."""
    person, puppet = await on.person(name), await on.puppet("rooms", f"rooms_{name}")
    room_id = await on.encrypted_room(person, [puppet])
    await on.say(person, room_id, {"run": "first", "n": 0})
    await all_came(seen, room_id, "first", 1)
    await cursor_started(on.of)
    return person, room_id


async def cursor_started(of: Homeserver) -> None:
    query = "select from appservice_bridge.event_cursor where appservice_id = 'rooms'"
    async with asyncio.timeout(20):
        while not of.rows(query):
            await asyncio.sleep(0.2)


async def recovered(of: Homeserver) -> int:
    [(items,)] = of.rows(COUNTED, "recovered")
    return int(items)


async def act(on: Client, step: Callable[[], Awaitable[object]]) -> None:
    """Do something, and wait until Synapse has come to it: its interest is of that moment."""
    await step()
    behind = (
        "select (select max(stream_ordering) from events)"
        " > (select stream_ordering from appservice_stream_position)"
    )
    async with asyncio.timeout(20):
        while on.of.rows(behind) == [(True,)]:
            await asyncio.sleep(0.05)


async def live_in_rooms(on: Client) -> int:
    """Rooms with and without users of the appservices: invites, kicks, leaves, aliases, state.

    Returns up to where there was no alias yet: nobody can say later when one was made.
    """
    person, other = await on.person("liver"), await on.person("other")
    one, two = await on.puppet("rooms", "rooms_one"), await on.puppet("rooms", "rooms_two")

    def call(who: Account, method: str, path: str, body: dict[str, Any]) -> Awaitable[object]:
        return on.call(method, path, who.token, body)

    mixed = await on.encrypted_room(person, [one, other])
    foreign = await on.encrypted_room(person, [other])
    answer = await on.call("POST", "/createRoom", person.token, {"preset": "public_chat"})
    public = answer["room_id"]
    alias = {"room_id": public}
    said = await on.say(person, mixed, {"n": 1})
    await act(on, lambda: on.say(person, public, {"n": 0}))
    await call(person, "PUT", "/directory/room/%23al_one%3Alab.test", alias)
    [(alias_from,)] = on.of.rows("select max(stream_ordering) from events")
    steps: list[Callable[[], Awaitable[object]]] = [
        lambda: on.say(other, foreign, {"n": 1}),
        lambda: on.say(person, public, {"n": 1}),
        lambda: on.say(person, public, {"n": 2}),
        lambda: call(two, "POST", f"/join/{quote(public)}", {}),
        lambda: on.say(person, public, {"n": 3}),
        lambda: call(two, "PUT", f"/profile/{two.user_id}/displayname", {"displayname": "2"}),
        lambda: call(two, "POST", f"/rooms/{public}/leave", {}),
        lambda: on.say(person, public, {"n": 4}),
        lambda: call(person, "POST", f"/rooms/{foreign}/invite", {"user_id": two.user_id}),
        lambda: on.say(other, foreign, {"n": 2}),
        lambda: call(two, "POST", f"/rooms/{foreign}/leave", {}),
        lambda: call(person, "PUT", f"/rooms/{mixed}/state/m.room.name/", {"name": "a"}),
        lambda: call(person, "PUT", f"/rooms/{mixed}/state/m.room.name/", {"name": "b"}),
        lambda: call(person, "PUT", f"/rooms/{mixed}/redact/{quote(said)}/1", {}),
        lambda: call(person, "POST", f"/rooms/{mixed}/kick", {"user_id": one.user_id}),
        lambda: on.say(person, mixed, {"n": 2}),
        lambda: call(person, "POST", f"/rooms/{mixed}/ban", {"user_id": two.user_id}),
        lambda: on.say(other, mixed, {"n": 3}),
        lambda: call(person, "POST", f"/rooms/{foreign}/invite", {"user_id": one.user_id}),
        lambda: call(one, "POST", f"/join/{quote(foreign)}", {}),
        lambda: on.say(one, foreign, {"n": 3}),
    ]
    for step in steps:
        await act(on, step)
    return int(alias_from)


async def wanted(of: Homeserver, database: Database, appservice_id: str, after: int) -> set[str]:
    """What the finder takes for an appservice's, of all events above a position."""
    registrations = load(of.bridge.config).registrations
    [registration] = [each for each in registrations if each.id == appservice_id]
    interest = RoomInterest(registration, server_name=SERVER)
    rows = of.rows(
        "select stream_ordering, event_id, room_id, type, sender, state_key from events"
        " where rejection_reason is null and stream_ordering > %s order by stream_ordering",
        after,
    )
    names = [field.name for field in fields(RoomEvent)]
    events = [RoomEvent(**dict(zip(names, row, strict=True))) for row in rows]
    async with database.transaction() as conn:
        rooms = await room_events.rooms(conn, [event.room_id for event in events], after=after)
    return {event.event_id for event in events if interest.wants(event, rooms[event.room_id])}


def has_seen(seen: Appservice, count: int) -> bool:
    return len(seen.events) >= count


async def test_what_is_looked_for_is_what_synapse_sends(forgetful: Homeserver, on: Client) -> None:
    async with (
        Database.open(forgetful.dsn) as database,
        listening(forgetful) as rooms,
        listening(forgetful, "aliases") as aliases,
    ):
        alias_from = await live_in_rooms(on)
        for appservice_id, seen, after in (("rooms", rooms, 0), ("aliases", aliases, alias_from)):
            expected = await wanted(forgetful, database, appservice_id, after)
            assert len(expected) > 1
            await seen.until(partial(has_seen, seen, len(expected)))
            assert {event["event_id"] for event in seen.events} == expected
            assert len(seen.events) == len(expected)
        await asyncio.sleep(12)  # more than two rounds, and longer than what counts as quiet
        assert await recovered(forgetful) == 0


async def test_an_event_that_was_read_is_the_event_that_was_sent(
    forgetful: Homeserver, on: Client
) -> None:
    """Both ways of reading; but for age, and what Synapse shows in `invite_room_state` alone."""
    registration = next(r for r in load(forgetful.bridge.config).registrations if r.id == "rooms")
    async with listening(forgetful) as seen, Database.open(forgetful.dsn) as database:
        person, one = await on.person("reader"), await on.puppet("rooms", "rooms_reader")
        two = await on.puppet("rooms", "rooms_guest")
        room_id = await on.encrypted_room(person, [one])
        await on.call("PUT", f"/rooms/{room_id}/state/m.room.name/", person.token, {"name": "a"})
        await on.call("PUT", f"/rooms/{room_id}/state/m.room.name/", person.token, {"name": "b"})
        await on.call("POST", f"/rooms/{room_id}/invite", person.token, {"user_id": two.user_id})
        await on.call("POST", f"/rooms/{room_id}/kick", person.token, {"user_id": two.user_id})
        last = await on.say(one, room_id, {"\u00e4": [1, "\ud83d\ude00"]})
        await seen.until(lambda: any(event["event_id"] == last for event in seen.events))
        reader = EventReader(on.http, forgetful.url, server_name=SERVER)
        sent = [event for event in seen.events if event["room_id"] == room_id]
        assert len(sent) >= 6
        for event in sent:
            of = RoomEvent(
                stream_ordering=0,
                event_id=event["event_id"],
                room_id=room_id,
                type=event["type"],
                sender=event["sender"],
                state_key=event.get("state_key"),
            )
            read = await reader.read(registration, of, [one.user_id])
            assert read is not None
            assert bare(json.loads(read), "invite_room_state") == bare(event, "invite_room_state")
            async with database.transaction() as conn:
                stored = await room_events.stored(conn, event["event_id"])
                assert stored is not None
                replaced = replaced_state(stored.json)
                was = await room_events.stored(conn, replaced) if replaced else None
            before = was.json if was else None
            shaped = as_sent(of, stored.json, replaced=before, now_ms=0)
            assert bare(json.loads(shaped)) == bare(event)


def bare(event: dict[str, Any], *names: str) -> dict[str, Any]:
    """Without age and these, inside and outside of `unsigned`."""
    left = ("age", *names)
    unsigned = {name: value for name, value in event["unsigned"].items() if name not in left}
    outer = {name: value for name, value in event.items() if name not in left}
    return outer | {"unsigned": unsigned}


async def test_nothing_is_recovered_while_all_is_well_under_load(
    forgetful: Homeserver, on: Client
) -> None:
    """Eight say as much as they can for longer than two rounds."""
    async with listening(forgetful) as seen:
        people = await on.people("talker", 8)
        puppet = await on.puppet("rooms", "rooms_listener")
        rooms = [await on.encrypted_room(person, [puppet]) for person in people]
        until, said = time.monotonic() + 13, 0

        async def talk(person: Account, room_id: str) -> None:
            nonlocal said
            while time.monotonic() < until and said < 3000:
                await on.say(person, room_id, {"run": "load", "n": said})
                said += 1

        await asyncio.gather(*(talk(*pair) for pair in zip(people, rooms, strict=True)))
        await seen.until(lambda: sum(len(numbers(seen, r, "load")) for r in rooms) >= said, 60)
        await asyncio.sleep(6)
        assert sum(len(numbers(seen, r, "load")) for r in rooms) == said
    assert await recovered(forgetful) == 0


@pytest.mark.timeout(60 + 40 * ROUNDS)
async def test_events_that_synapse_forgot_when_it_was_killed_all_arrive_once(
    forgetful: Homeserver, on: Client
) -> None:
    async with listening(forgetful) as seen:
        person, room_id = await room_with_puppet(on, "killer", seen)
        for number in range(ROUNDS):
            run = f"kill {number}"
            await forget(on, person, room_id, run, signal.SIGKILL)
            came = await all_came(seen, room_id, run)
            assert came == list(range(EVENTS)), run
        await on.say(person, room_id, {"run": "last", "n": 0})
        await all_came(seen, room_id, "last", 1)
        for number in range(ROUNDS):
            assert numbers(seen, room_id, f"kill {number}") == list(range(EVENTS))
    assert await recovered(forgetful) >= ROUNDS * (
        EVENTS - 1
    )  # one was in flight, and the relay has it


async def test_events_that_synapse_forgot_when_it_was_stopped_all_arrive_once(
    forgetful: Homeserver, on: Client
) -> None:
    async with listening(forgetful) as seen:
        person, room_id = await room_with_puppet(on, "stopper", seen)
        await forget(on, person, room_id, "stop", signal.SIGTERM)
        assert await all_came(seen, room_id, "stop") == list(range(EVENTS))


async def test_what_was_forgotten_comes_before_what_is_said_in_the_room_after_the_restart(
    forgetful: Homeserver, on: Client
) -> None:
    async with listening(forgetful) as seen:
        person, room_id = await room_with_puppet(on, "order", seen)
        await forget(on, person, room_id, "order", signal.SIGKILL)
        await on.say(person, room_id, {"run": "order", "n": EVENTS})
        assert await all_came(seen, room_id, "order", EVENTS + 1) == list(range(EVENTS + 1))
