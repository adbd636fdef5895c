"""A batch of facts as it came in: taken apart, and put into the form that was signed."""

import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from canonicaljson import encode_canonical_json

from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.facts import (
    LARGEST_INTEGER,
    MAX_ID_BYTES,
    Fact,
    RefusedFactError,
    known_kind,
    read_fact,
)
from appservice_bridge.domain.raw_json import (
    MalformedError,
    TooManyError,
    decode,
    elements,
    members,
    require_shallow,
)

MAX_FACTS: Final = 10_000
MAX_AGE_DAYS: Final = 29
"""A day less than batches are remembered: what is forgotten is too old to be taken again."""
MAX_AHEAD_SECONDS: Final = 300
MAX_ROWS: Final = 50_000
"""Of the log, for one batch: a device_list takes one for each user."""

_NAME: Final = re.compile(r"[^\0\ud800-\udfff]+", re.DOTALL)
_NOT_SIGNED: Final = frozenset({"signatures", "unsigned"})
_TIME: Final = "origin_server_ts"

# What canonical JSON has no form for is signed as Python's json writes it, so that one such fact
# does not cost the batch: NaN, Infinity, and \udXXX for a surrogate that stands alone.
_LAX_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)


class RefusedBatchError(BridgeError):
    """A batch is refused whole, and nothing of it is stored.

    Attributes:
        status, errcode, message: what is answered; the message quotes nothing that came in.
    """

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One value out of the batch.

    Attributes:
        canonical: as it was signed; what cannot be read is as it was written.
        fault: why it cannot be read, though it is JSON; None: it can.
    """

    value: object = field(repr=False)
    canonical: bytes = field(repr=False)
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What came in; nothing is checked but its shape.

    Attributes:
        origin_server_ts: when it was made, in ms since 1970, by the homeserver's clock.
        signed: the bytes that the signatures are of.
        digest: the same for the same facts, whenever they were signed and by whichever key.
        signatures: server name to key id to unpadded base64, as they came.
    """

    batch_id: str
    origin: str
    origin_server_ts: int
    signatures: object = field(repr=False)
    signed: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    facts: tuple[Piece, ...] = field(repr=False)

    def require_age(self, age_seconds: float) -> None:
        """Refuse what may have been taken and forgotten, and what would be remembered too short.

        A time ahead passes by itself, or one of the clocks is mended: until then it may come again.

        Raises:
            RefusedBatchError: it is of another time.
        """
        if age_seconds > MAX_AGE_DAYS * 86_400:
            ago = f"origin_server_ts is more than {MAX_AGE_DAYS} days ago, by the bridge's clock"
            raise RefusedBatchError(400, "M_INVALID_PARAM", ago)
        if age_seconds < -MAX_AHEAD_SECONDS:
            ahead = f"origin_server_ts is more than {MAX_AHEAD_SECONDS} seconds ahead"
            raise RefusedBatchError(503, "M_UNKNOWN", f"{ahead}, by the bridge's clock; send again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one fact of a batch.

    Attributes:
        kind: as the fact names it, or `unknown`.
        fact: None where it is refused.
    """

    kind: str
    fact: Fact | None
    told: Mapping[str, object]


def read_batch(body: bytes) -> Batch:
    """Take a request's body apart.

    Raises:
        RefusedBatchError: it is no JSON, or no batch, or too large a one.
    """
    try:
        raw = members(decode(body), any_depth=True, nan=True)
    except MalformedError:
        raise RefusedBatchError(400, "M_NOT_JSON", "the body is not a JSON object") from None
    facts = tuple(map(_piece, _facts(raw.pop("facts", ""))))
    pieces = {name: _piece(text) for name, text in raw.items()}
    return Batch(
        batch_id=_name(pieces, "batch_id"),
        origin=_name(pieces, "origin"),
        signatures=pieces["signatures"].value if "signatures" in pieces else None,
        origin_server_ts=_time(pieces),
        signed=_canonical_batch(pieces, facts, without=_NOT_SIGNED),
        digest=sha256(_canonical_batch(pieces, facts, without=_NOT_SIGNED | {_TIME})).digest(),
        facts=facts,
    )


def judge(batch: Batch, known: Container[str], wanted: Callable[[Fact], bool]) -> list[Verdict]:
    """What becomes of each fact, in order.

    Args:
        batch: whose signature holds.
        known: ids of the appservices that are registered.
        wanted: whether anyone takes a fact.
    """
    verdicts, rows = [], 0
    for piece in batch.facts:
        verdict = _judged(piece, known, wanted, room_for=MAX_ROWS - rows)
        rows += len(verdict.fact.rows) if verdict.fact else 0
        verdicts.append(verdict)
    return verdicts


def canonical(value: object) -> bytes:
    """Canonical JSON; of what has no such form, the one that is signed in its place."""
    try:
        return encode_canonical_json(value)
    except ValueError:
        return _LAX_ENCODER.encode(value).encode(errors="backslashreplace")


def _judged(
    piece: Piece, known: Container[str], wanted: Callable[[Fact], bool], *, room_for: int
) -> Verdict:
    kind = known_kind(piece.value)
    try:
        if piece.fault is not None:
            raise RefusedFactError("M_BAD_JSON", piece.fault)
        fact = read_fact(piece.value, encode_canonical_json)
        if fact.appservice_id is not None and fact.appservice_id not in known:
            raise RefusedFactError("M_NOT_FOUND", "no registration with this id is known here")
        if len(fact.rows) > room_for:
            message = f"more than {MAX_ROWS} users in one batch: send it in another"
            raise RefusedFactError("M_TOO_LARGE", message)
    except RefusedFactError as refused:
        told = {"status": "refused", "errcode": refused.errcode, "error": refused.message}
        return Verdict(kind=kind, fact=None, told=told)
    dropped: dict[str, object] = {} if wanted(fact) else {"dropped": True}
    return Verdict(kind=kind, fact=fact, told={"status": "accepted"} | dropped)


def _facts(array: str) -> list[str]:
    try:
        return elements(array, most=MAX_FACTS, nan=True)
    except TooManyError:
        message = f"more than {MAX_FACTS} facts: send them in several batches"
        raise RefusedBatchError(413, "M_TOO_LARGE", message) from None
    except MalformedError:
        raise RefusedBatchError(400, "M_BAD_JSON", "facts must be an array") from None


def _piece(text: str) -> Piece:
    try:
        require_shallow(text)
        value = json.loads(text)
        return Piece(value=value, canonical=canonical(value))
    except MalformedError:
        fault = "nests too deeply"
    except (ValueError, RecursionError):
        fault = "holds a number that is too long"
    return Piece(value=None, canonical=text.encode(), fault=fault)


def _name(pieces: Mapping[str, Piece], name: str) -> str:
    value = pieces[name].value if name in pieces else None
    if not isinstance(value, str):
        raise RefusedBatchError(400, "M_BAD_JSON", f"{name} must be a string")
    if not _NAME.fullmatch(value) or len(value.encode()) > MAX_ID_BYTES:
        message = f"{name} must be of 1 to {MAX_ID_BYTES} bytes, without U+0000"
        raise RefusedBatchError(400, "M_INVALID_PARAM", message)
    return value


def _time(pieces: Mapping[str, Piece]) -> int:
    value = pieces[_TIME].value if _TIME in pieces else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedBatchError(400, "M_BAD_JSON", f"{_TIME} must be an integer: ms since 1970")
    if not 0 <= value <= LARGEST_INTEGER:
        raise RefusedBatchError(400, "M_INVALID_PARAM", f"{_TIME} is no time")
    return value


def _canonical_batch(
    pieces: Mapping[str, Piece], facts: tuple[Piece, ...], *, without: Container[str]
) -> bytes:
    """Canonical JSON of the batch, out of that of its parts."""
    parts = {name: piece.canonical for name, piece in pieces.items() if name not in without}
    parts["facts"] = b"[" + b",".join(piece.canonical for piece in facts) + b"]"
    return b"{" + b",".join(canonical(name) + b":" + parts[name] for name in sorted(parts)) + b"}"
