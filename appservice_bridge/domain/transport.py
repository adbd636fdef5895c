"""How an appservice gets its transactions."""

from enum import StrEnum


class Transport(StrEnum):
    """Who connects to whom.

    Attributes:
        HTTP: the bridge sends each transaction to the appservice's url.
        WEBSOCKET: the appservice connects, and transactions are sent over its connection.
        POLL: the appservice asks for each transaction.
    """

    HTTP = "http"
    WEBSOCKET = "websocket"
    POLL = "poll"

    @property
    def comes_to_us(self) -> bool:
        """Whether the appservice connects to the bridge, whose worker then has its lane."""
        return self is not Transport.HTTP
