"""What of a configuration only a restart can change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from appservice_bridge.config.faults import Fault
from appservice_bridge.config.loading import Loaded

_FIXED: Final = ("database", "database_password_file", "data_dir", "listen", "log")


def needing_restart(config: Path, before: Loaded, after: Loaded) -> list[Fault]:
    """A fault for each key that differs and is bound to what was opened or learnt at the start."""
    return [
        Fault(file=str(config), reason=f"{key}: has changed, which needs a restart")
        for key in _changed(before, after)
    ]


def _changed(before: Loaded, after: Loaded) -> Iterator[str]:
    for key in _FIXED:
        if getattr(before.config, key) != getattr(after.config, key):
            yield key
    if before.config.homeserver.server_name != after.config.homeserver.server_name:
        yield "homeserver.server_name"
    if _certificate(before) != _certificate(after):
        yield "admin.tls_cert_file, admin.tls_key_file"


def _certificate(of: Loaded) -> tuple[Path | None, Path | None]:
    """Where it is; what it holds may change."""
    return of.config.admin.tls_cert_file, of.config.admin.tls_key_file
