"""The homeserver as it runs: reachable, of a release that is known, and leading to the relay."""

import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from appservice_bridge.config.loading import Loaded
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.doctor.server_name import other_server_name
from appservice_bridge.domain.registration import Registration, relay_path
from appservice_bridge.domain.supported import NEWEST_SYNAPSE, OLDEST_SYNAPSE
from appservice_bridge.http.wake_homeserver import PROBE_PREFIX, PROBE_STATUS

SKEW_SECONDS: Final = 10.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)

_SET_URL: Final = (
    'set `url: "{url}"` in the homeserver\'s copy of the registration, and restart the homeserver'
)
_MENDS: Final = {
    "not_at_relay": _SET_URL,
    "token_mismatch": "write the homeserver's copy again with `appservice-bridge registration"
    " for-homeserver {source} -o COPY.yaml`, and restart the homeserver",
    "relay_unreachable": f"start a worker with `appservice-bridge run`, or {_SET_URL}",
    "not_asked": "look at the url of the homeserver's copy: it should be {url}",
}


class HomeserverAsked:
    """Asks the homeserver what only it can say.

    Attributes:
        release: what it says of itself; None: nothing.
    """

    def __init__(self, session: aiohttp.ClientSession, of: Loaded) -> None:
        self._session = session
        self._of = of
        self._url = of.config.homeserver.url
        self.release: str | None = None

    async def findings(self) -> AsyncIterator[Finding]:
        """Nothing more is asked of a homeserver that does not answer."""
        status, _, date = await self._ask("GET", "/_matrix/client/versions")
        if status is None:
            yield Finding(
                code="homeserver_unreachable",
                what="homeserver.url does not answer",
                mend=f"start the homeserver, or mend `homeserver.url: {_without_user(self._url)}`",
            )
            return
        clock = skew("the homeserver's clock", _seconds_off(date))
        for finding in [*clock, *await self._of_another_name()]:
            yield finding
        if self._of.config.homeserver.kind == "synapse":
            _, answer, _ = await self._ask("GET", "/_synapse/admin/v1/server_version")
            self.release = _text(answer, "server_version")
            for finding in releases(self.release):
                yield finding
        for registration in self._of.registrations:
            if self._of.config.settings(registration).transport != "none":
                for finding in await self._way_to_relay(registration):
                    yield finding

    async def _of_another_name(self) -> list[Finding]:
        """None where it does not serve its keys at this url."""
        _, answer, _ = await self._ask("GET", "/_matrix/key/v2/server")
        return [*other_server_name(self._of, _text(answer, "server_name"))]

    async def _way_to_relay(self, registration: Registration) -> list[Finding]:
        """A ping through the homeserver, which the relay knows as a probe and answers itself."""
        path = f"/_matrix/client/v1/appservice/{quote(registration.id, safe='')}/ping"
        body = {"transaction_id": PROBE_PREFIX + secrets.token_hex(8)}
        status, answer, _ = await self._ask("POST", path, registration.as_token, body)
        relay = self._of.config.listen.relay_url
        return [*_way(registration, status, answer, relay)]

    async def _ask(
        self, method: str, path: str, token: str | None = None, body: dict[str, str] | None = None
    ) -> tuple[int | None, Any, str | None]:
        """Status, answer and date; a status of None: no answer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            async with self._session.request(
                method,
                URL(self._url + path, encoded=True),
                json=body,
                headers=headers,
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                date = response.headers.get("Date")
                try:
                    return response.status, await response.json(content_type=None), date
                except ValueError:
                    return response.status, None, date
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None, None, None


def skew(whose: str, seconds: float | None) -> Iterator[Finding]:
    """A clock that is off by more than a few seconds."""
    if seconds is not None and abs(seconds) > SKEW_SECONDS:
        yield Finding(
            code="clock_skew",
            what=f"{whose} is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} ours",
            mend="let both machines keep time (chrony, systemd-timesyncd)",
            level=Level.DOUBT,
        )


def _way(
    registration: Registration, status: int | None, answer: Any, relay: str
) -> Iterator[Finding]:
    """What the homeserver's answer to a probe says."""
    found = _said(status, _text(answer, "errcode") or "", _number(answer, "status"))
    if found is not None:
        code, what = found
        url = relay + relay_path(registration.id)
        yield Finding(
            code=code,
            what=what,
            mend=_MENDS[code].format(url=url, source=registration.source),
            level=Level.DOUBT if code == "not_asked" else Level.FAULT,
            appservice=registration.id,
        )


def _said(status: int | None, errcode: str, reached: int | None) -> tuple[str, str] | None:
    """Code and sentence of what is wrong; `reached` is what the homeserver itself was answered."""
    if errcode.endswith("BAD_STATUS") and reached == PROBE_STATUS:
        return None
    if status == 200:
        return "not_at_relay", "the homeserver reaches somebody else than the relay"
    if errcode.endswith("URL_NOT_SET"):
        return "not_at_relay", "the homeserver's copy has no url"
    if status in (401, 403):
        return "token_mismatch", "the homeserver does not know this as_token, or not with this id"
    if reached in (401, 403):
        return "token_mismatch", "whom the homeserver reaches does not take its hs_token"
    if reached is not None:
        return "not_at_relay", f"whom the homeserver reaches answers {reached}: it is not the relay"
    if status is not None and status >= 500:
        return "relay_unreachable", "the homeserver does not reach the relay"
    return "not_asked", f"the homeserver cannot be asked for its way to the relay ({status})"


def releases(found: str | None) -> Iterator[Finding]:
    """A release that the bridge is not tested with."""
    numbers = _numbers(found or "")
    if not numbers:
        yield Finding(
            code="release_unknown",
            what="the homeserver does not say which release it is",
            mend=f"it should be Synapse {OLDEST_SYNAPSE} to {NEWEST_SYNAPSE}",
            level=Level.DOUBT,
        )
    elif numbers < _numbers(OLDEST_SYNAPSE):
        yield Finding(
            code="homeserver_old",
            what=f"Synapse {found} is older than what the bridge is tested with",
            mend=f"upgrade to Synapse {OLDEST_SYNAPSE} or newer, up to {NEWEST_SYNAPSE}",
        )
    elif numbers > _numbers(NEWEST_SYNAPSE):
        yield Finding(
            code="homeserver_new",
            what=f"Synapse {found} is newer than what this release is tested with",
            mend=f"look for a newer release of the bridge; this one knows up to {NEWEST_SYNAPSE}",
            level=Level.DOUBT,
        )


def _numbers(release: str) -> tuple[int, ...]:
    """Of `1.163.2rc1 (b=develop)` the three; none of what is no release."""
    word, *_ = [*release.split(), ""]
    parts = word.split("+")[0].split("rc")[0].split(".")
    return tuple(int(part) for part in parts) if all(p.isdecimal() for p in parts) else ()


def _seconds_off(date: str | None) -> float | None:
    try:
        return (parsedate_to_datetime(date or "") - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None


def _text(answer: Any, key: str) -> str | None:
    found = answer.get(key) if isinstance(answer, dict) else None
    return found if isinstance(found, str) else None


def _number(answer: Any, key: str) -> int | None:
    found = answer.get(key) if isinstance(answer, dict) else None
    return found if isinstance(found, int) else None


def _without_user(url: str) -> str:
    return str(URL(url).with_user(None).with_password(None))
