"""A to-device message as an appservice gets it."""

import json
import re
from functools import lru_cache
from typing import Final

from appservice_bridge.domain.raw_json import (
    MalformedError,
    decode,
    members,
    require_shallow,
    require_small,
    string,
    value_end,
)

_STRING: Final = r'("[^"\\\x00-\x1f]*")'
_AS_SYNAPSE_WRITES_IT: Final = re.compile(
    rf'\{{"content":(\{{.*\}}),"type":{_STRING},"sender":{_STRING}\}}', re.DOTALL
)


def to_device_item(user_id: str, device_id: str, message_json: bytes) -> bytes:
    """The flat entry of MSC4203: recipient, then type, sender and content as they were stored.

    Raises:
        MalformedError: a client library would choke on it, and drop its neighbours with it.
    """
    text = decode(message_json)
    type_, sender, content = _as_synapse_writes_it(text) or _taken_apart(text)
    require_small(content)
    recipient = _recipient(user_id, device_id)
    return f'{recipient},"type":{type_},"sender":{sender},"content":{content}}}'.encode()


def _as_synapse_writes_it(text: str) -> tuple[str, str, str] | None:
    """Type, sender and content, the quick way; None if it is written otherwise, or is faulty."""
    found = _AS_SYNAPSE_WRITES_IT.fullmatch(text)
    if found is None:
        return None
    content, type_, sender = found.groups()
    require_shallow(text)
    try:
        whole = value_end(content, 0) == len(content)
    except MalformedError:
        return None
    return (type_, sender, content) if whole else None


def _taken_apart(text: str) -> tuple[str, str, str]:
    message = members(text)
    for name in ("type", "sender"):
        string(message.get(name, ""))
    if not message.get("content", "").startswith("{"):
        raise MalformedError("content is not an object")
    return message["type"], message["sender"], message["content"]


@lru_cache(maxsize=16_384)
def _recipient(user_id: str, device_id: str) -> str:
    return f'{{"to_user_id":{_quoted(user_id)},"to_device_id":{_quoted(device_id)}'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
