"""A database that changes hosts: on an operator's word, and when the primary dies."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from tests.faults.playing import NotRunError
from tests.faults.stage import Stage
from tests.support.patroni import SCOPE, Patroni, missing


@asynccontextmanager
async def patroni(stage: Stage, *, synchronous: bool = True) -> AsyncIterator[None]:
    """The stage's database is a cluster of three; a commit waits for one of the standbys."""
    if lacking := missing():
        raise NotRunError(f"there is no {', '.join(lacking)} here")
    directory = stage.directory / "patroni"
    directory.mkdir()
    with Patroni(directory, synchronous=synchronous).running() as cluster:
        stage.cluster = cluster
        yield


async def fail_over(stage: Stage, seconds: float) -> None:
    """Each way in turn while there is time; the next when the cluster is whole again.

    Raises:
        RuntimeError: a worker has ended, or the primary did not change.
    """
    cluster = stage.cluster
    assert cluster is not None
    ends = time.monotonic() + seconds
    for way in itertools.cycle(_WAYS):
        await asyncio.sleep(stage.chance.uniform(1, 4))
        if time.monotonic() > ends:
            return
        before = await cluster.whole()
        await way(stage, cluster, _primary(before), _next(before))
        after = await cluster.whole()
        if way in _CHANGE_HOSTS and _primary(after) == _primary(before):
            raise RuntimeError(f"{_primary(before)} is primary still, after {way.__name__}")
        if ended := [part.name for part in stage.workers if not part.running]:
            raise RuntimeError(f"{', '.join(ended)} did not survive {way.__name__}")


async def _switch_over(stage: Stage, cluster: Patroni, _primary: str, following: str) -> None:
    await cluster.order("switchover", SCOPE, "--candidate", following)
    stage.kills["patronictl", "switchover"] += 1


async def _order_failover(stage: Stage, cluster: Patroni, _primary: str, following: str) -> None:
    await cluster.order("failover", SCOPE, "--candidate", following)
    stage.kills["patronictl", "failover"] += 1


async def _kill_host(stage: Stage, cluster: Patroni, primary: str, _following: str) -> None:
    """As when a machine dies, and its network a moment earlier.

    What it committed meanwhile no standby has. It comes back when another one is primary.
    """
    node = cluster.nodes[primary]
    node.hold_replication()
    await asyncio.sleep(stage.chance.uniform(0.5, 2))
    node.kill_patroni()
    node.kill_postgres()
    stage.kills["primary and its Patroni", "SIGKILL"] += 1
    await cluster.another(primary)
    node.start()


async def _kill_server(stage: Stage, cluster: Patroni, primary: str, _following: str) -> None:
    """Patroni starts it again, or lets another one be primary."""
    cluster.nodes[primary].kill_postgres()
    stage.kills["primary", "SIGKILL"] += 1
    await asyncio.sleep(stage.chance.uniform(1, 4))


async def _kill_patroni(stage: Stage, cluster: Patroni, primary: str, _following: str) -> None:
    """The primary goes on alone; where Patroni is away for long, another one takes its place."""
    node = cluster.nodes[primary]
    node.kill_patroni()
    stage.kills["Patroni of the primary", "SIGKILL"] += 1
    await asyncio.sleep(stage.chance.uniform(0.5, 3))
    node.start()


_Way = Callable[[Stage, Patroni, str, str], Awaitable[None]]
_CHANGE_HOSTS: Final[tuple[_Way, ...]] = (_switch_over, _order_failover, _kill_host)
_WAYS: Final[tuple[_Way, ...]] = (*_CHANGE_HOSTS, _kill_server, _kill_patroni)


def _primary(roles: dict[str, str]) -> str:
    return next(name for name, role in roles.items() if role == "leader")


def _next(roles: dict[str, str]) -> str:
    """Who may become primary; with a synchronous standby only that one."""
    ranked = sorted(roles, key=lambda name: (roles[name] != "sync_standby", name))
    return next(name for name in ranked if roles[name] != "leader")
