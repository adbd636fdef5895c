"""The appservices of a stage: homeserver and bridge know them before a test asks for one."""

import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.registrations import read_registration
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.domain.registration import WEBSOCKET

PREFIX: Final = "_as"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One registration.

    Attributes:
        name: of its stand, and of its file.
        document: the registration; its url is the stand's, unless the bot comes to the bridge.
        file: where the bridge reads it.
        bot_url: the url that a declared registration had.
        declared: by the person who tests; else it is ours, and used by one test.
    """

    name: str
    document: dict[str, Any] = field(repr=False)
    file: Path
    bot_url: str | None = None
    declared: bool = False

    @property
    def id(self) -> str:
        """The appservice's id."""
        return str(self.document["id"])

    @property
    def hs_token(self) -> str:
        """What the bridge shows to the stand."""
        return str(self.document["hs_token"])


@dataclass(slots=True)
class Slots:
    """Makes registrations and hands them out.

    Attributes:
        base_url: of the stands.
        directory: for the bridge's registration files.
    """

    directory: Path
    base_url: str
    declared: dict[Path, Slot] = field(default_factory=dict)
    free: list[Slot] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def make(self, count: int) -> list[Slot]:
        """So many more that nobody has used."""
        made = [self._anonymous(next(self._numbers)) for _ in range(count)]
        self.free += made
        return made

    def declare(self, file: Path) -> Slot:
        """Someone's own registration; its url becomes the stand's, all else stays.

        Raises:
            ConfigError: with every fault of the file.
        """
        file = file.resolve()
        reading = read_registration(file)
        if reading.registration is None or reading.document is None:
            raise ConfigError(reading.faults)
        document = dict(reading.document.data)
        slot = self._slot(
            f"declared{len(self.declared) + 1}",
            document,
            bot_url=reading.registration.url,
            declared=True,
        )
        self.declared[file] = slot
        return slot

    def _anonymous(self, number: int) -> Slot:
        localpart = f"{PREFIX}{number}"
        users = [{"exclusive": True, "regex": f"@{localpart}_.*"}]
        document = {
            "id": f"test-{number}",
            "as_token": secrets.token_urlsafe(24),
            "hs_token": secrets.token_urlsafe(24),
            "sender_localpart": f"{localpart}_bot",
            "rate_limited": False,
            "receive_ephemeral": True,
            "org.matrix.msc3202": True,
            "io.element.msc4190": True,
            "namespaces": {"users": users, "aliases": [], "rooms": []},
        }
        return self._slot(f"test{number}", document)

    def _slot(
        self,
        name: str,
        document: dict[str, Any],
        *,
        bot_url: str | None = None,
        declared: bool = False,
    ) -> Slot:
        if not declared or bot_url not in {None, WEBSOCKET}:
            document["url"] = f"{self.base_url}/{name}"
        file = self.directory / f"{name}.yaml"
        write_private(file, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        return Slot(name=name, document=document, file=file, bot_url=bot_url, declared=declared)
