"""A database whose disk is full."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from appservice_bridge.dev.postgres import EmbeddedPostgres
from tests.faults.killing import moments
from tests.faults.playing import NotRunError
from tests.faults.stage import POSTGRES, Stage

DISK_BYTES: Final = 320 * 1024 * 1024
CHUNK: Final = bytes(1024 * 1024)


@asynccontextmanager
async def small_disk(stage: Stage) -> AsyncIterator[None]:
    """Postgres lives on a file system in memory of its own."""
    disk = stage.directory / "disk"
    disk.mkdir()
    options = f"size={DISK_BYTES},mode=0700"
    mounted = _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk))
    if mounted.returncode:
        raise NotRunError("a file system of its own cannot be mounted here; it takes root")
    try:
        stage.postgres.port.release()
        stage.postgres = EmbeddedPostgres(disk / "postgres", POSTGRES)
        yield
    finally:
        if _run("umount", str(disk)).returncode:
            _run("umount", "-l", str(disk))


def _run(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(arguments, capture_output=True, check=False)


async def fill_disk(stage: Stage, seconds: float) -> None:
    """Full for some seconds, then there is room again; Postgres may end meanwhile."""
    filler = stage.postgres.data_dir.with_name("filler")
    async for _ in moments(stage, seconds, 1.0, 3.0):
        _fill(filler)
        stage.kills["disk", "filled"] += 1
        await asyncio.sleep(stage.chance.uniform(1, 4))
        filler.unlink()
        if not stage.postgres.child.running:
            stage.kills["postgres", "ended by itself"] += 1
            stage.start_postgres()
        stage.count_deaths()


def _fill(filler: Path) -> None:
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(CHUNK)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while os.write(file.fileno(), CHUNK[:512]):
            pass
