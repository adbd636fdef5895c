"""How long a to-device message takes, and how many get lost: native Synapse and the bridge.

    python -m benchmarks.synapse_latency [--windows 7] [--seconds 20]

One run measures both: two Synapses on one Postgres (fsync on), one that delivers by itself with
its experimental flags on, one with the bridge. Only one is awake at a time, the other is stopped
(SIGSTOP). Sender, worker and receiver are three processes; times are CLOCK_MONOTONIC. The commit
is Postgres' own record of it (track_commit_timestamp), put on the same clock at each window.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.homeserver.receiver import Receiver, receiver
from tests.support.homeserver import (
    Account,
    Client,
    Homeserver,
    Registered,
    homeserver,
    postgres_on_disk,
    registered,
)
from tests.support.load import Plan, Sent, Verdict, arrivals_ns, judge

RATE: Final = 5.0
USERS: Final = 40
LOAD_MESSAGES: Final = 600
LOAD_SENDERS: Final = (1, 2, 8, 24)
APPSERVICE: Final = "load"

COMMITS: Final = """
select (message_json::json->'content'->>'number')::int,
       (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
  from device_inbox where message_json::json->'content'->>'run' = %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two that are compared."""

    name: str
    of: Homeserver
    bridged: bool
    receiver: Receiver
    people: Sequence[Account]
    puppets: Sequence[Account]

    def plan(self, run: str, *, senders: int, messages: int, every_seconds: float = 0.0) -> Plan:
        return Plan(
            run=run,
            url=self.of.url,
            senders=self.people[:senders],
            recipients=self.puppets,
            messages=messages,
            every_seconds=every_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Latencies of the messages that arrived, in milliseconds, ascending."""

    sent: int
    lost: int
    from_request: list[float]
    from_commit: list[float]
    from_answer: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a closed loop."""

    accepted_per_second: float
    verdict: Verdict


async def send_elsewhere(plan: Plan, file: Path) -> list[Sent]:
    """Send in a process of its own."""
    plan.save(file)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.load", str(file)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        printed, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise RuntimeError(f"the sender ended with {child.returncode}")
    return [Sent(**raw) for raw in json.loads(printed)]


async def measure(side: Side, run: str, *, messages: int, rate: float = RATE) -> Window:
    """Send at a steady rate from one sender, and see how long each message takes."""
    plan = side.plan(run, senders=1, messages=messages, every_seconds=1 / rate)
    sent = await send_elsewhere(plan, side.of.directory / "plan.json")
    await side.receiver.until_quiet(run, messages, within=30)
    came = arrivals_ns(run, side.receiver.received())
    committed = commits_ns(side.of, run)
    arrived = [each for each in sent if each.name in came]
    return Window(
        sent=len(sent),
        lost=len(sent) - len(arrived),
        from_request=_ms([came[each.name] - each.began_ns for each in arrived]),
        from_commit=_ms([came[each.name] - committed[each.number] for each in arrived]),
        from_answer=_ms([came[each.name] - each.answered_ns for each in arrived]),
    )


def commits_ns(of: Homeserver, run: str) -> Mapping[int, int]:
    """When the homeserver committed each message, on the monotonic clock."""
    ahead_ns = time.time_ns() - time.monotonic_ns()
    return {number: micros * 1000 - ahead_ns for number, micros in of.rows(COMMITS, run)}


def _ms(nanoseconds: Sequence[int]) -> list[float]:
    return sorted(each / 1e6 for each in nanoseconds)


async def load(side: Side, run: str, *, senders: int, messages: int) -> Load:
    """Send as fast as so many senders can, and count what is missing."""
    plan = side.plan(run, senders=senders, messages=messages)
    sent = await send_elsewhere(plan, side.of.directory / "plan.json")
    await side.receiver.until_quiet(run, messages, within=120, quiet=5)
    seconds = (max(each.answered_ns for each in sent) - min(each.began_ns for each in sent)) / 1e9
    return Load(
        accepted_per_second=len(sent) / seconds,
        verdict=judge(run, sent, side.receiver.received()),
    )


@asynccontextmanager
async def awake(side: Side) -> AsyncIterator[None]:
    """Let one side run, after some messages to warm it up; the other is frozen meanwhile."""
    os.kill(side.of.synapse.child.pid, signal.SIGCONT)
    try:
        if side.bridged:
            await side.of.start_bridge()
        await asyncio.sleep(1)
        await measure(side, f"warm {time.monotonic_ns()}", messages=20, rate=10)
        yield
    finally:
        if side.bridged:
            side.of.bridge.stop()
        os.kill(side.of.synapse.child.pid, signal.SIGSTOP)


async def prepared(name: str, of: Homeserver, seen: Receiver, *, bridged: bool) -> Side:
    """Register everyone, and wait until Synapse has done what it does after its first start."""
    async with aiohttp.ClientSession() as http:
        client = Client(of=of, http=http)
        people = await client.people("sender", max(LOAD_SENDERS))
        puppets = await client.puppets(APPSERVICE, "load_", USERS)
    async with asyncio.timeout(180):
        while of.rows("select 1 from background_updates limit 1"):  # noqa: ASYNC110 - no event
            await asyncio.sleep(1)
    return Side(name=name, of=of, bridged=bridged, receiver=seen, people=people, puppets=puppets)


async def compare(native: Homeserver, bridged: Homeserver, options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        sides = []
        for name, of in (("native", native), ("bridge", bridged)):
            port = of.appservices[APPSERVICE].port.number
            seen = await stack.enter_async_context(receiver(port, of.directory / "received"))
            sides.append(await prepared(name, of, seen, bridged=of is bridged))
        for side in sides:  # both are asleep until it is their turn
            if side.bridged:
                side.of.bridge.stop()
            os.kill(side.of.synapse.child.pid, signal.SIGSTOP)
        try:
            windows = await all_windows(sides, options)
            loads = {} if options.no_load else await all_loads(sides)
        finally:
            for side in sides:
                os.kill(side.of.synapse.child.pid, signal.SIGCONT)  # so that it can be ended
    report(windows, loads)
    if options.json:
        document = {
            "windows": {name: [asdict(each) for each in of] for name, of in windows.items()},
            "loads": {f"{name} {senders}": asdict(of) for (name, senders), of in loads.items()},
        }
        options.json.write_text(json.dumps(document))


async def all_windows(
    sides: Sequence[Side], options: argparse.Namespace
) -> dict[str, list[Window]]:
    """Alternate, and change who is first, so that a drift of the machine hits both."""
    windows: dict[str, list[Window]] = {side.name: [] for side in sides}
    for number in range(options.windows):
        for side in sides if number % 2 == 0 else reversed(sides):
            async with awake(side):
                run = f"window {number}"
                messages = round(options.seconds * RATE)
                windows[side.name].append(await measure(side, run, messages=messages))
            _progress(side, number, windows[side.name][-1])
    return windows


def _progress(side: Side, number: int, of: Window) -> None:
    p50 = statistics.median(of.from_request)
    print(f"  window {number} {side.name}: p50 {p50:.1f} ms, lost {of.lost}", file=sys.stderr)


async def all_loads(sides: Sequence[Side]) -> dict[tuple[str, int], Load]:
    found = {}
    for senders in LOAD_SENDERS:
        for side in sides:
            async with awake(side):
                found[side.name, senders] = await load(
                    side, f"load {senders}", senders=senders, messages=LOAD_MESSAGES
                )
    return found


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The nearest rank."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]


def report(windows: Mapping[str, Sequence[Window]], loads: Mapping[tuple[str, int], Load]) -> None:
    """Print the tables."""
    one = next(iter(windows.values()))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"Python {platform.python_version()}")  # fmt: skip
    print(f"{len(one)} alternating windows of {one[0].sent} messages at {RATE:g}/s; ms; "
          "median of the windows [lowest-highest]")  # fmt: skip
    print(f"{'':26}{'native':>24}{'bridge':>24}{'ratio':>8}")
    for name in ("from_request", "from_commit", "from_answer"):
        for percent in (50, 99):
            print(_line(name, percent, windows))
    print("lost: " + ", ".join(f"{n} {sum(w.lost for w in of)}" for n, of in windows.items()))
    if loads:
        print(f"\nclosed loop, {LOAD_MESSAGES} messages to {USERS} users: lost / accepted per s")
    for senders in LOAD_SENDERS if loads else ():
        cells = [_cell(loads[name, senders]) for name in windows]
        print(f"{senders:>4} senders" + "".join(f"{cell:>24}" for cell in cells))


def _line(name: str, percent: int, windows: Mapping[str, Sequence[Window]]) -> str:
    medians, cells = [], []
    for of in windows.values():
        figures = sorted(percentile(getattr(window, name), percent) for window in of)
        medians.append(statistics.median(figures))
        cells.append(f"{medians[-1]:.1f} [{figures[0]:.1f}-{figures[-1]:.1f}]")
    label = f"{name.replace('_', ' ')}, p{percent}"
    ratio = f"{medians[1] / medians[0]:.2f}" if min(medians) > 0 else "-"
    return f"{label:<26}" + "".join(f"{cell:>24}" for cell in cells) + f"{ratio:>8}"


def _cell(of: Load) -> str:
    wrong = len(of.verdict.doubled) + len(of.verdict.overtaken)
    note = f" ({wrong} doubled or overtaken)" if wrong else ""
    return f"{len(of.verdict.lost)} / {of.accepted_per_second:.0f}{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--no-load", action="store_true", help="Only the latency.")
    parser.add_argument("--json", type=Path, help="Also write every latency to this file.")
    options = parser.parse_args()
    keep = {"appservices": {APPSERVICE: {"delete_delivered": "off"}}}
    with (
        postgres_on_disk(track_commit_timestamp="on") as server,
        homeserver(server, [_appservice()], name="native", native=True) as native,
        homeserver(server, [_appservice()], name="bridged", config=keep) as bridged,
    ):
        asyncio.run(compare(native, bridged, options))


def _appservice() -> Registered:
    return registered(APPSERVICE, users=["@load_.*"])


if __name__ == "__main__":
    main()
