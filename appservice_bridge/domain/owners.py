"""Which appservices a local user's facts go to."""

import hashlib
from collections.abc import Container, Iterable
from functools import lru_cache
from typing import Final

from appservice_bridge.domain.registration import Registration

ROUTING: Final = 1
"""Rises when a release routes facts that the one before does not know: it must not consume them."""


class Owners:
    """The registrations that take delivery, asked for the owners of a user.

    One without a transport is not among them: nothing is captured, tracked or stored for it.
    One that is not `encrypted` gets what the relay brings for it, and owns nobody.

    Attributes:
        native_fields: what the homeserver's own transactions tell of devices is taken: nothing
            else tells of it. With Synapse the triggers do, and it would come twice.
    """

    def __init__(
        self,
        registrations: Iterable[Registration],
        *,
        server_name: str,
        encrypted: Container[str] | None = None,
        native_fields: bool = False,
    ) -> None:
        self.registrations = {
            registration.id: registration
            for registration in sorted(registrations, key=lambda r: r.id)
        }
        self.server_name = server_name
        self.native_fields = native_fields
        self._encrypted = self.registrations if encrypted is None else encrypted
        self.encrypted = tuple(id_ for id_ in self.registrations if id_ in self._encrypted)
        self.of = lru_cache(maxsize=65_536)(self._of)

    def _of(self, user_id: str) -> tuple[str, ...]:
        """Ids of the appservices that get this user's facts, ascending; of a foreign user, none."""
        return tuple(
            appservice_id
            for appservice_id, registration in self.registrations.items()
            if appservice_id in self._encrypted
            and registration.owns(user_id, server_name=self.server_name)
        )

    def takes_encryption(self, appservice_id: str) -> bool:
        """Whether it gets to-device messages, device lists and key counts at all."""
        return appservice_id in self.registrations and appservice_id in self._encrypted

    def namespaces_digest(self, appservice_id: str) -> bytes:
        """Changes when the set of users of this appservice may have changed: 32 bytes."""
        registration = self.registrations[appservice_id]
        parts = [self.server_name, registration.sender_localpart]
        parts.append(str(appservice_id in self._encrypted))
        parts += [namespace.regex for namespace in registration.users]
        return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).digest()

    def digest(self) -> bytes:
        """Changes when any fact might be routed otherwise, by anyone or any release: 32 bytes."""
        parts = [(id_, self.namespaces_digest(id_)) for id_ in self.registrations]
        rules = (ROUTING, self.native_fields)
        return hashlib.sha256(repr((rules, parts)).encode(errors="surrogatepass")).digest()
