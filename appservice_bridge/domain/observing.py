"""Who counts what becomes of deliveries."""

from typing import Final, Protocol

from appservice_bridge.domain.outcome import Outcome


class DeliveryObserver(Protocol):
    """Is told by lanes; a call is a few additions, and never fails or waits."""

    def attempted(self, appservice_id: str, outcome: Outcome) -> None:
        """An attempt ended; of an appservice that asks, only the ack is known."""

    def delivered(
        self, appservice_id: str, *, items: int, captured: tuple[float, float] | None
    ) -> None:
        """An ack is committed.

        Args:
            appservice_id: whose.
            items: how many it acknowledged.
            captured: when the first and the last of them were, by `time.monotonic()`; None where
                there are none.
        """


class _Unobserved:
    def attempted(self, appservice_id: str, outcome: Outcome) -> None:
        pass

    def delivered(
        self, appservice_id: str, *, items: int, captured: tuple[float, float] | None
    ) -> None:
        pass


UNOBSERVED: Final[DeliveryObserver] = _Unobserved()
