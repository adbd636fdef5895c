"""Numbered facts: each stream has one sender, one appservice, and an order that must be kept.

A fact is known by its stream and its number, and everything in it follows from these two, so that
whoever knows the name can tell whether it came unaltered. The name of a stream says how its facts
come in and whom they are for: `relay-as0-1`, `ingest-as0-2`, `capture-as1-1`.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

SERVER: Final = "example.org"
HARD_TO_CARRY: Final = 'é\u2028"\\/\u007f<&> \U0001f600'
POISON: Final = "m.poison"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What a sender was answered 200 for: numbers `first` to `last` of a stream.

    Attributes:
        at_ns: when, by CLOCK_MONOTONIC, which all processes of a machine share.
    """

    stream: str
    first: int
    last: int
    at_ns: int

    def line(self) -> bytes:
        return orjson.dumps([self.stream, self.first, self.last, self.at_ns]) + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """One line of a receiver's log: a request as it came, or what it is about to be answered.

    Attributes:
        status: None for a request that came; else its answer.
        items: stream, number and fingerprint of each fact in it.
    """

    at_ns: int
    txn_id: str
    digest: str = ""
    status: int | None = None
    items: Sequence[tuple[str, int, int]] = ()

    def line(self) -> bytes:
        return orjson.dumps([self.at_ns, self.txn_id, self.digest, self.status, self.items]) + b"\n"


def read_accepted(path: Path) -> list[Accepted]:
    return [
        Accepted(stream=stream, first=first, last=last, at_ns=at_ns)
        for stream, first, last, at_ns in _whole_lines(_bytes(path))
    ]


def read_came(path: Path) -> list[Came]:
    return parse_came(_bytes(path))


def parse_came(lines: bytes) -> list[Came]:
    return [
        Came(at_ns=at_ns, txn_id=txn_id, digest=digest, status=status, items=items)
        for at_ns, txn_id, digest, status, items in _whole_lines(lines)
    ]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _whole_lines(lines: bytes) -> Iterator[list[Any]]:
    """Half a line is the last word of a process that was killed, and was never answered for.

    The next process writes a line end first, so what is half can stand in the middle, too.
    """
    for line in lines.split(b"\n"):
        with suppress(orjson.JSONDecodeError):
            yield orjson.loads(line)


def appservice_of(stream: str) -> str:
    return stream.split("-")[1]


def user_of(stream: str) -> str:
    return f"@{appservice_of(stream)}_1:{SERVER}"


def content(stream: str, number: int) -> dict[str, Any]:
    """About 200 bytes, other ones for every fact, with characters that are easily altered."""
    noise = hashlib.blake2b(f"{stream} {number}".encode(), digest_size=48).hexdigest()
    return {"n": number, "noise": noise, "stream": stream, "text": HARD_TO_CARRY}


def event(stream: str, number: int, kind: str = "m.fault") -> dict[str, Any]:
    """A room event, as the homeserver sends it."""
    return {
        "content": content(stream, number),
        "event_id": f"${stream}-{number}",
        "origin_server_ts": number,
        "room_id": f"!room:{SERVER}",
        "sender": f"@{stream}:{SERVER}",
        "type": kind,
    }


def message(stream: str, number: int) -> dict[str, Any]:
    """What Synapse stores of a to-device message, in its order."""
    sender = f"@{stream}:{SERVER}"
    return {"content": content(stream, number), "type": "m.fault", "sender": sender}


def delivered(stream: str, number: int, kind: str = "m.fault") -> dict[str, Any]:
    """What the appservice must get of a fact; of a real homeserver's, the content of it."""
    if stream.startswith("synapse-"):
        return content(stream, number)
    if stream.startswith("relay-"):
        return event(stream, number, kind)
    return message(stream, number) | {"to_device_id": "DEV", "to_user_id": user_of(stream)}


def fingerprint(item: dict[str, Any]) -> int:
    """Equal for two items that say the same; bytes are compared by the transaction's digest."""
    return zlib.crc32(orjson.dumps(item, option=orjson.OPT_SORT_KEYS))


def named(item: dict[str, Any]) -> tuple[str, int, int]:
    """Stream, number and fingerprint of what came."""
    body = item["content"]
    compared = body if body["stream"].startswith("synapse-") else item
    return str(body["stream"]), int(body["n"]), fingerprint(compared)
