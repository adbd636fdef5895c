"""What may happen, one after the other; see each scenario's `says`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from tests.faults.cutting import cut_connections, proxies
from tests.faults.failing_over import fail_over, patroni
from tests.faults.filling import fill_disk, small_disk
from tests.faults.judging import Exempt
from tests.faults.killing import (
    kill_appservices,
    kill_at_commits,
    kill_postgres,
    kill_workers,
    stop_backends,
    stop_workers,
)
from tests.faults.misbehaving import EXEMPT, HOSTILE, misbehave, refuse_items
from tests.faults.playing import Scenario
from tests.faults.repeating import repeat_requests
from tests.faults.shifting import clock_of_postgres, clocks_of_workers, jump_postgres, jump_workers
from tests.faults.stage import DYING, Layout

_DIES: Final = {f"as{n}": {"dies": 0.1, "refuses": 0.1, "delay_seconds": 0.02} for n in range(3)}

# A room event sends the batch that it is in the long way: between few of them most go straight.
_STRAIGHT: Final = Layout(kind="synapse", relays_seldom=20)
_MESSAGES: Final = "the same, where triggers on Synapse's tables capture, mostly messages"

STATEMENTS: Final = ("routing.intake._straight", "delivery.group_commit._commit")

_ALL: Final = (
    Scenario(
        name="workers",
        says="kill -9 of four workers, one every 0.3 to 1 s",
        happens=kill_workers,
        layout=Layout(workers=4),
        seconds=300,
        short_seconds=8,
    ),
    Scenario(
        name="workers-synapse",
        says=_MESSAGES,
        happens=kill_workers,
        layout=replace(_STRAIGHT, workers=4),
        seconds=150,
        short_seconds=8,
    ),
    Scenario(
        name="commits",
        says="a worker kills itself right before and right after each kind of commit",
        happens=kill_at_commits,
        layout=Layout(workers=4, program=DYING),
        seconds=120,
        short_seconds=8,
    ),
    Scenario(
        name="commits-synapse",
        says=_MESSAGES,
        happens=kill_at_commits,
        layout=replace(_STRAIGHT, workers=4, program=DYING),
        seconds=120,
        short_seconds=0,
    ),
    Scenario(
        name="statements-synapse",
        says="the same at the two commits that are single statements: a batch's way from the log"
        " into the outboxes, and the acks and seals of all lanes that are ready",
        happens=partial(kill_at_commits, only=STATEMENTS),
        layout=replace(_STRAIGHT, workers=4, program=DYING),
        seconds=60,
        short_seconds=8,
    ),
    Scenario(
        name="postgres",
        says="kill -9 of the Postgres server, or of one of its sessions",
        happens=kill_postgres,
        seconds=100,
        short_seconds=8,
    ),
    Scenario(
        name="postgres-synapse",
        says="the same, where triggers on Synapse's tables capture",
        happens=kill_postgres,
        layout=Layout(kind="synapse"),
        seconds=60,
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
        seconds=80,
        short_seconds=13,
    ),
    Scenario(
        name="frozen-sessions",
        says="SIGSTOP of sessions of Postgres for up to 3 s",
        happens=stop_backends,
        seconds=40,
        short_seconds=0,
    ),
    Scenario(
        name="repeats",
        says="the homeserver sends twice at once, once more later, and after kills of workers",
        happens=repeat_requests,
        layout=Layout(workers=2, repeats=0.6),
        seconds=40,
        short_seconds=8,
    ),
    Scenario(
        name="cuts",
        says="connections to Postgres (also at a commit, before or after it) and to appservices"
        " are reset, closed, half closed, and stalled for up to 12 s",
        happens=cut_connections,
        around=proxies,
        seconds=90,
        short_seconds=10,
    ),
    Scenario(
        name="cuts-synapse",
        says=_MESSAGES,
        happens=cut_connections,
        around=proxies,
        layout=_STRAIGHT,
        seconds=45,
        short_seconds=0,
    ),
    Scenario(
        name="disk-full",
        says="the disk of Postgres is full for 1 to 4 s, again and again",
        happens=fill_disk,
        around=small_disk,
        layout=Layout(workers=2, streams=1),
        seconds=45,
        short_seconds=8,
    ),
    Scenario(
        name="hostile",
        says="two healthy appservices beside one each that is slow, hangs, floods with a body or"
        " a head, answers garbage, answers before it reads, resets after its 200, lies about the"
        " length, refuses with a Retry-After of a day; at the end they take what is left",
        happens=misbehave,
        layout=Layout(
            workers=2,
            appservices=2 + len(HOSTILE),
            streams=1,
            every_seconds=1.5,
            hostile=HOSTILE,
            delivery={"timeout_seconds": 3},
        ),
        exempt=EXEMPT,
        seconds=45,
        short_seconds=8,
    ),
    Scenario(
        name="patroni",
        says="a Patroni cluster of three with a synchronous standby: switchover and failover by"
        " patronictl; kill -9 of the primary and its Patroni at once, and of each alone; no worker"
        " may end",
        happens=fail_over,
        around=patroni,
        layout=Layout(kind="synapse", workers=2, appservices=2, streams=1, batch=100),
        seconds=330,
        short_seconds=0,
    ),
    Scenario(
        name="clocks-of-workers",
        says="the clocks of workers jump by up to two hours, back and forth",
        happens=jump_workers,
        around=clocks_of_workers,
        layout=Layout(workers=2),
        seconds=40,
        short_seconds=0,
    ),
    Scenario(
        name="clock-of-postgres",
        says="the clock of Postgres jumps by up to two hours, back and forth",
        happens=jump_postgres,
        around=clock_of_postgres,
        layout=Layout(workers=2),
        seconds=40,
        short_seconds=0,
    ),
    Scenario(
        name="refusals",
        says="poison (400) is buried, what is too large (413) is split, the rest comes in order",
        happens=refuse_items,
        layout=Layout(
            workers=2,
            appservices=2,
            streams=1,
            batch=25,
            poison_every=100,
            manners={one: {"poison": True, "most_items": 200} for one in ("as0", "as1")},
        ),
        exempt=Exempt(split=frozenset({"as0", "as1"}), poison_every=100),
        seconds=40,
        short_seconds=0,
        # What a kill left in doubt is not split before a quarter of an hour has passed.
        quiet_seconds=1200,
        drain_seconds=3000,
    ),
)

SCENARIOS: Final[Mapping[str, Scenario]] = {one.name: one for one in _ALL}
