"""The configuration: every key there is, with its default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from appservice_bridge.config.faults import ConfigError, Fault
from appservice_bridge.config.files import read_secret
from appservice_bridge.config.values import (
    Bytes,
    DiskBytes,
    Endpoint,
    HttpUrl,
    Items,
    KeyFile,
    KeyId,
    Listen,
    LocatedPath,
    PlainText,
    Seconds,
    SecretFile,
    ServerName,
    Switch,
    TermSeconds,
    TextFile,
    TimeToLive,
    VerifyKey,
    split_url,
)
from appservice_bridge.domain import backoff, budget, expiry, policy
from appservice_bridge.domain.registration import WEBSOCKET, Registration
from appservice_bridge.domain.transaction import Profile

EMBEDDED: Final = "embedded"

Carrier = Literal["http", "websocket", "poll", "none"]
Choice = Annotated[Literal["auto", "on", "off"], Switch]


class Section(BaseModel):
    """A mapping of known keys; an unknown one is refused, and no value is ever quoted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )


class Homeserver(Section):
    """The homeserver beside the bridge.

    `capture` is by default `triggers` with Synapse and `none` with any other
    homeserver, whose facts come in by ingest. `verify_keys` are those that it signs batches
    with; without them they are asked from it.
    """

    kind: Literal["synapse", "generic"] = "synapse"
    server_name: ServerName
    url: HttpUrl = "http://127.0.0.1:8008"
    verify_keys: dict[KeyId, VerifyKey] = {}
    capture: Literal["triggers", "polling", "none"] = Field(
        default_factory=lambda data: "none" if data.get("kind") == "generic" else "triggers"
    )

    @field_validator("capture")
    @classmethod
    def _only_from_synapse(cls, capture: str, info: ValidationInfo) -> str:
        if capture != "none" and info.data.get("kind") == "generic":
            raise ValueError("must be none with kind generic: it reads Synapse's tables")
        return capture


class ListenOn(Section):
    """Where the bridge listens; with a certificate and its key both speak TLS."""

    relay: Listen = Endpoint(host="127.0.0.1", port=9009)
    admin: Listen = Endpoint(host="127.0.0.1", port=9010)
    tls_cert_file: TextFile | None = None
    tls_key_file: KeyFile | None = None

    @field_validator("admin")
    @classmethod
    def _apart(cls, admin: Endpoint, info: ValidationInfo) -> Endpoint:
        if admin == info.data.get("relay"):
            raise ValueError("must not be the same address as relay")
        return admin

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together; give both or neither")
        return self

    @property
    def relay_url(self) -> str:
        """Base URL of the relay; no homeserver can call it where the relay listens everywhere."""
        return f"{'http' if self.tls_cert_file is None else 'https'}://{self.relay}"


class Backoff(Section):
    """How long a lane rests after a failed attempt: doubling from `first` to `ceiling`."""

    first_seconds: Seconds = 1.0
    ceiling_seconds: Seconds = 60.0

    @field_validator("ceiling_seconds")
    @classmethod
    def _in_order(cls, ceiling: float, info: ValidationInfo) -> float:
        if ceiling < info.data.get("first_seconds", 0):
            raise ValueError("must be at least first_seconds")
        return ceiling


class Expire(Section):
    """How old typing and presence may be when they are sealed; 0: as old as they are."""

    typing_seconds: TimeToLive = 60.0
    presence_seconds: TimeToLive = 300.0

    def expiry(self) -> expiry.Expiry:
        """The same for who seals."""
        return expiry.Expiry(
            typing_seconds=self.typing_seconds or None,
            presence_seconds=self.presence_seconds or None,
        )


class Delivery(Section):
    """How transactions are cut and sent, where an appservice says nothing else.

    What was acknowledged is kept for a replay for `keep_delivered_seconds`; 0: it is gone within
    seconds.
    """

    profile: Profile = Profile.UNSTABLE
    max_items: Items = 1000
    max_body_bytes: Bytes = 900_000
    timeout_seconds: Seconds = 60.0
    backoff: Backoff = Backoff()
    keep_delivered_seconds: TermSeconds = 0.0
    expire: Expire = Expire()

    def policy(self) -> policy.DeliveryPolicy:
        """The same for the delivery side."""
        return policy.DeliveryPolicy(
            profile=self.profile,
            max_items=self.max_items,
            max_body_bytes=self.max_body_bytes,
            timeout_seconds=self.timeout_seconds,
            backoff=backoff.Backoff(
                first_seconds=self.backoff.first_seconds,
                ceiling_seconds=self.backoff.ceiling_seconds,
            ),
            keep_delivered_seconds=self.keep_delivered_seconds,
            expiry=self.expire.expiry(),
        )


class BackoffOverride(Section):
    """The bounds of one appservice that differ from `delivery.backoff`."""

    first_seconds: Seconds | None = None
    ceiling_seconds: Seconds | None = None


class ExpireOverride(Section):
    """The times of one appservice that differ from `delivery.expire`."""

    typing_seconds: TimeToLive | None = None
    presence_seconds: TimeToLive | None = None


class AppserviceSection(Section):
    """What one appservice wants otherwise; None: as in `delivery`."""

    transport: Literal["auto", "http", "websocket", "poll", "none"] = "auto"
    encryption: Choice = "auto"
    delete_delivered: Choice = "auto"
    profile: Profile | None = None
    max_items: Items | None = None
    max_body_bytes: Bytes | None = None
    timeout_seconds: Seconds | None = None
    backoff: BackoffOverride = BackoffOverride()
    keep_delivered_seconds: TermSeconds | None = None
    expire: ExpireOverride = ExpireOverride()

    def delivery(self, general: Delivery) -> Delivery:
        """The general settings with this appservice's own laid over them.

        Raises:
            ValidationError: the first rest would be longer than the ceiling.
        """
        own = self.model_dump(include=set(Delivery.model_fields), exclude_none=True)
        backoff = general.backoff.model_dump() | own.pop("backoff")
        expire = general.expire.model_dump() | own.pop("expire")
        own |= {"backoff": backoff, "expire": expire}
        return Delivery.model_validate(general.model_dump() | own)


class Budget(Section):
    """How much of the homeserver's disk the bridge may take.

    At `total_bytes` (all its tables) nothing more is stored but the keys of to-device messages,
    at `appservice_bytes` (payloads that wait for one) the same holds for that appservice.
    `appservice_bytes` is by default 2 GiB, or all of a smaller `total_bytes`.
    """

    total_bytes: DiskBytes = budget.Budget().total_bytes
    appservice_bytes: DiskBytes = Field(
        default_factory=lambda data: min(
            budget.Budget().appservice_bytes,
            data.get("total_bytes", budget.Budget().appservice_bytes),
        )
    )

    @field_validator("appservice_bytes")
    @classmethod
    def _within_total(cls, appservice_bytes: int, info: ValidationInfo) -> int:
        total_bytes = info.data.get("total_bytes", appservice_bytes)
        if appservice_bytes > total_bytes:
            raise ValueError(
                f"is {appservice_bytes} and must be at most total_bytes, which is {total_bytes}: "
                "lower it, or raise budget.total_bytes"
            )
        return appservice_bytes

    def limits(self) -> budget.Budget:
        """The same for those who keep it."""
        return budget.Budget(total_bytes=self.total_bytes, appservice_bytes=self.appservice_bytes)


class AdminToken(Section):
    """One operator's key to the admin port."""

    name: PlainText
    role: Literal["viewer", "operator", "admin"]
    token_file: SecretFile

    def token(self) -> str:
        """The token itself, read anew each time; never log it.

        Raises:
            ConfigError: the file has gone or is empty by now.
        """
        return _secret(self.token_file)


class Admin(Section):
    """Who may use the admin port; no tokens: only what needs none.

    The port has a certificate of its own here, or else that of `listen`. Without either, tokens
    would cross the network in the clear where others than this machine reach it: that is refused,
    but where `allow_plain_http` says that a proxy in front speaks TLS.

    `metrics: open` answers `/metrics` to whoever asks, and needs the port on loopback.
    """

    tokens: tuple[AdminToken, ...] = ()
    tls_cert_file: TextFile | None = None
    tls_key_file: KeyFile | None = None
    allow_plain_http: bool = False
    metrics: Literal["token", "open"] = "token"

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together; give both or neither")
        return self

    @field_validator("tokens")
    @classmethod
    def _all_different(cls, tokens: tuple[AdminToken, ...]) -> tuple[AdminToken, ...]:
        if len({token.name for token in tokens}) < len(tokens):
            raise ValueError("two tokens have the same name")
        if len({token.token() for token in tokens}) < len(tokens):
            raise ValueError("two token files hold the same token")
        return tokens


class Log(Section):
    """What `run` writes to stderr; `--log-level` and `--log-json` go before it."""

    format: Literal["plain", "json"] = "plain"
    level: Literal["debug", "info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppserviceSettings:
    """What holds for one appservice once every `auto` is decided.

    Attributes:
        transport: `none`: nothing is captured, tracked, stored or sent.
        encryption: whether it gets to-device messages, device lists and key counts.
        delete_delivered: whether acknowledged rows of its exclusive users leave `device_inbox`.
        delivery: sizes and times.
    """

    transport: Carrier
    encryption: bool
    delete_delivered: bool
    delivery: policy.DeliveryPolicy


class Config(Section):
    """The whole configuration; paths are absolute, secrets stay in their files.

    For `token_grace_seconds` after a registration's token was replaced, the former one is accepted
    from the homeserver, or the appservice, as well.

    The fields are in the order in which checks need each other's values.
    """

    homeserver: Homeserver
    database: str = Field(repr=False)
    database_password_file: SecretFile | None = None
    data_dir: LocatedPath = Path("data")
    listen: ListenOn = ListenOn()
    registrations: tuple[PlainText, ...] = ("registrations/*.yaml",)
    delivery: Delivery = Delivery()
    appservices: dict[str, AppserviceSection] = {}
    token_grace_seconds: TermSeconds = 3600.0
    budget: Budget = Budget()
    admin: Admin = Admin()
    log: Log = Log()

    @field_validator("admin")
    @classmethod
    def _open_on_loopback_only(cls, admin: Admin, info: ValidationInfo) -> Admin:
        listen = info.data.get("listen")
        if admin.metrics == "open" and listen is not None and not listen.admin.is_loopback:
            raise PydanticCustomError(
                "open_metrics",
                "must be token where listen.admin is not on loopback: others may reach it there",
                {"at": ("metrics",)},
            )
        return admin

    @field_validator("database")
    @classmethod
    def _postgres_or_embedded(cls, database: str, info: ValidationInfo) -> str:
        homeserver = info.data.get("homeserver")
        if database == EMBEDDED:
            if homeserver is not None and homeserver.kind != "generic":
                raise ValueError("embedded goes with homeserver.kind generic; else name a DSN")
        elif split_url(database).scheme not in {"postgresql", "postgres"}:
            raise ValueError("must be embedded or like postgresql://bridge@localhost/synapse")
        return database

    @field_validator("database_password_file")
    @classmethod
    def _one_password(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        database = info.data.get("database", "")
        if file is None or not database:
            return file
        if database == EMBEDDED:
            raise ValueError("the embedded database has no password; leave it out")
        if split_url(database).password is not None:
            raise ValueError("database holds a password already; keep one of the two")
        return file

    @field_validator("appservices")
    @classmethod
    def _backoffs_in_order(
        cls, appservices: dict[str, AppserviceSection], info: ValidationInfo
    ) -> dict[str, AppserviceSection]:
        general = info.data.get("delivery", Delivery())
        for name, section in appservices.items():
            try:
                section.delivery(general)
            except ValueError:
                raise PydanticCustomError(
                    "backoff",
                    "ceiling_seconds must be at least first_seconds",
                    {"at": (name, "backoff")},
                ) from None
        return appservices

    @field_validator("admin")
    @classmethod
    def _no_token_in_the_clear(cls, admin: Admin, info: ValidationInfo) -> Admin:
        """Without tokens the port tells nothing that a probe may not know, and may be open."""
        listen = info.data.get("listen")
        if listen is None or listen.admin.is_loopback or not admin.tokens:
            return admin
        if admin.allow_plain_http or admin.tls_cert_file or listen.tls_cert_file:
            return admin
        raise ValueError(
            f"tokens would cross the network in the clear at {listen.admin}: give tls_cert_file "
            "and tls_key_file, listen on loopback, or say allow_plain_http: true where a proxy "
            "speaks TLS"
        )

    @property
    def hosts_many_databases(self) -> bool:
        """Whether the DSN names several hosts, as for a Patroni cluster."""
        return "," in split_url(self.database).netloc.rpartition("@")[2]

    def dsn(self) -> str:
        """The DSN to connect with, password included; never log it.

        Raises:
            ConfigError: the password's file has gone or is empty by now.
            ValueError: the database is embedded, so there is no DSN before it starts.
        """
        if self.database == EMBEDDED:
            raise ValueError("an embedded database has no DSN before it runs")
        if self.database_password_file is None:
            return self.database
        parts = split_url(self.database)
        user, _, hosts = parts.netloc.rpartition("@")
        password = quote(_secret(self.database_password_file), safe="")
        return parts._replace(netloc=f"{user}:{password}@{hosts}").geturl()

    def settings(self, registration: Registration) -> AppserviceSettings:
        """What holds for a registered appservice, every `auto` decided."""
        section = self.appservices.get(registration.id, AppserviceSection())
        asked_for = section.encryption == "on" or registration.encryption is True
        encryption = _decided(section.encryption, auto=registration.encryption is not False)
        return AppserviceSettings(
            transport=_transport(section.transport, registration.url),
            encryption=encryption,
            delete_delivered=encryption and _decided(section.delete_delivered, auto=asked_for),
            delivery=section.delivery(self.delivery).policy(),
        )


def _transport(wanted: Literal["auto"] | Carrier, url: str | None) -> Carrier:
    if wanted != "auto":
        return wanted
    if url is None:
        return "none"
    return "websocket" if url == WEBSOCKET else "http"


def _decided(choice: Literal["auto", "on", "off"], *, auto: bool) -> bool:
    return auto if choice == "auto" else choice == "on"


def _secret(path: Path) -> str:
    try:
        return read_secret(path)
    except ValueError as error:
        raise ConfigError([Fault(file=str(path), reason=str(error))]) from None
