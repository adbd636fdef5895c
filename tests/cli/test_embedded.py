"""`database: embedded`: the worker brings its own Postgres, and commands work beside it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.appservice import appservice
from tests.support.bridge import Files, registration, worker_process
from tests.support.ingesting import ingest_files, message, sender

pytestmark = pytest.mark.timeout(400)  # a dozen processes, one after the other


def embedded_files(directory: Path, url: str) -> Files:
    files = ingest_files(directory, "embedded", [registration("bot", url, users=["@b_.*"])])
    document = yaml.safe_load(files.config.read_text()) | {"data_dir": "state/here"}
    files.config.write_text(yaml.safe_dump(document))
    return files


async def command(files: Files, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appservice_bridge", *arguments, "--config", str(files.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, output.decode()


def servers(files: Files) -> "list[psutil.Process]":
    where = str(files.config.parent / "state" / "here" / "postgres")
    found = psutil.process_iter(["cwd", "name", "status"])
    return [
        one
        for one in found
        if one.info["cwd"] == where and one.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def none_left(files: Files) -> None:
    async with asyncio.timeout(60):
        while servers(files):
            await asyncio.sleep(0.1)


async def test_a_worker_brings_its_own_postgres_and_takes_it_along_when_it_ends(
    tmp_path: Path,
) -> None:
    async with appservice() as bot:
        files = embedded_files(tmp_path, bot.url)
        code, output = await command(files, "run")
        assert code == 1
        assert "migrate" in output
        code, output = await command(files, "migrate")  # nobody runs it: started for the moment
        assert code == 0, output
        assert servers(files) == []
        async with worker_process(files) as one, sender(files.relay_url) as hs:
            assert (await hs.send("1", message(1))).verdicts == ["accepted"]
            await bot.until(lambda: len(bot.to_device) == 1)
            code, output = await command(files, "status", "--json")  # shared with the worker
            assert (code, json.loads(output)["lanes"][0]["delivered"]) == (0, 1)
            code, output = await command(files, "run")
            assert code == 1
            assert "another process runs the Postgres" in output
            assert await one.terminate() == 0
        assert servers(files) == []


async def test_what_was_committed_is_there_after_a_kill_of_worker_and_postgres(
    tmp_path: Path,
) -> None:
    async with appservice() as bot:
        files = embedded_files(tmp_path, bot.url)
        assert (await command(files, "migrate"))[0] == 0
        bot.answer = lambda _: (503, {}, b"")
        async with worker_process(files) as one, sender(files.relay_url) as hs:
            for n in range(20):
                await hs.send(str(n), message(n))
            await one.kill()
            await none_left(files)  # it dies with the worker
            bot.answer = lambda _: (200, {}, b"{}")
            await one.start()
            await bot.until(lambda: len(bot.to_device) == 20)
            postmaster = min(servers(files), key=lambda process: process.create_time())
            os.kill(postmaster.pid, signal.SIGKILL)
            assert one.process is not None
            assert await asyncio.wait_for(one.process.wait(), 60) == 1  # nobody else restarts it
            await one.start()
            await hs.send("end", message(20))
            await bot.until(lambda: len(bot.to_device) == 21)
            assert await one.terminate() == 0
    assert [item["content"]["n"] for item in bot.to_device] == list(range(21))


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    """Ends what a test that failed left running in its own directory."""
    yield
    for process in psutil.process_iter(["cwd"]):
        if (process.info["cwd"] or "").startswith(str(tmp_path)):
            process.kill()
