"""One attempt over an appservice's websocket: a frame, and the answer that names it."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from appservice_bridge.domain.outcome import Acked, Outcome, Refused, Unreachable

# What an error says of what it was sent; any other may as well be the appservice's own fault, and
# is told as an outage.
ACCUSING: Final = {
    "M_BAD_JSON": 400,
    "M_INVALID_PARAM": 400,
    "M_MISSING_PARAM": 400,
    "M_NOT_JSON": 400,
    "M_TOO_LARGE": 413,
}
REFUSED_STATUS: Final = 500
_CODE: Final = re.compile(r"[A-Z][A-Z0-9_.]{1,63}")


class Ending(StrEnum):
    """Why a connection ends, in the words that mautrix bridges know.

    Attributes:
        FLOODED: the appservice sent more than anyone asked for.
        GONE: it closed the connection, or is not heard any more.
    """

    REPLACED = "conn_replaced"
    UNACKNOWLEDGED = "transactions_not_acknowledged"
    GOING_AWAY = "server_shutting_down"
    FLOODED = "too_many_messages"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight:
    number: int
    txn_id: str
    answer: asyncio.Future[Outcome]


class WebsocketSender:
    """Sends transactions over one connection, for as long as it lasts.

    Attributes:
        over: set as soon as the connection is to be closed; `ending` then says why.
    """

    def __init__(
        self, write: Callable[[bytes], Awaitable[None]], *, timeout_seconds: float
    ) -> None:
        self.over = asyncio.Event()
        self.ending: Ending | None = None
        self._write = write
        self._timeout_seconds = timeout_seconds
        self._number = 0
        self._in_flight: _InFlight | None = None

    def end(self, ending: Ending) -> None:
        """Let the connection be closed, without waiting for an answer; the first reason counts."""
        if self.ending is None:
            self.ending = ending
        self.over.set()
        if self._in_flight is not None and not self._in_flight.answer.done():
            self._in_flight.answer.set_result(Unreachable(reason="disconnected"))

    async def send(self, txn_id: str, body: bytes, *, now: float) -> Outcome:
        """Send once, and wait for the answer; without one the connection ends.

        Cancelled, because the lease ran out, it ends the connection, too: what is left of the
        frame must not be sent.
        """
        if self.over.is_set():
            return Unreachable(reason="disconnected", unsent=True)
        self._number += 1
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._in_flight = _InFlight(number=self._number, txn_id=txn_id, answer=answer)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._write(frame(self._number, txn_id, body))
                return await answer
        except TimeoutError:
            self.end(Ending.UNACKNOWLEDGED)
            return Unreachable(reason="timeout")
        except OSError:
            self.end(Ending.GONE)
            return Unreachable(reason="disconnected")
        except asyncio.CancelledError:
            self.end(Ending.GOING_AWAY)
            raise
        finally:
            self._in_flight = None

    def settle(self, message: dict[str, Any]) -> bool:
        """Take the answer to what is in flight; False if the message is none."""
        flying = self._in_flight
        if flying is None or not _is(message.get("id"), flying.number):
            return False
        data = message.get("data")
        match message.get("command"):
            case "response" if isinstance(data, dict) and data.get("txn_id") == flying.txn_id:
                outcome: Outcome = Acked(status=200)
            case "error":
                code = _code(data)
                outcome = Refused(status=ACCUSING.get(code or "", REFUSED_STATUS), errcode=code)
            case _:
                return False
        if not flying.answer.done():
            flying.answer.set_result(outcome)
        return True


def frame(number: int, txn_id: str, body: bytes) -> bytes:
    """A transaction as it is sent: the body's bytes behind what the protocol puts first."""
    first = b'{"id":%d,"command":"transaction","status":"ok","txn_id":%s,'
    return first % (number, orjson.dumps(txn_id)) + body[1:]


def reply_to(message: dict[str, Any]) -> bytes | None:
    """What to answer to a message that answers nothing itself; None: nothing."""
    number, command = message.get("id"), message.get("command")
    if not isinstance(number, int) or isinstance(number, bool) or not number:
        return None
    if command in ("response", "error"):
        return None
    if command == "ping":
        now = {"timestamp": time.time_ns() // 1_000_000}
        return orjson.dumps({"id": number, "command": "response", "data": now})
    unknown = {"code": "M_UNRECOGNIZED", "message": "appservice_bridge knows no such command"}
    return orjson.dumps({"id": number, "command": "error", "data": unknown})


def _is(value: object, number: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == number


def _code(data: object) -> str | None:
    code = data.get("code") if isinstance(data, dict) else None
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None
