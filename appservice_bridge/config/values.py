"""The kinds of values that config and registrations share, and what each refuses."""

import base64
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo

from appservice_bridge.config.files import read_secret, read_text

_SERVER_NAME: Final = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_KEY_ID: Final = re.compile(r"ed25519:[A-Za-z0-9_]{1,255}")
_KEY_BYTES: Final = 32
_HIGHEST_PORT: Final = 65_535
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ENCRYPTED_KEY: Final = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server listens or is spoken to.

    Attributes:
        host: a name or address; IPv6 without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_everywhere(self) -> bool:
        """Whether it stands for all addresses of the machine: good to listen on, not to call."""
        return self.host in _EVERYWHERE

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def answers_for(self, other: "Endpoint") -> bool:
        """Whether a call to `other` may end up at a server listening here."""
        if self.port != other.port:
            return False
        if self.is_loopback or self.is_everywhere:
            return other.is_loopback or other.is_everywhere
        return self.host.lower() == other.host.lower()


def parse_endpoint(value: object) -> Endpoint:
    """Read `host:port`, IPv6 in brackets.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, Endpoint):
        return value
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host:
        raise ValueError("must have an IPv6 address in brackets, like [::1]:9009")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or any(map(str.isspace, host)):
        raise ValueError("must be host:port, like 127.0.0.1:9009")
    if not 1 <= int(port) <= _HIGHEST_PORT:
        raise ValueError("must have a port from 1 to 65535")
    return Endpoint(host=host, port=int(port))


def endpoint_of(url: str) -> Endpoint:
    """Whom a checked http or https URL speaks to."""
    parts = urlsplit(url)
    return Endpoint(host=parts.hostname or "", port=parts.port or _DEFAULT_PORTS[parts.scheme])


def split_url(value: str) -> SplitResult:
    """Take a URL or DSN apart.

    Raises:
        ValueError: it cannot be; the message does not quote it, for it may hold a password.
    """
    try:
        return urlsplit(value)
    except ValueError:
        raise ValueError("cannot be read as a URL: look at its host") from None


def http_url(value: str) -> str:
    """Check a URL to which paths are appended; a trailing slash goes.

    Raises:
        ValueError: not http or https, no host, a bad port, credentials, query or fragment.
    """
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError("must not hold spaces or control characters")
    parts = split_url(value)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("must be like http://127.0.0.1:29300, with scheme http or https")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password: the token is what authenticates")
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise ValueError("must end with its path: requests are appended to it")
    try:
        parts.port  # noqa: B018 - reading it is the check
    except ValueError:
        raise ValueError("has a port that is not from 0 to 65535") from None
    return value.rstrip("/")


def plain_text(value: str) -> str:
    """Check text that must fit into a database and a header.

    Raises:
        ValueError: empty, holds U+0000, or a lone surrogate.
    """
    if not value:
        raise ValueError("must not be empty")
    if "\0" in value:
        raise ValueError("must not hold U+0000")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not hold a lone surrogate")
    return value


def server_name(value: str) -> str:
    """Check a server name: `example.org`, `example.org:8448`, `[::1]:8448`.

    Raises:
        ValueError: anything else, a URL above all.
    """
    if not _SERVER_NAME.fullmatch(value):
        raise ValueError("must be the part of user ids after the colon, like example.org")
    return value


def key_id(value: str) -> str:
    """Check the id of a signing key: `ed25519:a_1`.

    Raises:
        ValueError: anything else.
    """
    if not _KEY_ID.fullmatch(value):
        raise ValueError("must be keys by id, like ed25519:a_1")
    return value


def verify_key(value: str) -> str:
    """Check the public half of an Ed25519 key: 32 bytes in unpadded base64.

    Raises:
        ValueError: anything else.
    """
    try:
        key = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError("must be the public half of the key: 32 bytes in unpadded base64")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _switch(value: object) -> object:
    # YAML 1.1 reads a bare on or off as true or false.
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _located(value: Path, info: ValidationInfo) -> Path:
    context: dict[str, Any] = info.context or {}
    return Path(context.get("base", "."), value).absolute()


def _checked_secret(value: Path) -> Path:
    try:
        read_secret(value)
    except ValueError as error:
        raise ValueError(f"{value}: {error}") from None
    return value


def _checked_text(value: Path) -> Path:
    try:
        read_text(value)
    except ValueError as error:
        raise ValueError(f"{value}: {error}") from None
    return value


def _checked_key(value: Path) -> Path:
    """Nobody is there to type a passphrase, and nothing may wait for one."""
    if any(mark in read_text(_checked_text(value)) for mark in _ENCRYPTED_KEY):
        raise ValueError(
            f"{value}: the key has a passphrase, which nobody types for a service; write one "
            f"without: openssl pkey -in {value.name} -out key.pem"
        )
    return value


Listen = Annotated[Endpoint, PlainValidator(parse_endpoint)]
HttpUrl = Annotated[str, AfterValidator(http_url)]
ServerName = Annotated[str, AfterValidator(server_name)]
KeyId = Annotated[str, AfterValidator(key_id)]
VerifyKey = Annotated[str, AfterValidator(verify_key)]
PlainText = Annotated[str, AfterValidator(plain_text)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=3600, allow_inf_nan=False)]
"""A duration in seconds: above zero, an hour at most."""
TermSeconds = Annotated[
    float, BeforeValidator(_number), Field(ge=0, le=30 * 86_400, allow_inf_nan=False)
]
"""A duration in seconds: none, or thirty days at most."""
TimeToLive = Annotated[
    float, BeforeValidator(_number), Field(ge=0, le=7 * 86_400, allow_inf_nan=False)
]
Items = Annotated[int, BeforeValidator(_number), Field(ge=1, le=100_000)]
Bytes = Annotated[int, BeforeValidator(_number), Field(ge=1_000, le=64 * 1024 * 1024)]
"""A body size in bytes: room for the envelope at least, what the relay takes at most."""
DiskBytes = Annotated[int, BeforeValidator(_number), Field(ge=1_000_000, le=2**50)]
"""Room on a disk in bytes: more than empty tables take, a pebibyte at most."""
Switch = BeforeValidator(_switch)
LocatedPath = Annotated[Path, AfterValidator(_located)]
"""A path; a relative one starts at the config file."""
SecretFile = Annotated[LocatedPath, AfterValidator(_checked_secret)]
TextFile = Annotated[LocatedPath, AfterValidator(_checked_text)]
KeyFile = Annotated[LocatedPath, AfterValidator(_checked_key)]
"""The private key of a certificate, as it is."""
