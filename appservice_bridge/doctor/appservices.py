"""The appservices as they run: reachable from here, and of one mind about the token."""

import secrets
from collections.abc import Iterator
from typing import Final

import aiohttp

from appservice_bridge.config.loading import Loaded
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.domain.registration import Registration

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


async def unreachable(session: aiohttp.ClientSession, of: Loaded) -> list[Finding]:
    """What a ping of each appservice with an http url says."""
    found: list[Finding] = []
    for registration in of.registrations:
        if of.config.settings(registration).transport == "http":
            found += _answered(registration, await _ping(session, registration))
    return found


async def _ping(session: aiohttp.ClientSession, registration: Registration) -> int | str:
    """The status, or a word for why there is none."""
    try:
        async with session.post(
            f"{registration.url}/_matrix/app/v1/ping",
            json={"transaction_id": f"ab-doctor-{secrets.token_hex(8)}"},
            headers={"Authorization": f"Bearer {registration.hs_token}"},
            timeout=_TIMEOUT,
            allow_redirects=False,
        ) as response:
            return response.status
    except TimeoutError:
        return "it did not answer in time"
    except (aiohttp.ClientError, OSError) as error:
        return type(error).__name__


def _answered(registration: Registration, answer: int | str) -> Iterator[Finding]:
    if isinstance(answer, str):
        yield Finding(
            code="appservice_unreachable",
            what=f"its url cannot be reached from here ({answer})",
            mend=f"start it, or mend `url` in {registration.source}",
            appservice=registration.id,
        )
    elif answer in (401, 403):
        yield Finding(
            code="token_mismatch",
            what=f"the appservice refuses our hs_token with {answer}",
            mend=f"give the appservice the hs_token of {registration.source}, and restart it",
            appservice=registration.id,
        )
    elif 300 <= answer < 400 or answer >= 500:
        yield Finding(
            code="appservice_failing",
            what=f"a ping of the appservice is answered {answer}",
            mend=f"look at the appservice's log; its url is in {registration.source}",
            appservice=registration.id,
        )
    elif answer >= 400:
        yield Finding(
            code="appservice_without_ping",
            what=f"the appservice does not know /_matrix/app/v1/ping (it answers {answer})",
            mend="nothing has to be done; a newer release of it can end a rest by a ping",
            level=Level.DOUBT,
            appservice=registration.id,
        )
