"""What may happen, one after the other; see each scenario's `says`."""

from collections.abc import Mapping
from typing import Final

from tests.faults.killing import (
    kill_appservices,
    kill_at_commits,
    kill_postgres,
    kill_workers,
    stop_backends,
    stop_workers,
)
from tests.faults.playing import Scenario
from tests.faults.repeating import repeat_requests
from tests.faults.stage import DYING, Layout

_DIES: Final = {f"as{n}": {"dies": 0.1, "refuses": 0.1, "delay_seconds": 0.02} for n in range(3)}

_ALL: Final = (
    Scenario(
        name="workers",
        says="kill -9 of four workers, one every 0.3 to 1 s",
        happens=kill_workers,
        layout=Layout(workers=4),
        seconds=420,
        short_seconds=8,
    ),
    Scenario(
        name="workers-synapse",
        says="the same, where triggers on Synapse's tables capture",
        happens=kill_workers,
        layout=Layout(kind="synapse", workers=4),
        seconds=180,
        short_seconds=8,
    ),
    Scenario(
        name="commits",
        says="a worker kills itself right before and right after each kind of commit",
        happens=kill_at_commits,
        layout=Layout(workers=4, program=DYING),
        seconds=180,
        short_seconds=12,
    ),
    Scenario(
        name="commits-synapse",
        says="the same, where triggers on Synapse's tables capture",
        happens=kill_at_commits,
        layout=Layout(kind="synapse", workers=4, program=DYING),
        seconds=180,
        short_seconds=0,
    ),
    Scenario(
        name="postgres",
        says="kill -9 of the Postgres server, or of one of its sessions",
        happens=kill_postgres,
        seconds=150,
        short_seconds=8,
    ),
    Scenario(
        name="postgres-synapse",
        says="the same, where triggers on Synapse's tables capture",
        happens=kill_postgres,
        layout=Layout(kind="synapse"),
        seconds=90,
        short_seconds=0,
    ),
    Scenario(
        name="appservices",
        says="kill -9 of appservices, and they kill themselves between working and answering",
        happens=kill_appservices,
        layout=Layout(workers=2, manners=_DIES),
        seconds=120,
        short_seconds=8,
    ),
    Scenario(
        name="frozen-workers",
        says="SIGSTOP of workers for longer than a lease, then SIGCONT",
        happens=stop_workers,
        layout=Layout(workers=4, manners={f"as{n}": {"delay_seconds": 0.05} for n in range(3)}),
        seconds=100,
        short_seconds=14,
    ),
    Scenario(
        name="frozen-sessions",
        says="SIGSTOP of sessions of Postgres for up to 3 s",
        happens=stop_backends,
        seconds=60,
        short_seconds=0,
    ),
    Scenario(
        name="repeats",
        says="the homeserver sends twice at once, once more later, and after kills of workers",
        happens=repeat_requests,
        layout=Layout(workers=2, repeats=0.6),
        seconds=60,
        short_seconds=8,
    ),
)

SCENARIOS: Final[Mapping[str, Scenario]] = {one.name: one for one in _ALL}
