"""The appservices of one `dev`: the echo bot's own, and those that a developer plugs in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from appservice_bridge.config.document import Document
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.homeserver_copy import homeserver_copy
from appservice_bridge.config.registrations import Reading, read_registration, shared
from appservice_bridge.dev.dev_directory import DevDirectory
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.domain.registration import Registration, relay_path

BOT_ID: Final = "echo-bot"
BOT_LOCALPART: Final = "echo"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluggedIn:
    """One appservice.

    Attributes:
        file: the registration as the bridge reads it; its url is the real receiver.
        copy: the homeserver's copy; its url is the relay.
    """

    registration: Registration
    file: Path
    copy: Path


def write_bot_registration(directory: DevDirectory, *, url: str) -> Path:
    """The echo bot's registration, with the tokens it has in this directory."""
    secrets = directory.secrets()
    registration = {
        "id": BOT_ID,
        "url": url,
        "as_token": secrets["bot_as_token"],
        "hs_token": secrets["bot_hs_token"],
        "sender_localpart": BOT_LOCALPART,
        "rate_limited": False,
        "namespaces": {"users": [{"exclusive": True, "regex": f"@{BOT_LOCALPART}:.*"}]},
        "org.matrix.msc3202": True,
        "io.element.msc4190": True,
    }
    file = directory.for_bridge(BOT_ID)
    write_private(file, yaml.safe_dump(registration, sort_keys=False))
    return file


def plug_in(
    directory: DevDirectory, files: Sequence[Path], *, relay_url: str
) -> tuple[PluggedIn, ...]:
    """Read registrations and write the homeserver's copy of each.

    Raises:
        ConfigError: with every fault of the files.
    """
    readings = [read_registration(file) for file in files]
    _require_sound(readings)
    return tuple(
        _plugged_in(directory, number, file, reading, relay_url)
        for number, (file, reading) in enumerate(zip(files, readings, strict=True))
    )


def _require_sound(readings: Sequence[Reading]) -> None:
    faults = [fault for reading in readings for fault in reading.faults]
    faults += shared(readings)
    if faults:
        raise ConfigError(faults)


def _plugged_in(
    directory: DevDirectory, number: int, file: Path, reading: Reading, relay_url: str
) -> PluggedIn:
    registration, document = _sound(reading)
    copy = directory.for_homeserver(str(number))
    write_private(copy, homeserver_copy(document, url=relay_url + relay_path(registration.id)))
    return PluggedIn(registration=registration, file=file, copy=copy)


def _sound(reading: Reading) -> tuple[Registration, Document]:
    if reading.registration is None or reading.document is None:
        raise ConfigError(reading.faults)
    return reading.registration, reading.document
