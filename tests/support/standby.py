"""A second Postgres that follows the first, and takes its place when told to."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg2

from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.postgres_cluster import environment

NAME: Final = "second"


def both_hosts(first: EmbeddedPostgres, second: EmbeddedPostgres) -> str:
    """One DSN that names both; whichever is primary is meant."""
    one, other = first.port.address, second.port.address
    return first.dsn().replace(one, f"{one},{other}") + "&target_session_attrs=primary"


@contextmanager
def following(first: EmbeddedPostgres, directory: Path) -> Iterator[EmbeddedPostgres]:
    """A standby without which the first acknowledges no commit."""
    second = EmbeddedPostgres(directory, binaries=first.binaries)
    _copy(first, second)
    with second:
        _sql(first, f"alter system set synchronous_standby_names = '{NAME}'")
        _sql(first, "select pg_reload_conf()")
        yield second


def promote(server: EmbeddedPostgres) -> None:
    """Make the standby the primary: a new timeline begins."""
    program = server.cluster.program("pg_ctl")
    _run(server, [program, "promote", "-w", "-D", str(server.data_dir)])


def _copy(first: EmbeddedPostgres, second: EmbeddedPostgres) -> None:
    second.data_dir.mkdir(mode=0o700)
    second.cluster.identity.own(second.data_dir)
    second.cluster.password_file.write_text(first.cluster.password_file.read_text())
    second.cluster.password_file.chmod(0o600)
    second.cluster.identity.own(second.cluster.password_file)
    dsn = f"{first.dsn()}&application_name={NAME}"
    copying = [second.cluster.program("pg_basebackup"), "-D", str(second.data_dir)]
    _run(second, [*copying, "-d", dsn, "-R", "-X", "stream", "-c", "fast", "--no-sync"])
    _name_itself(second.data_dir / "postgresql.auto.conf")


def _name_itself(settings: Path) -> None:
    """pg_basebackup writes the connection down under a name of its own."""
    text = re.sub(r"application_name=\S+?(?=[ '])", "", settings.read_text())
    settings.write_text(text + f"\ncluster_name = '{NAME}'\nsynchronous_standby_names = ''\n")


def _run(server: EmbeddedPostgres, command: list[str]) -> None:
    become = server.cluster.identity.become
    subprocess.run(
        command, check=True, capture_output=True, cwd="/", env=environment(), preexec_fn=become
    )


def _sql(server: EmbeddedPostgres, statement: str) -> None:
    conn = psycopg2.connect(server.dsn())
    conn.autocommit = True
    try:
        conn.cursor().execute(statement)
    finally:
        conn.close()
