"""Registers users at a homeserver whose shared secret we hold."""

import hashlib
import hmac
from contextlib import nullcontext
from typing import Any

import aiohttp

from appservice_bridge.domain.errors import BridgeError


class RegistrationRefusedError(BridgeError):
    """The homeserver did not register the user; `errcode` says why (M_USER_IN_USE …)."""

    def __init__(self, localpart: str, errcode: str) -> None:
        super().__init__(f"the homeserver did not register {localpart}: {errcode}")
        self.localpart = localpart
        self.errcode = errcode


async def register_user(
    homeserver_url: str,
    *,
    shared_secret: str,
    localpart: str,
    password: str,
    admin: bool = False,
    http: aiohttp.ClientSession | None = None,
) -> dict[str, Any]:
    """Register a user; the answer has `user_id`, `access_token` and `device_id`.

    Whoever registers many lends `http`, so that not each of them has connections of its own.

    Raises:
        RegistrationRefusedError: the name is taken or the secret is wrong.
    """
    url = f"{homeserver_url}/_synapse/admin/v1/register"
    async with nullcontext(http) if http else aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            nonce = (await response.json())["nonce"]
        words = (nonce, localpart, password, "admin" if admin else "notadmin")
        request = {
            "nonce": nonce,
            "username": localpart,
            "password": password,
            "admin": admin,
            "mac": _mac(shared_secret, words),
        }
        async with session.post(url, json=request) as response:
            answer: dict[str, Any] = await response.json()
    if "user_id" not in answer:
        raise RegistrationRefusedError(localpart, answer.get("errcode", "M_UNKNOWN"))
    return answer


def _mac(shared_secret: str, words: tuple[str, ...]) -> str:
    text = "\0".join(words).encode()
    return hmac.new(shared_secret.encode(), text, hashlib.sha1).hexdigest()
