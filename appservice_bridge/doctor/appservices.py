"""The appservices as they run: reachable from here, and of one mind about the token."""

from collections.abc import Iterator
from typing import Final, assert_never

import aiohttp

from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery.ping import Answered, NotAnswered, Pinged, ping
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.domain.registration import Registration

_TIMEOUT_SECONDS: Final = 10.0


async def unreachable(session: aiohttp.ClientSession, of: Loaded) -> list[Finding]:
    """What a ping of each appservice with an http url says."""
    found: list[Finding] = []
    for registration in of.registrations:
        if of.config.settings(registration).transport == "http":
            found += _answered(
                registration, await ping(session, registration, timeout_seconds=_TIMEOUT_SECONDS)
            )
    return found


def _answered(registration: Registration, answer: Pinged) -> Iterator[Finding]:
    match answer:
        case Answered():
            return
        case NotAnswered(status=None):
            code, what, level = "appservice_unreachable", "it cannot be reached", Level.FAULT
        case NotAnswered(status=401 | 403 as status):
            code, what, level = "token_mismatch", f"it refuses our hs_token, {status}", Level.FAULT
        case NotAnswered(status=404 | 405 as status):
            code, what, level = "appservice_without_ping", f"it answers {status}", Level.DOUBT
        case NotAnswered(status=status):
            code, what, level = "appservice_failing", f"it answers {status}", Level.FAULT
        case unknown:
            assert_never(unknown)
    yield Finding(
        code=code,
        what=f"a ping of the appservice failed: {what}",
        mend=f"{answer.mend} (its url and tokens are in {registration.source})",
        level=level,
        appservice=registration.id,
    )
