"""`status`: every lane at one look."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import finished, loaded, transports, with_connection
from appservice_bridge.cli.shown import as_json, moment, print_table, table
from appservice_bridge.config.loading import Loaded
from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.capture import CaptureMode
from appservice_bridge.sources.drift_guard import EVERY_SECONDS
from appservice_bridge.storage import capture_state, migrations, overview, synapse, watch
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.overview import LaneView

JSON_VERSION: Final = 1
LONG_AGO_SECONDS: Final = 3 * EVERY_SECONDS  # a worker looks more often
_MIB: Final = 2**20
_HEADINGS: Final = (
    "appservice",
    "state",
    "waiting",
    "device updates",
    "oldest",
    "delivered",
    "dead letters",
    "last answer",
)
_NUMBERS: Final = ("waiting", "device updates", "oldest", "delivered", "dead letters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What there is to show.

    Attributes:
        installed: whether the capture is; None where none is wanted.
        served: whether some worker is alive.
        keys_only: the budget is used up.
    """

    lanes: list[LaneView]
    captured: int
    wanted: CaptureMode
    capture: CaptureState
    installed: bool | None
    served: bool
    used_bytes: int
    keys_only: bool
    budget: Budget


def status(
    config: ConfigOption,
    json: Annotated[
        bool, typer.Option("--json", help="One object with version, capture, budget and lanes.")
    ] = False,
) -> None:
    """Show lanes, backlog, oldest age, last error and budget; works with no worker running."""
    of = loaded(config)

    async def work(conn: Connection) -> Seen:
        return await _look(conn, of)

    seen = finished(with_connection(of, work))
    if json:
        print(_as_json(seen))
        return
    if seen.installed is False:
        typer.echo("the capture is not installed: run `appservice-bridge install`", err=True)
    _show_capture(seen)
    if seen.lanes or seen.capture.looked_at is not None:
        print_table(table(_HEADINGS, map(_row, seen.lanes), numbers=_NUMBERS))
    else:
        configured = ", ".join(one.id for one in of.registrations)
        print(f"no worker has run yet; the config names {configured or 'no appservice'}")
    if seen.captured:
        print(f"{seen.captured} facts are captured and not routed yet")
    print(_budget_line(seen))


async def _look(conn: Connection, of: Loaded) -> Seen:
    await migrations.require_current(conn)
    wanted = CaptureMode(of.config.homeserver.capture)
    if wanted is not CaptureMode.NONE:
        await synapse.require_synapse(conn)
    return Seen(
        lanes=await overview.lanes(conn, transports(of)),
        captured=await overview.captured(conn),
        wanted=wanted,
        capture=await capture_state.read(conn),
        served=any(worker.alive for worker in await overview.workers(conn)),
        installed=await synapse.is_installed(conn) if wanted is CaptureMode.TRIGGERS else None,
        used_bytes=(await watch.measure(conn)).used_bytes,
        keys_only=(await watch.read(conn)).keys_only,
        budget=of.config.budget.limits(),
    )


def _show_capture(seen: Seen) -> None:
    """Nothing of a capture that is as it was asked for; of a look long ago its time as well."""
    state = seen.capture
    if state.looked_at is None:
        return
    said = list(_by_mend(state.problems))
    if state.mode is not seen.wanted:
        since = state.since.isoformat(sep=" ", timespec="seconds")
        said.append(f"{state.mode} instead of {seen.wanted} since {since}")
    for one in said:
        typer.echo(f"capture{_of_when(state.looked_at, served=seen.served)}: {one}", err=True)


def _of_when(looked_at: datetime, *, served: bool) -> str:
    """Empty where a worker looked just now."""
    if not served:
        return f" as of {moment(looked_at)} UTC, by a worker that has ended"
    if (datetime.now(UTC) - looked_at).total_seconds() > LONG_AGO_SECONDS:
        return f" as of {moment(looked_at)} UTC, nobody looked since"
    return ""


def _by_mend(problems: Sequence[str]) -> Iterator[str]:
    """One line for all that one and the same thing mends."""
    whats: dict[str, list[str]] = {}
    for problem in problems:
        what, _, mend = problem.rpartition(": ")
        whats.setdefault(mend, []).append(what)
    for mend, (first, *others) in whats.items():
        more = f" and {len(others)} more" if others else ""
        yield f"{first}{more}: {mend}"


def _budget_line(seen: Seen) -> str:
    part = seen.used_bytes / seen.budget.total_bytes
    used, total = seen.used_bytes / _MIB, seen.budget.total_bytes / _MIB
    line = f"budget: {used:,.1f} of {total:,.1f} MiB used ({part:.0%})"
    return line + ("; used up, nothing but keys is stored" if seen.keys_only else "")


def _as_json(seen: Seen) -> str:
    state = seen.capture
    return as_json(
        JSON_VERSION,
        capture_installed=seen.installed,
        capture={
            "mode": state.mode,
            "since": state.since,
            "looked_at": state.looked_at,
            "problems": state.problems,
            "left_out": sorted(state.unreadable),
        },
        captured=seen.captured,
        budget={
            "used_bytes": seen.used_bytes,
            "limit_bytes": seen.budget.total_bytes,
            "appservice_limit_bytes": seen.budget.appservice_bytes,
            "used_up": seen.keys_only,
        },
        lanes=[{"state": lane.state} | dataclasses.asdict(lane) for lane in seen.lanes],
    )


def _row(lane: LaneView) -> tuple[str, ...]:
    return (
        lane.appservice_id,
        lane.state,
        str(lane.waiting),
        str(lane.device_updates),
        "-" if lane.oldest_seconds is None else f"{lane.oldest_seconds:.0f} s",
        str(lane.delivered),
        str(lane.dead_letters),
        _last_answer(lane),
    )


def _last_answer(lane: LaneView) -> str:
    if lane.last_outcome is None:
        return "nothing sent yet"
    failing = lane.failed_attempts > 0
    status = f" (status {lane.last_status})" if failing and lane.last_status else ""
    times = f", {lane.failed_attempts} times" if failing else ""
    rest = f", again in {lane.rest_seconds:.0f} s" if 0 < lane.rest_seconds < 1e9 else ""
    return lane.last_outcome + status + times + rest
