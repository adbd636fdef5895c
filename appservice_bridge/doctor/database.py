"""The bridge's own state: schema, capture, workers and lanes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from appservice_bridge.blueprint.versions import SchemaTooNewError
from appservice_bridge.config.loading import Loaded
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.doctor.homeserver import skew
from appservice_bridge.domain.capture import TRIGGERS, CaptureMode
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.supported import NEWEST_POSTGRES, OLDEST_POSTGRES
from appservice_bridge.storage import (
    capture_state,
    drift,
    grants,
    leases,
    migrations,
    overview,
    synapse,
)
from appservice_bridge.storage import database as storage
from appservice_bridge.storage.capture_state import CaptureState
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.overview import LaneView

LONG_FAILING_SECONDS: Final = 600.0


async def database(conn: Connection, of: Loaded) -> list[Finding]:
    """What is wrong in the database; nothing more is looked at where the bridge cannot run."""
    try:
        await migrations.require_current(conn)
    except migrations.PostgresTooOldError as error:
        mend = f"upgrade to Postgres {OLDEST_POSTGRES} or newer, up to {NEWEST_POSTGRES}"
        return [Finding(code="postgres_old", what=error.told, mend=mend)]
    except migrations.SchemaOutdatedError as error:
        mend = "run `appservice-bridge migrate`"
        return [Finding(code="schema", what=error.told, mend=mend)]
    except SchemaTooNewError as error:
        mend = "use the release that migrated it, or a newer one"
        return [Finding(code="schema", what=error.told, mend=mend)]
    found = [*skew("the database's clock", await storage.clock_ahead_seconds(conn))]
    found += _newer(storage.major_release(conn))
    state = await capture_state.read(conn)
    if CaptureMode(of.config.homeserver.capture) is not CaptureMode.NONE:
        found += await _capture(conn, of, state)
    if of.registrations and not await leases.live_workers(conn):
        what = "no worker has run yet" if state.looked_at is None else "no worker is running"
        mend = "start one with `appservice-bridge run`"
        found.append(Finding(code="no_worker", what=what, mend=mend))
    return [*found, *_lanes(await overview.lanes(conn))]


def _newer(release: int) -> Iterator[Finding]:
    if release > NEWEST_POSTGRES:
        yield Finding(
            code="postgres_new",
            what=f"Postgres {release} is newer than what this release is tested with",
            mend="look for a newer release of the bridge; this one knows"
            f" {OLDEST_POSTGRES} to {NEWEST_POSTGRES}",
            level=Level.DOUBT,
        )


async def _capture(conn: Connection, of: Loaded, state: CaptureState) -> list[Finding]:
    triggers = CaptureMode(of.config.homeserver.capture) is CaptureMode.TRIGGERS
    try:
        await synapse.require_synapse(conn)
        lacking = [r for r in await grants.rights(conn, triggers=triggers) if not r.held]
        found = [*_problems(await drift.problems(conn, triggers=triggers))]
    except BridgeError as error:
        mend = error.mend or "let `database` name the homeserver's own database"
        return [Finding(code="not_synapse", what=error.told, mend=mend)]
    for statement in await grants.grants(conn, lacking):
        mend = f"the owner of the homeserver's database must run {statement}"
        found.append(Finding(code="grant_missing", what="a right is missing", mend=mend))
    return [*found, *_mode(state, of)]


def _problems(problems: list[drift.Problem]) -> Iterator[Finding]:
    missing = [problem for problem in problems if problem.mend == drift.INSTALL]
    if len(missing) >= len(TRIGGERS):
        what = "the triggers are missing; until they are there workers poll Synapse's tables"
        yield Finding(code="not_installed", what=what, mend=drift.INSTALL)
        problems = [problem for problem in problems if problem not in missing]
    for problem in problems:
        yield Finding(code="capture_broken", what=problem.what, mend=problem.mend)


def _mode(state: CaptureState, of: Loaded) -> Iterator[Finding]:
    wanted = of.config.homeserver.capture
    if state.looked_at is not None and state.mode != wanted:
        yield Finding(
            code="capture_mode",
            what=f"capture is {state.mode} now, and {wanted} is asked for",
            mend="mend what `status` says of the capture; it changes back by itself",
            level=Level.DOUBT,
        )


def _standing_still(lane: LaneView) -> Iterator[Finding]:
    """A lane that sends nothing until an operator says so."""
    if lane.rest_seconds == float("inf"):
        yield Finding(
            code="lane_halted",
            what=f"its lane is halted ({lane.last_outcome}), nothing is sent; {lane.waiting} wait",
            mend="what is stored is not what was sealed: look for who changed the bridge's tables, "
            f"then `appservice-bridge retry {lane.appservice_id}`",
            appservice=lane.appservice_id,
        )
    elif lane.paused:
        yield Finding(
            code="lane_paused",
            what=f"an operator paused it, nothing is sent; {lane.waiting} wait",
            mend=f"`appservice-bridge resume {lane.appservice_id}` makes it go on",
            level=Level.DOUBT,
            appservice=lane.appservice_id,
        )


def _lanes(lanes: list[LaneView]) -> Iterator[Finding]:
    for lane in lanes:
        if lane.registered:
            yield from _standing_still(lane)
        since = lane.failing_since
        failing = 0.0 if since is None else (datetime.now(UTC) - since).total_seconds()
        if failing > LONG_FAILING_SECONDS:
            yield Finding(
                code="lane_failing",
                what=f"every attempt fails since {since:%Y-%m-%d %H:%M} UTC,"
                f" the last with {lane.last_outcome}; {lane.waiting} wait",
                mend=f"mend the appservice, then `appservice-bridge retry {lane.appservice_id}`",
                appservice=lane.appservice_id,
            )
        if lane.dead_letters:
            yield Finding(
                code="dead_letters",
                what=f"{lane.dead_letters} dead letters",
                mend=f"look at them with `appservice-bridge dead-letters {lane.appservice_id}`",
                level=Level.DOUBT,
                appservice=lane.appservice_id,
            )
