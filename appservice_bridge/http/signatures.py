"""Whether the homeserver signed a batch."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from unpaddedbase64 import decode_base64

from appservice_bridge.http.batch import Batch, RefusedBatchError
from appservice_bridge.http.homeserver_keys import HomeserverKeys

_MOST_SIGNATURES: Final = 20


async def require_signature(batch: Batch, keys: HomeserverKeys) -> None:
    """See that one of the origin's current keys signed the batch; one is enough.

    Raises:
        RefusedBatchError: none did.
        KeysUnavailableError: it cannot be told now.
    """
    shown = _of_origin(batch)
    if not shown:
        raise RefusedBatchError(401, "M_UNAUTHORIZED", "signatures holds none of the origin")
    known = await keys.find(shown)
    if not known:
        raise RefusedBatchError(401, "M_UNAUTHORIZED", "it is signed with no key that is known")
    checks = [(key, shown[key_id]) for key_id, key in known.items()]
    if not await asyncio.to_thread(_any_holds, checks, batch.signed):
        raise RefusedBatchError(403, "M_FORBIDDEN", "the signature does not match the batch")


def _of_origin(batch: Batch) -> Mapping[str, str]:
    of_servers = batch.signatures if isinstance(batch.signatures, dict) else {}
    of_origin = of_servers.get(batch.origin)
    if not isinstance(of_origin, dict) or len(of_origin) > _MOST_SIGNATURES:
        return {}
    return {
        key_id: signature
        for key_id, signature in of_origin.items()
        if key_id.startswith("ed25519:") and isinstance(signature, str)
    }


def _any_holds(checks: list[tuple[Any, str]], signed: bytes) -> bool:
    return any(_holds(key, signature, signed) for key, signature in checks)


def _holds(key: Any, signature: str, signed: bytes) -> bool:
    try:
        key.verify(signed, decode_base64(signature))
    except Exception:  # whatever is wrong with it, it is no signature of this
        return False
    return True
