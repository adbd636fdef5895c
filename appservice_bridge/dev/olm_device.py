"""The Olm side of a bot's device: its keys, and sessions with other people's devices."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import vodozemac
from canonicaljson import encode_canonical_json
from vodozemac import Account, AnyOlmMessage, Curve25519PublicKey, Ed25519PublicKey, Session

JsonDict = dict[str, Any]
OLM: Final = "m.olm.v1.curve25519-aes-sha2"
MEGOLM: Final = "m.megolm.v1.aes-sha2"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDevice:
    """Someone's device whose keys carry its own valid signature."""

    user_id: str
    device_id: str
    ed25519: str
    curve25519: str

    @classmethod
    def from_keys(cls, user_id: str, device_id: str, keys: JsonDict) -> "PeerDevice | None":
        """Read one device from an answer of /keys/query; None if it is not what it claims."""
        try:
            device = cls(
                user_id=user_id,
                device_id=device_id,
                ed25519=keys["keys"][f"ed25519:{device_id}"],
                curve25519=keys["keys"][f"curve25519:{device_id}"],
            )
            claimed = (keys["user_id"], keys["device_id"])
            device.check_signature(keys)
        except (KeyError, TypeError, ValueError):
            return None
        return device if claimed == (user_id, device_id) else None

    def check_signature(self, signed: JsonDict) -> None:
        """Raises: ValueError, KeyError: this device did not sign that object."""
        signature = signed["signatures"][self.user_id][f"ed25519:{self.device_id}"]
        Ed25519PublicKey.from_base64(self.ed25519).verify_signature(
            _to_be_signed(signed), vodozemac.Ed25519Signature.from_base64(signature)
        )


@dataclass(slots=True)
class OlmDevice:
    """One device of one user.

    Everything is in memory; a bot that must survive a restart stores `account` and the
    sessions (each has `pickle`) before it acknowledges a transaction.
    """

    user_id: str
    device_id: str
    account: Account = field(default_factory=Account)
    _sessions: dict[str, list[Session]] = field(default_factory=dict, init=False)

    @property
    def curve25519(self) -> str:
        """The key that Olm messages are addressed to."""
        return self.account.curve25519_key.to_base64()

    def device_keys(self) -> JsonDict:
        """What /keys/upload takes as `device_keys`."""
        return self._signed(
            {
                "user_id": self.user_id,
                "device_id": self.device_id,
                "algorithms": [OLM, MEGOLM],
                "keys": {
                    f"curve25519:{self.device_id}": self.curve25519,
                    f"ed25519:{self.device_id}": self.account.ed25519_key.to_base64(),
                },
            }
        )

    def new_one_time_keys(self, count: int) -> JsonDict:
        """What /keys/upload takes as `one_time_keys`; call `mark_published` once it did."""
        self.account.generate_one_time_keys(count)
        return self._signed_keys(self.account.one_time_keys, {})

    def new_fallback_key(self) -> JsonDict:
        """What /keys/upload takes as `fallback_keys`; call `mark_published` once it did."""
        account: Any = self.account  # the stubs of vodozemac 0.10 lack the fallback key
        account.generate_fallback_key()
        return self._signed_keys(account.fallback_key, {"fallback": True})

    def mark_published(self) -> None:
        """The homeserver has the new keys."""
        self.account.mark_keys_as_published()

    def decrypt(self, message: JsonDict) -> JsonDict:
        """Open an encrypted to-device message that is addressed to this device.

        Raises:
            ValueError, KeyError: it is not for us, not from whom it says, or cannot be opened.
        """
        content = message["content"]
        part = content["ciphertext"][self.curve25519]
        body = AnyOlmMessage.from_parts(part["type"], decode_base64(part["body"]))
        payload: JsonDict = json.loads(self._decrypt_body(content["sender_key"], body))
        own_key = self.account.ed25519_key.to_base64()
        if (payload["sender"], payload["recipient"], payload["recipient_keys"]["ed25519"]) != (
            message["sender"], self.user_id, own_key,
        ):  # fmt: skip
            raise ValueError("sender or recipient inside the Olm message differ from the outside")
        return payload

    def start_session(self, device: PeerDevice, claimed: JsonDict) -> None:
        """Begin to talk to a device with a one-time key that it signed.

        Raises:
            ValueError, KeyError: the signature is wrong.
        """
        device.check_signature(claimed)
        session = self.account.create_outbound_session(
            Curve25519PublicKey.from_base64(device.curve25519),
            Curve25519PublicKey.from_base64(claimed["key"]),
        )
        self._sessions.setdefault(device.curve25519, []).insert(0, session)

    def has_session(self, device: PeerDevice) -> bool:
        """Whether `encrypt` can reach that device."""
        return bool(self._sessions.get(device.curve25519))

    def encrypt(self, device: PeerDevice, kind: str, content: JsonDict) -> JsonDict:
        """The content of an `m.room.encrypted` to-device message for one device."""
        payload = {
            "type": kind,
            "content": content,
            "sender": self.user_id,
            "recipient": device.user_id,
            "recipient_keys": {"ed25519": device.ed25519},
            "keys": {"ed25519": self.account.ed25519_key.to_base64()},
        }
        session = self._sessions[device.curve25519][0]
        message_type, body = session.encrypt(json.dumps(payload).encode()).to_parts()
        return {
            "algorithm": OLM,
            "sender_key": self.curve25519,
            "ciphertext": {device.curve25519: {"type": message_type, "body": encode_base64(body)}},
        }

    def _decrypt_body(self, sender_key: str, body: AnyOlmMessage) -> bytes:
        sessions = self._sessions.setdefault(sender_key, [])
        first = body.to_pre_key()
        for session in list(sessions):
            if first is not None and not session.session_matches(first):
                continue
            try:
                plain = session.decrypt(body)
            except vodozemac.OlmDecryptionException:
                continue
            sessions.remove(session)
            sessions.insert(0, session)  # the one in use is the one to answer on
            return plain
        if first is None:
            raise ValueError("no Olm session opens this message")
        sender = Curve25519PublicKey.from_base64(sender_key)
        session, plain = self.account.create_inbound_session(sender, first)
        sessions.insert(0, session)
        return plain

    def _signed_keys(
        self, keys: Mapping[str, Curve25519PublicKey], extra: dict[str, bool]
    ) -> JsonDict:
        return {
            f"signed_curve25519:{key_id}": self._signed({"key": key.to_base64(), **extra})
            for key_id, key in keys.items()
        }

    def _signed(self, content: JsonDict) -> JsonDict:
        signature = self.account.sign(_to_be_signed(content)).to_base64()
        return {
            **content,
            "signatures": {self.user_id: {f"ed25519:{self.device_id}": signature}},
        }


def encode_base64(raw: bytes) -> str:
    """Base64 as Matrix writes it, without padding."""
    return base64.b64encode(raw).decode("ascii").rstrip("=")


def decode_base64(text: str) -> bytes:
    """Base64 as Matrix writes it, without padding."""
    return base64.b64decode(text + "=" * (-len(text) % 4))


def _to_be_signed(content: JsonDict) -> bytes:
    return encode_canonical_json(
        {key: value for key, value in content.items() if key not in ("signatures", "unsigned")}
    )
