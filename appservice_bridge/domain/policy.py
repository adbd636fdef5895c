"""How transactions are cut and sent to one appservice."""

from dataclasses import dataclass, field

from appservice_bridge.domain.backoff import Backoff
from appservice_bridge.domain.expiry import Expiry
from appservice_bridge.domain.refusals import Thresholds
from appservice_bridge.domain.transaction import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """The operator's `delivery` settings for one appservice, and some that nobody has to set.

    Attributes:
        max_items: most items in one transaction; at least 1.
        max_body_bytes: most bytes of a body, unless a single item is larger.
        timeout_seconds: longest wait for an answer, connecting included.
        thresholds: of what follows refusals.
        least_body_cap_bytes: below it no 413 lowers the cap.
        keep_delivered_seconds: how long what was acknowledged may be replayed; 0: not at all.
    """

    profile: Profile = Profile.UNSTABLE
    max_items: int = 1000
    max_body_bytes: int = 900_000
    timeout_seconds: float = 60.0
    backoff: Backoff = field(default_factory=Backoff)
    thresholds: Thresholds = field(default_factory=Thresholds)
    least_body_cap_bytes: int = 8192
    keep_delivered_seconds: float = 0.0
    expiry: Expiry = field(default_factory=Expiry)
