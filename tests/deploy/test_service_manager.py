"""A worker under a service manager: a real datagram socket hears how far it is."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appservice_bridge.cli.service_manager import ServiceManager
from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, write_files
from tests.support.reloading import change
from tests.support.service_manager import Manager, manager


@asynccontextmanager
async def started(files: Files, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker with these variables; killed when the context ends, if it still runs."""
    with files.config.with_suffix(".log").open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appservice_bridge", "run", "--config", str(files.config)),
            env={**os.environ, **variables},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.usefixtures("pg")
async def test_it_says_when_it_serves_when_it_reads_again_and_when_it_ends(
    database: str, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    async with appservice() as bot, manager(address) as systemd:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with started(files, NOTIFY_SOCKET=address) as process:
            assert (await systemd.hears(READY="1"))["STATUS"] == "serves 1 registration"
            asked_at = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            process.send_signal(signal.SIGHUP)
            while int((await systemd.hears(RELOADING="1"))["MONOTONIC_USEC"]) < asked_at:
                pass  # it looks at its files by itself, too
            assert (await systemd.hears(READY="1"))["STATUS"] == "serves 1 registration"
            process.terminate()
            await systemd.hears(STOPPING="1")
            assert await process.wait() == 0


@pytest.mark.usefixtures("pg")
async def test_a_refused_configuration_is_in_the_status_and_the_worker_stays_ready(
    database: str, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    async with appservice() as bot, manager(address) as systemd:
        files = write_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with started(files, NOTIFY_SOCKET=address):
            await systemd.hears(READY="1")
            change(files, no_such_key="a secret")
            await systemd.hears(RELOADING="1")
            while "refused" not in (status := (await systemd.hears(READY="1"))["STATUS"]):
                pass  # it may have looked before
    assert "secret" not in status


@pytest.mark.usefixtures("pg")
async def test_the_watchdog_hears_a_beat_until_the_worker_is_frozen(
    database: str, tmp_path: Path
) -> None:
    address = f"@appservice-bridge-{os.getpid()}-{database.rpartition('/')[2]}"
    async with manager(address) as systemd, appservice() as slow:
        files = write_files(tmp_path, database, [registration("bot", slow.url, users=["@b_.*"])])
        variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        async with started(files, **variables) as process:
            for _ in range(5):
                await systemd.hears(WATCHDOG="1")
            process.send_signal(signal.SIGSTOP)
            systemd.heard.clear()
            await nothing_comes(systemd)
            process.send_signal(signal.SIGCONT)
            await systemd.hears(WATCHDOG="1")


async def nothing_comes(systemd: Manager) -> None:
    """What was sent before it froze may still come; then there is silence, ten beats long."""
    while True:
        systemd.came.clear()
        try:
            await asyncio.wait_for(systemd.came.wait(), 1.0)
        except TimeoutError:
            return


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "1000"},
    ],
)
def test_without_a_socket_that_it_can_speak_to_nobody_listens(
    environment: Mapping[str, str],
) -> None:
    service = ServiceManager.named_by(environment)
    assert (service.address, service.beat_seconds) == (None, None)
    service.ready("to nobody")


@pytest.mark.parametrize(
    ("watchdog", "seconds"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_it_beats_twice_within_the_time_that_is_meant_for_this_process(
    watchdog: Mapping[str, str], seconds: float | None
) -> None:
    service = ServiceManager.named_by({"NOTIFY_SOCKET": "/nowhere"} | dict(watchdog))
    assert service.beat_seconds == seconds


def test_a_manager_that_is_gone_or_does_not_read_fails_nothing(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "nobody")).ready("to nobody")
    address = str(tmp_path / "deaf")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
            filling.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    filling.sendto(b"full", address)
        ServiceManager(address).ready("to the deaf")
