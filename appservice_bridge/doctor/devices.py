"""The devices of the appservices' users: whoever has no keys can be sent nothing in secret."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.domain.owners import Owners
from appservice_bridge.storage import devices, synapse
from appservice_bridge.storage.database import Connection
from appservice_bridge.storage.devices import DeviceSeen

FEW_KEYS: Final = 10
PAGE: Final = 1000
MOST_NAMED: Final = 5

_LOG_IN: Final = "if they are to read encrypted rooms, let the appservice make a device (MSC4190)"
_UPLOAD: Final = "let the appservice upload keys (POST /_matrix/client/v3/keys/upload)"


@dataclass(frozen=True, slots=True)
class Lack:
    """What a user or device may lack, and when it does."""

    code: str
    what: str
    mend: str
    holds: Callable[[DeviceSeen], bool]


LACKS: Final = (
    Lack(
        "no_device",
        "users without a device, who can be sent nothing encrypted",
        _LOG_IN,
        lambda one: one.device_id is None,
    ),
    Lack(
        "no_keys",
        "devices without any key to claim",
        _UPLOAD,
        lambda one: one.device_id is not None and not one.one_time_keys and not one.fallback,
    ),
    Lack(
        "few_keys",
        f"devices with fewer than {FEW_KEYS} one-time keys",
        _UPLOAD,
        lambda one: 0 < one.one_time_keys < FEW_KEYS,
    ),
    Lack(
        "no_fallback_key",
        "devices without a fallback key",
        _UPLOAD,
        lambda one: one.one_time_keys > 0 and not one.fallback,
    ),
)


async def devices_lacking(conn: Connection, owners: Owners) -> list[Finding]:
    """What the users of encrypted appservices lack; reads all users, a page at a time.

    Raises:
        SourceUnreadableError: the homeserver's tables are not as they were.
    """
    seen: dict[str, list[DeviceSeen]] = {id_: [] for id_ in owners.encrypted}
    after = ""
    while page := await synapse.users_page(conn, after=after, size=PAGE):
        owned = [user_id for user_id in page if owners.of(user_id)]
        for device in await devices.keys_left(conn, owned) if owned else ():
            for appservice_id in owners.of(device.user_id):
                seen[appservice_id].append(device)
        after = page[-1]
    return [finding for id_, of in seen.items() for finding in _lacking(id_, of)]


def _lacking(appservice_id: str, seen: Sequence[DeviceSeen]) -> Iterator[Finding]:
    for lack in LACKS:
        if of := [one for one in seen if lack.holds(one)]:
            yield Finding(
                code=lack.code,
                what=f"{lack.what} ({len(of)}): {_names(of)}",
                mend=lack.mend,
                level=Level.DOUBT,
                appservice=appservice_id,
            )


def _names(of: Sequence[DeviceSeen]) -> str:
    names = [f"{one.user_id} {one.device_id or ''}".strip() for one in of[:MOST_NAMED]]
    more = [f"and {len(of) - MOST_NAMED} more"] if len(of) > MOST_NAMED else []
    return ", ".join(names + more)
