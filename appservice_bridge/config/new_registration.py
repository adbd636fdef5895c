"""A registration for an encrypted bot, written anew with tokens nobody has seen."""

import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

import yaml

from appservice_bridge.config.registrations import ENCRYPTION, EPHEMERAL

_TOKEN_BYTES: Final = 32
_NOT_IN_LOCALPARTS: Final = re.compile(r"[^a-z0-9._=/-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a new registration is to say; checked only once it is written.

    Attributes:
        url: None for an appservice to which nothing is delivered.
        exclusive_users: regexes of users that only this appservice may create.
        shared_users: regexes of users that others may have, too.
        ephemeral: also deliver typing, receipts and presence.
    """

    id: str
    url: str | None
    sender_localpart: str
    exclusive_users: tuple[str, ...] = ()
    shared_users: tuple[str, ...] = ()
    ephemeral: bool = False


def written(wish: Wish) -> str:
    """The YAML of the registration; each call makes fresh tokens of 256 random bits."""
    users = [{"exclusive": True, "regex": regex} for regex in wish.exclusive_users]
    users += [{"exclusive": False, "regex": regex} for regex in wish.shared_users]
    contents: dict[str, Any] = {
        "id": wish.id,
        "url": wish.url,
        "as_token": secrets.token_urlsafe(_TOKEN_BYTES),
        "hs_token": secrets.token_urlsafe(_TOKEN_BYTES),
        "sender_localpart": wish.sender_localpart,
        "rate_limited": False,
        "namespaces": {"users": users, "aliases": [], "rooms": []},
        "receive_ephemeral": wish.ephemeral,
        EPHEMERAL: wish.ephemeral,
        ENCRYPTION: True,
    }
    return yaml.safe_dump(contents, sort_keys=False, allow_unicode=True, width=1_000_000)


def localpart_from(appservice_id: str) -> str:
    """A sender's localpart that resembles the id and that every homeserver takes."""
    return _NOT_IN_LOCALPARTS.sub("-", appservice_id.lower()).strip("-") or "bot"
