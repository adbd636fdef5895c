"""Which of the hosts that a DSN names is spoken to: each is given its own time to answer."""

import socket
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

CONNECT_SECONDS: Final = 10.0  # for all hosts together
UNANSWERED_MS: Final = 15_000


class Hosts:
    """The hosts of a DSN, the one that served last before the others.

    asyncpg has one time for all hosts: the first, when it swallows packets as a machine without
    power does, would use it up whenever a connection is made.
    """

    def __init__(self, dsn: str) -> None:
        self._dsns = one_per_host(dsn)

    async def connect(self, *_dsn: str, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection to the first host that serves; options are asyncpg's.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError:
                no host serves; this is what the last one said.
        """
        *others, last = self._dsns  # as they are now: another connection may change their order
        timeout = CONNECT_SECONDS / (len(others) + 1)
        for dsn in others:
            try:
                return self._serves(dsn, await asyncpg.connect(dsn, timeout=timeout, **options))
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError):
                continue
        return self._serves(last, await asyncpg.connect(last, timeout=timeout, **options))

    def _serves(
        self, dsn: str, conn: "asyncpg.Connection[asyncpg.Record]"
    ) -> "asyncpg.Connection[asyncpg.Record]":
        self._dsns = [dsn, *(one for one in self._dsns if one != dsn)]
        _notice_silence(conn)
        return conn


def one_per_host(dsn: str) -> list[str]:
    """The same DSN for each of its hosts alone."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]


def _notice_silence(conn: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A server that went without a word is noticed by the kernel, long before a query's limit."""
    transport = conn._transport  # type: ignore[attr-defined] # noqa: SLF001 - there is no option
    found = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    if found is not None and option is not None and found.family != socket.AF_UNIX:
        found.setsockopt(socket.IPPROTO_TCP, option, UNANSWERED_MS)
