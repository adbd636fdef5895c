"""A to-device message as an appservice gets it."""

import json

from appservice_bridge.domain.raw_json import (
    MalformedError,
    decode,
    members,
    require_small,
    string,
)


def to_device_item(user_id: str, device_id: str, message_json: bytes) -> bytes:
    """The flat entry of MSC4203: recipient, then type, sender and content as they were stored.

    Raises:
        MalformedError: a client library would choke on it, and drop its neighbours with it.
    """
    message = members(decode(message_json))
    for name in ("type", "sender"):
        string(message.get(name, ""))
    if not message.get("content", "").startswith("{"):
        raise MalformedError("content is not an object")
    require_small(message["content"])
    recipient = f'"to_user_id":{_quoted(user_id)},"to_device_id":{_quoted(device_id)}'
    kept = ",".join(f'"{name}":{message[name]}' for name in ("type", "sender", "content"))
    return f"{{{recipient},{kept}}}".encode()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
