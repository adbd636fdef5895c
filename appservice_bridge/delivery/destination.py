"""Where a lane leads."""

from dataclasses import dataclass

from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.registration import Registration
from appservice_bridge.domain.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """An appservice that takes delivery, and how it wants it."""

    registration: Registration
    policy: DeliveryPolicy
    transport: Transport = Transport.HTTP
