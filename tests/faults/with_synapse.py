"""The part with a real Synapse: it, the bridge and the appservice are killed while people send.

Each attempt at a message is a fact of its own, for a Synapse that was killed does not know whether
it took the last one: the attempt that was answered must come, an unanswered one may.
"""

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import aiohttp

from appservice_bridge.dev.parts import Part, launched
from appservice_bridge.dev.process import ChildCommand, ChildProcess
from tests.faults.judging import Exempt, judge
from tests.faults.playing import Row
from tests.faults.receiver import Manners
from tests.faults.stage import ROOT
from tests.faults.streams import Accepted, content, read_came
from tests.support.homeserver import (
    CLIENT,
    Account,
    Client,
    Homeserver,
    homeserver,
    postgres_on_disk,
    registered,
)

NAME: Final = "synapse"
SAYS: Final = (
    "a real Synapse: it, the bridge and the appservice are killed with -9 while people send device"
    " messages and room events"
)
SECONDS: Final = 80.0
PEOPLE: Final = 4
ATTEMPTS: Final = 1000  # a fact's number is its message's number times this, and the attempt


@dataclass(slots=True)
class Sending:
    """What people tried to send, and what was answered."""

    of: Homeserver
    http: aiohttp.ClientSession
    room_id: str
    puppet: Account
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: list[Accepted] = field(default_factory=list)
    tried: set[tuple[str, int]] = field(default_factory=set)

    async def send_all(self, sender: Account, stream: str, every_seconds: float) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            attempt = 0
            while not await self._sent(sender, stream, number * ATTEMPTS + attempt):
                attempt += 1
                await asyncio.sleep(0.2)
            await asyncio.sleep(every_seconds * random.uniform(0.5, 1.5))

    async def _sent(self, sender: Account, stream: str, name: int) -> bool:
        self.tried.add((stream, name))
        said, path = content(stream, name), f"m.fault/{stream}-{name}"
        if stream.startswith("synapse-load-event"):
            path = f"/rooms/{quote(self.room_id)}/send/{path}"
        else:
            path = f"/sendToDevice/{path}"
            said = {"messages": {self.puppet.user_id: {self.puppet.device_id: said}}}
        headers = {"Authorization": f"Bearer {sender.token}"}
        try:
            async with self.http.put(
                f"{self.of.url}{CLIENT}{path}", json=said, headers=headers
            ) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        if response.status != 200:
            return False
        at = time.monotonic_ns()
        self.accepted.append(Accepted(stream=stream, first=name, last=name, at_ns=at))
        return True


@dataclass(slots=True)
class Appservice:
    """The receiver, with the launch of a part."""

    manners: Path
    child: ChildProcess | None = None

    def start(self) -> None:
        self.child = ChildProcess.start(
            ChildCommand(
                name="appservice",
                arguments=[sys.executable, "-m", "tests.faults.receiver", str(self.manners)],
                log=self.manners.with_suffix(".err"),
                directory=ROOT,
            )
        )

    def kill(self) -> None:
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGKILL)
            self.child.wait()


def play_with_synapse(*, seconds: float, seed: int) -> Row:
    """One run; everything is its own, and gone afterwards."""
    row, chance = Row(scenario=NAME, seed=seed), random.Random(seed)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="appservice-bridge-faults-"))
    load = registered("load", users=["@load_.*"])
    log = directory / "received.log"
    Manners(port=load.port.number, log=str(log)).save(directory / "receiver.json")
    appservice = Appservice(directory / "receiver.json")
    try:
        with (
            postgres_on_disk(track_commit_timestamp="on") as server,
            homeserver(server, [load]) as of,
        ):
            appservice.start()
            asyncio.run(_play(of, appservice, log, row, seconds, chance))
    except Exception as error:
        row.failed = f"{type(error).__name__}: {error}"
    finally:
        if appservice.child is not None and appservice.child.running:
            appservice.kill()
        shutil.rmtree(directory, ignore_errors=True)
    row.seconds = time.monotonic() - began
    return row


async def _play(
    of: Homeserver,
    appservice: Appservice,
    log: Path,
    row: Row,
    seconds: float,
    chance: random.Random,
) -> None:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        client = Client(of=of, http=http)
        people = await client.people("sender", PEOPLE)
        puppet = await client.puppet("load", "load_1")
        room_id = await client.encrypted_room(people[0], [*people[1:], puppet])
        sending = Sending(of, http, room_id, puppet)
        async with asyncio.TaskGroup() as group:
            for number, who in enumerate(people):
                for way in ("event", "message"):
                    stream = f"synapse-load-{way}-{number}"
                    group.create_task(sending.send_all(who, stream, 0.05))
            row.kills = await _kill(of, appservice, seconds, chance)
            sending.stop.set()
        await _drained(sending.accepted, log)
    exempt = Exempt(maybe=frozenset(sending.tried))
    row.verdict = judge(sending.accepted, {"load": read_came(log)}, exempt)


async def _kill(
    of: Homeserver, appservice: Appservice, seconds: float, chance: random.Random
) -> Counter[tuple[str, str]]:
    kills: Counter[tuple[str, str]] = Counter()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(chance.uniform(1, 5))
        what = chance.choice(("synapse", "worker", "worker", "appservice", "appservice"))
        kills[what, "SIGKILL"] += 1
        if what == "appservice":
            appservice.kill()
            await asyncio.sleep(chance.uniform(0, 2))
            appservice.start()
        else:
            await _kill_and_start(of.synapse if what == "synapse" else of.bridge)
    return kills


async def _kill_and_start(part: Part) -> None:
    os.kill(part.child.pid, signal.SIGKILL)
    await part.child.ended()
    await launched(part)


async def _drained(accepted: Sequence[Accepted], log: Path) -> None:
    """Room events that Synapse forgot are found after a while, when it is quiet."""
    wanted = {(one.stream, one.first) for one in accepted}
    deadline = time.monotonic() + 900  # a busy machine takes its time
    while time.monotonic() < deadline:
        came = {(stream, number) for one in read_came(log) for stream, number, _ in one.items}
        if wanted <= came:
            break
        await asyncio.sleep(1)
    await asyncio.sleep(2)  # for the answers
