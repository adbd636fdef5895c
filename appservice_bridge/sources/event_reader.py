"""Reads room events as a user of an appservice, and shapes them as the homeserver sends them."""

import json
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.raw_json import MalformedError, decode, members, string
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.room_interest import RoomEvent

_TIMEOUT: Final = aiohttp.ClientTimeout(total=20)
_NO: Final = {(403, "M_FORBIDDEN"), (404, "M_NOT_FOUND"), (400, "M_INVALID_PARAM")}

# What Synapse says to the one who asks, and so not to an appservice.
_OF_THE_READER: Final = ("membership", "transaction_id", "m.relations")

# Of `unsigned`, and beside it, too: the first format that clients ever had is what Synapse sends.
_ALSO_OUTSIDE: Final = (
    "age", "replaces_state", "prev_content", "invite_room_state", "knock_room_state",
)  # fmt: skip


class HomeserverAwayError(BridgeError):
    """The homeserver cannot be asked now; ask again later, nothing is known of the event."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the homeserver shows no events now: {reason}")
        self.reason = reason


class EventReader:
    """Asks for single events, with the appservice's token, in the name of its users."""

    def __init__(
        self, session: aiohttp.ClientSession, homeserver_url: str, *, server_name: str
    ) -> None:
        self._session = session
        self._homeserver_url = homeserver_url.rstrip("/")
        self._server_name = server_name

    async def read(
        self, registration: Registration, event: RoomEvent, users: Iterable[str]
    ) -> bytes | None:
        """The event as the first of these users sees it; None if none does.

        It is what the homeserver sends an appservice, byte for byte within content, but:
        `unsigned.age` is of now, `invite_room_state` and `knock_room_state` are missing, and so
        is what only a server admin is shown; if it was redacted since, it comes redacted.

        Raises:
            HomeserverAwayError: it did not answer, or not as a homeserver.
        """
        for user_id in users:
            text = await self._get(registration, user_id, event.room_id, event.event_id)
            if text is not None:
                return await self._shaped(registration, user_id, event.room_id, text)
        return None

    async def _shaped(
        self, registration: Registration, user_id: str, room_id: str, text: str
    ) -> bytes:
        """The same without what is the reader's, and with the state that the event replaced."""
        try:
            outer = members(text)
            unsigned = members(outer.get("unsigned", "{}"))
            for name in _OF_THE_READER:
                unsigned.pop(name, None)
            if "replaces_state" in unsigned:
                replaced = string(unsigned["replaces_state"])
                before = await self._get(registration, user_id, room_id, replaced)
                if before is not None:
                    was = members(before)
                    unsigned["prev_content"] = outer["prev_content"] = was["content"]
                    unsigned["prev_sender"] = was["sender"]
        except (MalformedError, KeyError) as error:
            raise HomeserverAwayError("its answer is no event") from error
        return _object(outer | {"unsigned": _object(unsigned)}).encode()

    async def _get(
        self, registration: Registration, user_id: str, room_id: str, event_id: str
    ) -> str | None:
        """The answer's body; None if this user is refused the event."""
        path = f"/_matrix/client/v3/rooms/{quote(room_id, safe='')}/event/"
        path += quote(event_id, safe="")
        if user_id != registration.sender(server_name=self._server_name):
            path += f"?user_id={quote(user_id, safe='')}"  # the sender need not be registered
        try:
            async with self._session.get(
                URL(self._homeserver_url + path, encoded=True),
                headers={"Authorization": f"Bearer {registration.as_token}"},
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                return _answer(response.status, await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise HomeserverAwayError(type(error).__name__) from error


def _answer(status: int, body: bytes) -> str | None:
    """An event, or a no that is the homeserver's own: what stands before it may say 404, too."""
    try:
        text = decode(body)
        found = members(text)
        if status == 200 and "event_id" in found:
            return text
        if (status, string(found.get("errcode", '""'))) in _NO:
            return None
    except MalformedError as error:
        raise HomeserverAwayError(f"status {status}, and no answer of a homeserver") from error
    raise HomeserverAwayError(f"status {status}")


def _object(found: dict[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in found.items()) + "}"


def as_sent(event: RoomEvent, stored: str, *, replaced: str | None, now_ms: int) -> bytes:
    """What Synapse stores of an event, as it sends it to an appservice.

    Args:
        event: where it happened, and its id: the JSON need not hold them.
        stored: its JSON, of an event that was not redacted.
        replaced: the JSON of the state that it replaced; None if it is not to be had.
        now_ms: for `age`.

    Raises:
        MalformedError, KeyError: Synapse stores something else.
    """
    found = members(stored)
    kept = ("type", "sender", "state_key", "content", "origin_server_ts", "redacts")
    outer = {name: found[name] for name in kept if name in found or name == "content"}
    outer |= {"room_id": json.dumps(event.room_id), "event_id": json.dumps(event.event_id)}
    unsigned = members(found.get("unsigned", "{}"))
    unsigned.pop("age_ts", None)
    unsigned["age"] = str(max(now_ms - int(found["origin_server_ts"]), 0))
    if replaced is not None:
        was = members(replaced)
        unsigned |= {"prev_content": was["content"], "prev_sender": was["sender"]}
    outer |= {name: unsigned[name] for name in _ALSO_OUTSIDE if name in unsigned}
    return _object(outer | {"user_id": outer["sender"], "unsigned": _object(unsigned)}).encode()


def only_membership(stored: str) -> str:
    """The JSON of a membership as redaction leaves it, less what only some room versions keep.

    Raises:
        MalformedError, KeyError: it is none.
    """
    found = members(stored)
    left = _object({"membership": members(found["content"])["membership"]})
    return _object(found | {"content": left, "unsigned": "{}"})


def replaced_state(stored: str) -> str | None:
    """The id of the event whose state a stored one replaced.

    Raises:
        MalformedError: it is no event.
    """
    replaced = members(members(stored).get("unsigned", "{}")).get("replaces_state")
    return None if replaced is None else string(replaced)
