"""Asks an appservice whether it can be reached, as the specification's ping does."""

import secrets
import time
from dataclasses import dataclass
from typing import Final, TypeAlias

import aiohttp

from appservice_bridge.domain.registration import Registration

PATH: Final = "/_matrix/app/v1/ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """It took the ping."""

    status: int
    milliseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnswered:
    """It did not, in the words of the specification.

    Attributes:
        errcode: M_URL_NOT_SET, M_CONNECTION_FAILED, M_CONNECTION_TIMEOUT or M_BAD_STATUS.
        status: of the answer, with M_BAD_STATUS.
        mend: what to look at.
    """

    errcode: str
    mend: str
    status: int | None = None


Pinged: TypeAlias = Answered | NotAnswered

_NO_URL: Final = NotAnswered(
    errcode="M_URL_NOT_SET",
    mend="its registration has no http url to ask; it connects to the bridge by itself, or gets "
    "nothing",
)
_TIMEOUT: Final = NotAnswered(
    errcode="M_CONNECTION_TIMEOUT",
    mend="no answer came in time: it hangs, or something on the way does",
)


async def ping(
    session: aiohttp.ClientSession, registration: Registration, *, timeout_seconds: float
) -> Pinged:
    """Ask once, at the url and with the token that transactions use; no redirect is followed."""
    if registration.url is None or not registration.url.startswith("http"):
        return _NO_URL
    began = time.monotonic()
    try:
        async with session.post(
            registration.url + PATH,
            json={"transaction_id": f"ab-ping-{secrets.token_hex(8)}"},
            headers={"Authorization": f"Bearer {registration.hs_token}"},
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            allow_redirects=False,
        ) as response:
            status = response.status
    except TimeoutError:
        return _TIMEOUT
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _not_connected(error)
    if 200 <= status < 300:
        return Answered(status=status, milliseconds=(time.monotonic() - began) * 1000)
    return NotAnswered(errcode="M_BAD_STATUS", status=status, mend=_mend(status))


def _not_connected(error: Exception) -> NotAnswered:
    """The error's own text may hold the url, and with it a secret."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            mend = "the host of its url is not known here"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            mend = "its TLS certificate is not trusted here, or its port speaks no TLS"
        case aiohttp.InvalidURL() | ValueError():
            mend = "its url cannot be asked"
        case _:
            mend = "nobody takes connections at its url, or they break off: does it run there?"
    return NotAnswered(errcode="M_CONNECTION_FAILED", mend=mend)


def _mend(status: int) -> str:
    match status:
        case 401 | 403:
            return "it does not know the hs_token: both sides need the same registration"
        case 404 | 405:
            return "it answers, and does not know pings: transactions may work all the same"
        case _ if 300 <= status < 400:
            return "it redirects, and no redirect is followed: set url to where it leads"
        case _:
            return "it answers, and refuses: its own log says why"
