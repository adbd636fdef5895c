"""A to-device message as an appservice gets it."""

import json
import re
from functools import lru_cache
from typing import Final

from appservice_bridge.domain.raw_json import (
    MAX_CONTENT_BYTES,
    MalformedError,
    decode,
    members,
    require_shallow,
    require_small,
    string,
    value_end,
)

_STRING: Final = r'"[^"\\\x00-\x1f]*"'
_AS_SYNAPSE_WRITES_IT: Final = re.compile(
    rf'\{{"content":(?P<content>\{{.*\}}),"type":{_STRING},"sender":{_STRING}\}}', re.DOTALL
)


def to_device_item(user_id: str, device_id: str, message_json: bytes) -> bytes:
    """The flat entry of MSC4203: recipient, then content, type and sender as they were stored.

    Raises:
        MalformedError: a client library would choke on it, and drop its neighbours with it.
    """
    if is_as_synapse_writes_it(message_json):
        return opening(user_id, device_id) + message_json[1:]
    message = members(decode(message_json))
    for name in ("type", "sender"):
        string(message.get(name, ""))
    type_, sender, content = message["type"], message["sender"], message.get("content", "")
    if not content.startswith("{"):
        raise MalformedError("content is not an object")
    require_small(content)
    rest = f'"content":{content},"type":{type_},"sender":{sender}}}'
    return opening(user_id, device_id) + rest.encode()


def is_as_synapse_writes_it(message_json: bytes) -> bool:
    """Whether the entry is the opening and, behind its brace, the message as it is.

    Else it is faulty, too large, or only written otherwise: `to_device_item` says which.
    """
    if len(message_json) > MAX_CONTENT_BYTES:
        return False
    try:
        text = decode(message_json)
        found = _AS_SYNAPSE_WRITES_IT.fullmatch(text)
        if found is None:
            return False
        require_shallow(text)
        start, end = found.span("content")
        return value_end(text, start) == end
    except MalformedError:
        return False


@lru_cache(maxsize=16_384)
def opening(user_id: str, device_id: str) -> bytes:
    """How an entry begins, up to where the message's own members follow."""
    recipient = f'"to_user_id":{_quoted(user_id)},"to_device_id":{_quoted(device_id)}'
    return f"{{{recipient},".encode()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
