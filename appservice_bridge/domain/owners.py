"""Which appservices a local user's facts go to."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from appservice_bridge.domain.registration import Registration


class Owners:
    """The registrations that take delivery, asked for the owners of a user.

    One without a transport is not among them: nothing is captured, tracked or stored for it.
    """

    def __init__(self, registrations: Iterable[Registration], *, server_name: str) -> None:
        self.registrations = {
            registration.id: registration
            for registration in sorted(registrations, key=lambda r: r.id)
        }
        self.server_name = server_name
        self.of = lru_cache(maxsize=65_536)(self._of)

    def _of(self, user_id: str) -> tuple[str, ...]:
        """Ids of the appservices that own this user, ascending; of a foreign user, none."""
        return tuple(
            appservice_id
            for appservice_id, registration in self.registrations.items()
            if registration.owns(user_id, server_name=self.server_name)
        )

    def namespaces_digest(self, appservice_id: str) -> bytes:
        """Changes when the set of users of this appservice may have changed: 32 bytes."""
        registration = self.registrations[appservice_id]
        parts = [self.server_name, registration.sender_localpart]
        parts += [namespace.regex for namespace in registration.users]
        return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).digest()

    def digest(self) -> bytes:
        """Changes when any fact might be routed otherwise: 32 bytes."""
        parts = [(id_, self.namespaces_digest(id_)) for id_ in self.registrations]
        return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).digest()
