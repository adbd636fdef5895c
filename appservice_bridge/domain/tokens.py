"""Tokens of appservices by their digests: those in force, and those that were until lately."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from secrets import compare_digest

from appservice_bridge.domain.registration import Registration


class TokenKind(StrEnum):
    """Who shows it to whom.

    Attributes:
        AS_TOKEN: the appservice, to the homeserver and to us.
        HS_TOKEN: the homeserver to us, and we to the appservice.
    """

    AS_TOKEN = "as_token"  # noqa: S105 - its name
    HS_TOKEN = "hs_token"  # noqa: S105 - its name


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerToken:
    """A token that was replaced and is still accepted.

    Attributes:
        seconds: how much longer, when it was read.
    """

    appservice_id: str
    kind: TokenKind
    digest: bytes
    seconds: float


def digest(token: str | bytes) -> bytes:
    """What is kept of a token, and compared: 32 bytes."""
    as_bytes = token.encode(errors="surrogateescape") if isinstance(token, str) else token
    return sha256(as_bytes).digest()


def digests(registration: Registration) -> dict[TokenKind, bytes]:
    """Of the tokens that are in force."""
    return {
        TokenKind.AS_TOKEN: digest(registration.as_token),
        TokenKind.HS_TOKEN: digest(registration.hs_token),
    }


class Tokens:
    """What one set of registrations accepts; times are monotonic seconds."""

    def __init__(self, registrations: Mapping[str, Registration]) -> None:
        self._current = {id_: digests(one) for id_, one in registrations.items()}
        self._by_as_token = {found[TokenKind.AS_TOKEN]: id_ for id_, found in self._current.items()}
        self._former: list[tuple[FormerToken, float]] = []

    def accept(self, former: Iterable[FormerToken], *, now: float) -> None:
        """Accept these former tokens, and none that were told before."""
        self._former = [
            (one, now + one.seconds) for one in former if one.appservice_id in self._current
        ]

    def is_current(self, appservice_id: str, kind: TokenKind, token: bytes) -> bool:
        """Whether it is the token that is in force."""
        return compare_digest(self._current[appservice_id][kind], digest(token))

    def former_seconds(
        self, appservice_id: str, kind: TokenKind, token: bytes, *, now: float
    ) -> float | None:
        """How much longer a token that was replaced is accepted; None: it is not."""
        shown = digest(token)
        left = [
            until - now
            for one, until in self._former
            if one.appservice_id == appservice_id
            and one.kind is kind
            and compare_digest(one.digest, shown)
        ]
        return max((each for each in left if each > 0), default=None)

    def of_as_token(self, token: bytes, *, now: float) -> str | None:
        """Whose as_token it is, or was until lately; None if it is nobody's.

        What is looked for is a digest, so that the time says nothing of the token.
        """
        shown = digest(token)
        if shown in self._by_as_token:
            return self._by_as_token[shown]
        for one, until in self._former:
            if one.kind is TokenKind.AS_TOKEN and until > now and one.digest == shown:
                return one.appservice_id
        return None
