"""How transactions are cut and sent to one appservice."""

from dataclasses import dataclass, field

from appservice_bridge.domain.backoff import Backoff
from appservice_bridge.domain.transaction import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """The operator's `delivery` settings for one appservice.

    Attributes:
        max_items: most items in one transaction; at least 1.
        max_body_bytes: most bytes of a body, unless a single item is larger.
        timeout_seconds: longest wait for an answer, connecting included.
    """

    profile: Profile = Profile.UNSTABLE
    max_items: int = 1000
    max_body_bytes: int = 900_000
    timeout_seconds: float = 60.0
    backoff: Backoff = field(default_factory=Backoff)
