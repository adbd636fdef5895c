"""Random walks of memberships, followed at random points, against a count from scratch."""

import random
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from appservice_bridge.routing.following import follow_once
from appservice_bridge.routing.seeding import Seeding
from appservice_bridge.storage.database import Database
from tests.support.facts import Connection
from tests.support.intake import registered
from tests.support.memberships import (
    Memberships,
    begin,
    memberships,
    residents,
    told,
    tracked,
    user,
)

OWNERS = registered(("bot", "@b_.*|@both_.*"), ("irc", "@i_.*|@both_.*"))
ROOMS = ("!1", "!2", "!3", "!4")
PEOPLE = ("b_1", "b_2", "i_1", "i_2", "both_1", "ann", "bob", "cat_at_far", "dan_at_far", "bot_bot")
KINDS = ("join", "join", "join", "join", "leave", "leave", "leave", "ban", "invite", "knock")
STEPS = 150

State = dict[str, dict[str, str]]


@dataclass(slots=True)
class Walk:
    """A homeserver that changes at random, two appservices, and what they believe."""

    pg: Connection
    db: Database
    rooms: Memberships
    chance: random.Random
    state: State = field(default_factory=lambda: defaultdict(dict))
    believed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    open: dict[str, AsyncExitStack] = field(default_factory=dict)

    async def step(self) -> None:
        kinds = (self.change, self.leave_late, self.commit, self.leave_all, self.follow, self.hear)
        await self.chance.choices(kinds, weights=(60, 6, 8, 3, 20, 10))[0]()

    async def change(self) -> None:
        """Up to three members of a room that nobody else writes to change in one commit."""
        if (room := self._free_room()) is not None:
            await self.rooms.change(room, **self._next(room))

    async def leave_late(self) -> None:
        """A change that has its place in the stream and is committed some steps later."""
        if (room := self._free_room()) is not None and len(self.open) < 2:
            stack = AsyncExitStack()
            await stack.enter_async_context(self.rooms.late(room, **self._next(room)))
            self.open[room] = stack

    async def commit(self) -> None:
        if self.open:
            await self.open.pop(self.chance.choice(sorted(self.open))).aclose()

    async def leave_all(self) -> None:
        """The server leaves."""
        if (room := self._free_room()) is not None:
            self.state[room].clear()
            await self.rooms.server_leaves(room)

    async def follow(self) -> None:
        await follow_once(self.db, OWNERS, limit=self.chance.choice((1, 3, 1000)))

    async def hear(self) -> None:
        for appservice_id in OWNERS.registrations:
            for name, change in (await told(self.pg, appservice_id)).items():
                if change == "changed":
                    self.believed[appservice_id].add(name)
                else:
                    self.believed[appservice_id].discard(name)

    async def settle(self) -> None:
        while self.open:
            await self.commit()
        while not (await follow_once(self.db, OWNERS, limit=3)).done:
            pass
        await self.hear()

    def _free_room(self) -> str | None:
        free = [room for room in ROOMS if room not in self.open]
        return self.chance.choice(free) if free else None

    def _next(self, room: str) -> dict[str, str]:
        names = self.chance.sample(PEOPLE, self.chance.randint(1, 3))
        changes = {name: self.chance.choice(KINDS) for name in names}
        self.state[room].update(changes)
        return changes


def owned(name: str, appservice_id: str) -> bool:
    return appservice_id in OWNERS.of(user(name))


def joined(state: State, room: str) -> set[str]:
    return {name for name, membership in state[room].items() if membership == "join"}


def from_scratch(state: State, appservice_id: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Whom it tracks, and where its users are, by definition."""
    seen, inside = set(), set()
    for room in ROOMS:
        own = {name for name in joined(state, room) if owned(name, appservice_id)}
        inside |= {(room, name) for name in own}
        if own:
            seen |= joined(state, room) - own
    return {name for name in seen if not owned(name, appservice_id)}, inside


@pytest.mark.parametrize("seed", range(8))
async def test_case_28_after_any_walk_each_appservice_knows_exactly_whom_it_shares_a_room_with(
    pg: Connection, database: str, db: Database, seed: int
) -> None:
    rooms = await memberships(pg, database)
    await begin(db, OWNERS)
    walk = Walk(pg, db, rooms, random.Random(seed))
    if seed % 2:
        await rooms.position("idle_writer", 0)  # the bound never moves
    for number in range(STEPS):
        await walk.step()
        if number % 50 == 25:
            await walk.settle()
            await agree(walk)
    await walk.settle()
    await agree(walk)
    before = dict(walk.believed)
    await pg.execute("update appservice_bridge.membership_cursor set settled = 0, recent = '{}'")
    await walk.settle()  # everything once more
    assert walk.believed == before
    await agree(walk)
    await resynced(walk)


async def agree(walk: Walk) -> None:
    for appservice_id in OWNERS.registrations:
        expected, inside = from_scratch(walk.state, appservice_id)
        assert await tracked(walk.pg, appservice_id) == expected
        assert await residents(walk.pg, appservice_id) == inside
        assert walk.believed[appservice_id] == expected


async def resynced(walk: Walk) -> None:
    """A recomputation by the bridge itself finds the same, and tells of all of it."""
    for appservice_id in OWNERS.registrations:
        expected, _ = from_scratch(walk.state, appservice_id)
        seeded = await Seeding(walk.db, OWNERS, [appservice_id]).run()
        assert (seeded.changed, seeded.left) == (len(expected), 0)
        assert await told(walk.pg, appservice_id) == dict.fromkeys(expected, "changed")
    await agree(walk)
