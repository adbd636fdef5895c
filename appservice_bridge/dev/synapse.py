"""A real Synapse as a process of its own, on a Postgres of ours, for this machine alone."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import signedjson.key
import yaml

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.process import ChildCommand, ChildProcess

UNLIMITED: Final = {"per_second": 1_000_000, "burst_count": 1_000_000}
RATE_LIMITS: Final = {
    **dict.fromkeys(
        (
            "rc_message", "rc_registration", "rc_registration_token_validity", "rc_admin_redaction",
            "rc_joins_per_room", "rc_key_requests", "rc_third_party_invite", "rc_media_create",
            "rc_delayed_event_mgmt", "rc_room_creation", "rc_reports", "rc_user_directory",
            "rc_profile", "rc_3pid_validation",
        ),
        UNLIMITED,
    ),
    "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), UNLIMITED),
    "rc_joins": dict.fromkeys(("local", "remote"), UNLIMITED),
    "rc_invites": dict.fromkeys(("per_room", "per_user", "per_issuer"), UNLIMITED),
    "rc_presence": {"per_user": UNLIMITED},
}  # fmt: skip
ANSWER_WITHIN: Final = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class SynapseSettings:
    """What differs from one Synapse of ours to the next.

    Attributes:
        directory: for configuration, signing key, media and log; made when missing.
        database: DSN of an empty or own database with C locale.
        registration_shared_secret: lets its holder register users.
        registrations: registration files of appservices.
        native_encryption: let Synapse itself send to-device messages, device lists and key
            counts to appservices, as one would without a bridge.
        python: interpreter that has matrix-synapse.
        environment: of its process, the whole of it; ours when None.
        log_level: of Synapse's own log.
        extra: configuration laid over everything else.
    """

    directory: Path
    server_name: str
    database: str
    registration_shared_secret: str
    registrations: Sequence[Path] = ()
    native_encryption: bool = False
    python: str = sys.executable
    environment: Mapping[str, str] | None = None
    log_level: str = "INFO"
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Synapse:
    """One homeserver; `launch` again after it died or after `settings` changed."""

    settings: SynapseSettings
    port: LoopbackPort = field(default_factory=LoopbackPort)
    _child: ChildProcess | None = field(default=None, init=False)

    @property
    def child(self) -> ChildProcess:
        """The running process.

        Raises:
            RuntimeError: before `launch`.
        """
        if self._child is None:
            raise RuntimeError("this Synapse was not started")
        return self._child

    @property
    def url(self) -> str:
        """Base URL of its client API."""
        return self.port.url

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.settings.directory / "synapse.log"

    def launch(self) -> None:
        """Write the configuration and start the process; main thread, see `ChildProcess`."""
        config = self._write_files()
        self._child = ChildProcess.start(
            ChildCommand(
                name="synapse",
                arguments=[
                    self.settings.python, "-m", "synapse.app.homeserver", "-c", str(config),
                ],
                log=self.log,
                environment=self.settings.environment,
                directory=self.settings.directory,
            )
        )  # fmt: skip

    async def ready(self) -> bool:
        """Whether it answers.

        Raises:
            ChildDiedError: it has ended.
        """
        self.child.require_running()
        try:
            async with (
                aiohttp.ClientSession(timeout=ANSWER_WITHIN) as session,
                session.get(f"{self.url}/health") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def stop(self) -> None:
        """End the process; it keeps its database and its port."""
        if self._child is not None:
            self._child.stop()

    def _write_files(self) -> Path:
        self.settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = self.settings.directory / "signing.key"
        if not key.exists():
            fresh = signedjson.key.generate_signing_key("dev")
            write_private(key, f"ed25519 dev {signedjson.key.encode_signing_key_base64(fresh)}\n")
        log_config = self.settings.directory / "log.yaml"
        write_private(log_config, yaml.safe_dump(self._log_config()))
        config = self.settings.directory / "homeserver.yaml"
        write_private(config, yaml.safe_dump({**self._config(), **self.settings.extra}))
        return config

    def _config(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "server_name": settings.server_name,
            "public_baseurl": f"{self.url}/",
            "report_stats": False,
            "signing_key_path": str(settings.directory / "signing.key"),
            "log_config": str(settings.directory / "log.yaml"),
            "media_store_path": str(settings.directory / "media"),
            "registration_shared_secret": settings.registration_shared_secret,
            "macaroon_secret_key": settings.registration_shared_secret,
            "form_secret": settings.registration_shared_secret,
            "bcrypt_rounds": 4,
            "listeners": [self._listener()],
            "database": {
                "name": "psycopg2",
                "args": {"dsn": settings.database, "cp_min": 5, "cp_max": 10},
            },
            "app_service_config_files": [str(path) for path in settings.registrations],
            "experimental_features": dict.fromkeys(
                ("msc2409_to_device_messages_enabled", "msc3202_transaction_extensions"),
                settings.native_encryption,
            ),
            **self._solitude(),
            **RATE_LIMITS,
        }

    def _listener(self) -> dict[str, Any]:
        return {
            "port": self.port.number,
            "type": "http",
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["client", "federation"], "compress": False}],
        }

    def _solitude(self) -> dict[str, Any]:
        """No way out but to appservices on this machine."""
        return {
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "federation_domain_whitelist": [],
            "ip_range_whitelist": ["127.0.0.1/32", "::1/128"],
            "url_preview_enabled": False,
            "push": {"enabled": False},
        }

    def _log_config(self) -> dict[str, Any]:
        return {
            "version": 1,
            "disable_existing_loggers": False,  # else errors in requests are not written
            "formatters": {
                "line": {"format": "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s"}
            },
            "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": self.settings.log_level, "handlers": ["console"]},
        }
