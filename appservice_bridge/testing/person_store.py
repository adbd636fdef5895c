"""Where a test's person keeps nothing: nio has all of it in memory, and asks only at the start."""

from collections.abc import Iterable
from typing import Any, Final

from nio.crypto import (
    DeviceStore,
    GroupSessionStore,
    OlmAccount,
    OlmDevice,
    SessionStore,
    TrustState,
)
from nio.store import MatrixStore

ONE_TIME_KEYS: Final = 10


class PersonAccount(OlmAccount):  # type: ignore[misc]
    """An account that publishes few one-time keys; each is signed, sent, stored and counted."""

    @property
    def max_one_time_keys(self) -> int:
        """As many as the client keeps at the homeserver."""
        return ONE_TIME_KEYS


class PersonStore(MatrixStore):  # type: ignore[misc]
    """What nio's stores do, without a database, which costs more than the encryption itself."""

    def __post_init__(self) -> None:
        """No file and no tables."""

    def load_account(self) -> PersonAccount:
        """A fresh one: nobody was this device before."""
        return PersonAccount()

    def load_sessions(self) -> Any:
        """None yet."""
        return SessionStore()

    def load_inbound_group_sessions(self) -> Any:
        """None yet."""
        return GroupSessionStore()

    def load_device_keys(self) -> Any:
        """None yet."""
        return DeviceStore()

    def load_encrypted_rooms(self) -> set[str]:
        """None yet."""
        return set()

    def load_outgoing_key_requests(self) -> dict[str, Any]:
        """None yet."""
        return {}

    def load_sync_token(self) -> None:
        """None yet."""

    def _not_kept(self, *_: object) -> None:
        """The client has it."""

    save_account = save_session = save_inbound_group_session = _not_kept
    save_device_keys = save_encrypted_rooms = delete_encrypted_room = _not_kept
    save_sync_token = add_outgoing_key_request = remove_outgoing_key_request = _not_kept

    def verify_device(self, device: OlmDevice) -> bool:
        """Whether it was not verified before."""
        return _become(device, TrustState.verified)

    def unverify_device(self, device: OlmDevice) -> bool:
        """Whether it was verified before."""
        return _cease(device, TrustState.verified)

    def is_device_verified(self, device: OlmDevice) -> bool:
        """Whether it is."""
        return bool(device.verified)

    def blacklist_device(self, device: OlmDevice) -> bool:
        """Whether it was not blacklisted before."""
        return _become(device, TrustState.blacklisted)

    def unblacklist_device(self, device: OlmDevice) -> bool:
        """Whether it was blacklisted before."""
        return _cease(device, TrustState.blacklisted)

    def is_device_blacklisted(self, device: OlmDevice) -> bool:
        """Whether it is."""
        return bool(device.blacklisted)

    def ignore_device(self, device: OlmDevice) -> bool:
        """Whether it was not ignored before."""
        return _become(device, TrustState.ignored)

    def unignore_device(self, device: OlmDevice) -> bool:
        """Whether it was ignored before."""
        return _cease(device, TrustState.ignored)

    def is_device_ignored(self, device: OlmDevice) -> bool:
        """Whether it is."""
        return bool(device.ignored)

    def ignore_devices(self, devices: Iterable[OlmDevice]) -> None:
        """All of them."""
        for device in devices:
            _become(device, TrustState.ignored)


def _become(device: OlmDevice, state: TrustState) -> bool:
    if device.trust_state == state:
        return False
    device.trust_state = state
    return True


def _cease(device: OlmDevice, state: TrustState) -> bool:
    if device.trust_state != state:
        return False
    device.trust_state = TrustState.unset
    return True
