"""What a lane sends with, whatever the transport."""

from typing import Protocol, runtime_checkable

from appservice_bridge.domain.outcome import Outcome


class Sender(Protocol):
    """Brings a transaction to one appservice, once."""

    async def send(self, txn_id: str, body: bytes, *, now: float) -> Outcome:
        """One attempt; `now` is the event loop's time. No failure of the transport is raised.

        It may be cancelled: then the transaction may have arrived.
        """
        ...


@runtime_checkable
class PingingSender(Sender, Protocol):
    """One that can also ask whether the appservice is well; without it nothing is a suspect."""

    async def ping(self) -> bool:
        """Whether the appservice answered a ping with 2xx just now."""
        ...
