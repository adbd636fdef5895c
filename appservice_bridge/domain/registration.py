"""What an appservice registered: who it is, where it listens, and whose users it owns."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

WEBSOCKET: Final = "websocket"
"""The `url` of a registration whose appservice connects to us instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One pattern of users, aliases or rooms, matched as Synapse matches it.

    Attributes:
        regex: Python syntax, anchored at the start only: `@irc_` also matches `@irc_x:any.org`.
        exclusive: nobody but this appservice may create what matches.

    Raises:
        ValueError: `regex` does not compile.
    """

    regex: str
    exclusive: bool
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", compiled(self.regex))

    def matches(self, name: str) -> bool:
        """Whether a full id or alias, sigil and server name included, falls into it."""
        return self._pattern.match(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One registration file, read and found sound; its repr never shows a token.

    Attributes:
        id: any text without U+0000 but `.` and `..`; unique among all registrations.
        url: http or https without a trailing slash, or `websocket`; None: there is nowhere to send.
        as_token: what the appservice shows to the homeserver and to our websocket.
        hs_token: what the homeserver, and so the bridge, shows to the appservice.
        sender_localpart: the appservice's own user, without `@` and server name.
        receive_ephemeral: wants typing, receipts and presence, under any of the three keys.
        rate_limited: true where the file does not say.
        encryption: `org.matrix.msc3202`; None where the file does not say, and that is no "no".
        source: path of the file, for messages to operators.

    Source: Application Service API v1.19, "Registration"; MSC2409, MSC3202.
    """

    id: str
    url: str | None
    as_token: str = field(repr=False)
    hs_token: str = field(repr=False)
    sender_localpart: str
    users: tuple[Namespace, ...] = ()
    aliases: tuple[Namespace, ...] = ()
    rooms: tuple[Namespace, ...] = ()
    receive_ephemeral: bool = False
    rate_limited: bool = True
    protocols: tuple[str, ...] = ()
    encryption: bool | None = None
    source: str

    def sender(self, *, server_name: str) -> str:
        """User id of the appservice itself."""
        return f"@{self.sender_localpart}:{server_name}"

    def owns(self, user_id: str, *, server_name: str) -> bool:
        """Whether a user of this homeserver is the sender or in a users namespace.

        Exclusive or not makes no difference. Users of other servers are never
        owned, whatever the patterns say.
        """
        if not is_local(user_id, server_name=server_name):
            return False
        if user_id == self.sender(server_name=server_name):
            return True
        return any(namespace.matches(user_id) for namespace in self.users)

    def owns_exclusively(self, user_id: str, *, server_name: str) -> bool:
        """Whether nobody else may be behind this user.

        As in Synapse the sender always is, and for the others the first
        namespace that matches decides, so a shared one may shadow an exclusive one.
        """
        if not is_local(user_id, server_name=server_name):
            return False
        if user_id == self.sender(server_name=server_name):
            return True
        first = next((n for n in self.users if n.matches(user_id)), None)
        return first is not None and first.exclusive


def compiled(regex: str) -> re.Pattern[str]:
    """Compile a namespace's pattern.

    Raises:
        ValueError: it is no valid Python regex; the message says why, in one line.
    """
    try:
        return re.compile(regex)
    except re.error as error:
        raise ValueError(f"is not a valid regex: {error}") from None
    except (OverflowError, RecursionError):
        raise ValueError("is not a valid regex: too large") from None


def is_local(user_id: str, *, server_name: str) -> bool:
    """Whether a user id belongs to this homeserver; the name starts after the first colon."""
    localpart, colon, server = user_id.partition(":")
    return localpart.startswith("@") and bool(colon) and server == server_name


def relay_path(appservice_id: str) -> str:
    """Where the relay takes an appservice's traffic; every reserved character is encoded."""
    return f"/appservice/{quote(appservice_id, safe='')}"
