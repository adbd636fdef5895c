"""A directory with a config file and registrations, as an operator has it."""

from pathlib import Path
from typing import Any

import yaml

from appservice_bridge.config.faults import ConfigError, Fault
from appservice_bridge.config.loading import Loaded, load

ABSENT = object()

MINIMAL = """\
database: postgresql://bridge@localhost/synapse
homeserver:
  server_name: example.org
"""


def registration(**changes: Any) -> str:
    """The YAML of a sound registration but for the changes; ABSENT takes a key away."""
    keys: dict[str, Any] = {
        "id": "my-bot",
        "url": "http://127.0.0.1:29300",
        "as_token": "SECRET-as",
        "hs_token": "SECRET-hs",
        "sender_localpart": "mybot",
        "namespaces": {"users": [{"exclusive": True, "regex": "@mybot_.*"}]},
    } | changes
    kept = {key: value for key, value in keys.items() if value is not ABSENT}
    return yaml.safe_dump(kept, sort_keys=False)


class Directory:
    """Starts with a minimal config and one sound registration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.config(MINIMAL)
        self.register()

    def config(self, text: str) -> None:
        self.config_file.write_text(text)

    def add(self, text: str) -> None:
        """More lines at the end of the config."""
        self.config(MINIMAL + text)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def register(self, name: str = "my-bot.yaml", **changes: Any) -> Path:
        return self.write(f"registrations/{name}", registration(**changes))

    def load(self) -> Loaded:
        return load(self.config_file)

    def faults(self) -> list[str]:
        """Every fault as an operator reads it, paths from this directory on."""
        return self._shown(self._refused().faults)

    def warnings(self) -> list[str]:
        return self._shown(self.load().warnings)

    def _refused(self) -> ConfigError:
        try:
            self.load()
        except ConfigError as error:
            return error
        raise AssertionError("was accepted")

    def _shown(self, faults: tuple[Fault, ...]) -> list[str]:
        return [str(fault).replace(f"{self.path}/", "") for fault in faults]
