"""What the fixtures of the pytest plugin cost: once for their start, and in each test.

    python -m benchmarks.fixtures [--tests 20] [--only message]

A pytest of its own, with the plugin, runs a test again and again: an appservice whose handler is in
the test's process and one user with keys, a person with an encrypted client, and a message there
and back (to-device, as room keys come: the person's to the appservice, and the handler's answer).
In another the two are made at once. A third shows what an encrypted room costs, in which the person
says something and hears the answer. A test is its setup, call and teardown by the clock; what of it
the fixtures take is all but the messages, which are the test's own. CPU is of the stack's processes
and of pytest itself. The first of each kind is left out: it finds nothing warm.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import pytest

PLUGIN: Final = "appservice_bridge.testing.plugin"
WORDS: Final = {"synapse": "synapse.app.homeserver", "bridge": "appservice_bridge"}
KINDS: Final = ("message", "both", "room")
PARTS: Final = ("tests", "synapse", "bridge", "postgres")
GOALS: Final = {"start": 15.0, "fixtures": 0.2}
OWN: Final = ("message", "its answer", "room", "join", "say", "hear")
TESTS: Final = '''
import asyncio
import json
import time
from contextlib import contextmanager

import pytest


@pytest.fixture
def piece(record_property):
    @contextmanager
    def measured(name):
        began = time.perf_counter()
        yield
        record_property(name, time.perf_counter() - began)
    return measured


def test_start(bridge):
    pass


@pytest.mark.parametrize("number", range(TESTS))
async def test_message(number, piece, appservice_factory, matrix_user_factory):
    """An appservice, a person, a message there and back."""
    async def handler(transaction):
        for message in transaction.to_device:
            answer = {message["sender"]: {"*": {"answers": message["content"]["n"]}}}
            await puppet.send_to_device("m.test", answer)

    with piece("appservice"):
        appservice = appservice_factory(handler)
        puppet = await appservice.puppet("one")
    with piece("person"):
        alice = await matrix_user_factory("alice")
    with piece("message"):
        await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {"n": number})
        await appservice.expect_to_device(type="m.test", sender=alice.user_id)
    with piece("its answer"):
        answer = await alice.call("GET", "/sync?timeout=10000&set_presence=offline")
        assert answer["to_device"]["events"][0]["content"] == {"answers": number}


@pytest.mark.parametrize("number", range(TESTS))
async def test_both(number, piece, appservice_factory, matrix_user_factory):
    """An appservice and a person made at once, and a message."""
    with piece("appservice and person"):
        appservice = appservice_factory(lambda _: asyncio.sleep(0))
        puppet, alice = await asyncio.gather(appservice.puppet("one"), matrix_user_factory("alice"))
    with piece("message"):
        await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {"n": number})
        await appservice.expect_to_device(type="m.test", sender=alice.user_id)


@pytest.mark.parametrize("number", range(TESTS))
async def test_room(number, piece, appservice_factory, matrix_user_factory):
    """An encrypted room, a message and its answer."""
    async def handler(transaction):
        for message in transaction.to_device:
            puppet.open(message)
        for event in transaction.events:
            if event["type"] == "m.room.encrypted" and event["sender"] == alice.user_id:
                await puppet.say(room_id, puppet.read(event)["content"]["body"] + " yourself")

    with piece("appservice"):
        appservice = appservice_factory(handler)
        puppet = await appservice.puppet("one")
    with piece("person"):
        alice = await matrix_user_factory("alice")
    with piece("room"):
        room_id = await alice.make_encrypted_room(puppet.user_id)
    with piece("join"):
        await puppet.join(room_id)
        await alice.see_join(room_id, puppet.user_id)
    with piece("say"):
        await alice.say(room_id, "hello")
    with piece("hear"):
        await alice.hear(room_id, puppet.user_id, "hello yourself")


def test_end(bridge):
    """What ends the session is not counted to the test before."""
'''
CONFIG: Final = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
appservice_bridge_synapse_python = {python}
appservice_bridge_appservices = {appservices}
"""


@dataclass(slots=True)
class Recorder:
    """A pytest plugin that takes down what each test took.

    Attributes:
        wall: seconds by kind of test (what stands behind `test_`).
        cpu: the same by kind and part.
        pieces: seconds by kind and piece.
    """

    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    pieces: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: bool = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, Any, Any]:
        kind = item.originalname.removeprefix("test_")
        busy, began = busy_seconds(), time.perf_counter()
        done = yield
        self.wall[kind].append(time.perf_counter() - began)
        for part, seconds in busy_seconds().items():
            self.cpu[kind, part].append(seconds - busy[part])
        for name, value in item.user_properties:
            assert isinstance(value, float)
            self.pieces[kind, name].append(value)
        return done

    def fixtures(self, kind: str) -> list[float]:
        """Seconds of each test without what it does with what it was given."""
        own = [self.pieces[kind, name] for name in OWN if (kind, name) in self.pieces]
        return [whole - sum(parts) for whole, *parts in zip(self.wall[kind], *own, strict=True)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed


def busy_seconds() -> dict[str, float]:
    """CPU so far of this process and of all below it that live, by what they are."""
    ours = psutil.Process()
    busy = dict.fromkeys(PARTS, 0.0)
    for process in (ours, *ours.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            part = "tests" if process == ours else _part(process.cmdline())
            busy[part] += times.user + times.system
    return busy


def _part(command: list[str]) -> str:
    line = " ".join(command)
    return next((part for part, word in WORDS.items() if word in line), "postgres")


def told(name: str, seconds: list[float]) -> str:
    ms = [1000 * one for one in seconds]
    return (
        f"{name:<22} median {statistics.median(ms):6.0f}  min {min(ms):6.0f}  max {max(ms):6.0f} ms"
    )


def main(tests: int, kinds: Sequence[str]) -> int:
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "test_cost.py").write_text(TESTS.replace("TESTS", str(tests + 1)))
        config = CONFIG.format(python=sys.executable, appservices=len(kinds) * (tests + 1))
        (directory / "pytest.ini").write_text(config)
        arguments = ["-p", PLUGIN, "-p", "no:cacheprovider", "-q", "--no-header", str(directory)]
        arguments += ["-k", " or ".join(("test_start", "test_end", *kinds))]
        code = pytest.main([*arguments, f"--basetemp={directory / 'base'}"], plugins=[recorder])
    if code or recorder.failed:
        return 1
    report(recorder, tests, kinds)
    return 0


def report(recorder: Recorder, tests: int, kinds: Sequence[str]) -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}, {tests} tests of a kind")
    start = recorder.wall["start"][0]
    busy = sum(recorder.cpu["start", part][0] for part in PARTS)
    print(f"start {start:.1f} s ({busy:.1f} s of CPU); wanted under {GOALS['start']:g} s")
    for kind in kinds:
        print(told(kind, recorder.wall[kind][1:]))
        print(told("  fixtures", recorder.fixtures(kind)[1:]))
        for part in PARTS:
            seconds = recorder.cpu[kind, part][1:]
            print(f"  CPU of {part:<13} mean   {1000 * statistics.mean(seconds):6.0f} ms")
        for (of, name), seconds in recorder.pieces.items():
            if of == kind:
                print(told(f"  {name}", seconds[1:]))
    print(f"wanted: fixtures under {1000 * GOALS['fixtures']:g} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--only", choices=KINDS)
    given = parser.parse_args()
    sys.exit(main(given.tests, (given.only,) if given.only else KINDS))
