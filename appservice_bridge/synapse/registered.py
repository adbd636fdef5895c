"""The appservices that Synapse knows: whose users they own, and what it sends them by itself."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from appservice_bridge.domain.owners import Owners
from appservice_bridge.domain.registration import Namespace, Registration

if TYPE_CHECKING:
    from synapse.appservice import ApplicationService

TO_DEVICE: Final = "msc2409_to_device_messages_enabled"
EXTENSIONS: Final = "msc3202_transaction_extensions"


def owners(services: "Iterable[ApplicationService]", *, server_name: str) -> Owners:
    """Who owns a user, as far as the homeserver's copies of the registrations say.

    They cannot say whether the bridge delivers encryption data: whoever has a url owns its users.
    """
    registrations = [_registration(service) for service in services if service.url]
    return Owners(registrations, server_name=server_name)


def _registration(service: "ApplicationService") -> Registration:
    return Registration(
        id=service.id,
        url=service.url,
        as_token="",
        hs_token="",
        sender_localpart=service.sender.localpart,
        users=tuple(
            Namespace(regex=one.regex.pattern, exclusive=one.exclusive)
            for one in service.namespaces["users"]
        ),
        source="homeserver.yaml",
    )


def native_deliveries(flags: object, services: "Iterable[ApplicationService]") -> Iterator[str]:
    """What Synapse would deliver beside the bridge, and the line to change, a sentence each.

    To-device messages go to who receives ephemeral events, device lists and key counts to who asks
    for them with org.matrix.msc3202; nothing without the flag, and nothing without a url. A flag
    that a release of Synapse's does not know is off.
    """
    reached = [service for service in services if service.url]
    to_device = [service.id for service in reached if _receives_ephemeral(service)]
    if getattr(flags, TO_DEVICE, False) and to_device:
        yield (
            f"Synapse itself sends to-device messages to {_names(to_device)}, beside the bridge: "
            f"set `{TO_DEVICE}: false` below experimental_features in homeserver.yaml"
        )
    extended = [service.id for service in reached if service.msc3202_transaction_extensions]
    if getattr(flags, EXTENSIONS, False) and extended:
        yield (
            f"Synapse itself sends device lists and key counts to {_names(extended)}, beside the "
            f"bridge: set `{EXTENSIONS}: false` below experimental_features in homeserver.yaml, "
            "or `org.matrix.msc3202: false` in the homeserver's copies of those registrations"
        )


def _receives_ephemeral(service: "ApplicationService") -> bool:
    """Under the name of the spec or the older one, which not every release of Synapse's knows."""
    return service.supports_ephemeral or getattr(service, "supports_unstable_ephemeral", False)


def _names(ids: list[str]) -> str:
    return ", ".join(sorted(ids))
