"""Registration files: read, checked, and compared with each other."""

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from appservice_bridge.config.document import Document, Location, parse, read
from appservice_bridge.config.explaining import explained
from appservice_bridge.config.faults import ConfigError, Fault
from appservice_bridge.config.values import PlainText, http_url, plain_text
from appservice_bridge.domain.nearest import nearest
from appservice_bridge.domain.registration import WEBSOCKET, Namespace, Registration, compiled

ENCRYPTION: Final = "org.matrix.msc3202"
EPHEMERAL: Final = "de.sorunome.msc2409.push_ephemeral"
_FROM_SAMPLE: Final = "CHANGE-ME"
_SIGILS: Final = {"users": "@", "aliases": "#", "rooms": "!"}


def _id(value: str) -> str:
    if value in {".", ".."}:
        raise ValueError("must not be . or .., because it becomes part of a URL's path")
    return plain_text(value)


def _token(value: str) -> str:
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError("must not hold spaces or control characters: it is sent in a header")
    return plain_text(value)


def _url(value: str) -> str:
    if not value:
        raise ValueError("must not be empty; write null if nothing is to be delivered")
    return value if value == WEBSOCKET else http_url(value)


def _localpart(value: str) -> str:
    if value.startswith("@") or ":" in value:
        raise ValueError("must be a localpart: without @ in front and without the server's name")
    return plain_text(value)


def _regex(value: str) -> str:
    compiled(value)
    return plain_text(value)


class _Part(BaseModel):
    """Extra keys are kept, to warn about them; types are taken at their word."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, hide_input_in_errors=True)


class _Entry(_Part):
    regex: Annotated[str, AfterValidator(_regex)]
    exclusive: bool


class _Namespaces(_Part):
    users: list[_Entry] = []
    aliases: list[_Entry] = []
    rooms: list[_Entry] = []


class _Contents(_Part):
    """The keys of a registration file."""

    id: Annotated[str, AfterValidator(_id)]
    url: Annotated[str, AfterValidator(_url)] | None = None
    as_token: Annotated[str, AfterValidator(_token)]
    hs_token: Annotated[str, AfterValidator(_token)]
    sender_localpart: Annotated[str, AfterValidator(_localpart)]
    namespaces: _Namespaces
    rate_limited: bool = True
    protocols: list[PlainText] | None = None
    receive_ephemeral: bool = False
    msc2409_push_ephemeral: bool = Field(default=False, alias=EPHEMERAL)
    push_ephemeral: bool = False
    msc3202: bool | None = Field(default=None, alias=ENCRYPTION)
    io_msc4190: bool = Field(default=False, alias="io.element.msc4190")
    org_msc4190: bool = Field(default=False, alias="org.matrix.msc4190")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One registration file after reading.

    Attributes:
        document: the file, for lines and edits; None if it is no YAML mapping at all.
        registration: None if there are faults.
    """

    document: Document | None
    registration: Registration | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()


def load_registration(path: Path) -> Registration:
    """Read one registration file.

    Raises:
        ConfigError: with every fault of the file.
    """
    reading = read_registration(path)
    if reading.registration is None:
        raise ConfigError(reading.faults)
    return reading.registration


def read_registration(path: Path) -> Reading:
    """Read one registration file, with its faults and warnings; never raises."""
    try:
        return understood(read(path))
    except ConfigError as error:
        return Reading(document=None, registration=None, faults=error.faults)


def parse_registration(text: str, *, file: str) -> Reading:
    """The same for text that is not in a file yet."""
    try:
        return understood(parse(text, file=file))
    except ConfigError as error:
        return Reading(document=None, registration=None, faults=error.faults)


def understood(document: Document) -> Reading:
    """Check what a registration file says."""
    faults = list(document.duplicates)
    try:
        contents = _Contents.model_validate(document.data)
    except ValidationError as error:
        faults += [document.fault(*each) for each in explained(error, _Contents)]
        return Reading(document=document, registration=None, faults=tuple(faults))
    registration = None if faults else _registration(contents, document.file)
    warnings = tuple(document.fault(*each) for each in _oddities(contents))
    return Reading(
        document=document, registration=registration, faults=tuple(faults), warnings=warnings
    )


def find(patterns: Iterable[str], *, base: Path) -> tuple[list[Path], list[str]]:
    """The files that glob patterns name, each once, and the patterns that name none.

    A pattern that is the name of an existing file means that file, brackets and all.
    """
    files: dict[Path, Path] = {}
    unmatched: list[str] = []
    for pattern in patterns:
        literal = base / pattern
        found = [literal] if _is_there(literal) else _globbed(pattern, base)
        if not found:
            unmatched.append(pattern)
        for path in found:
            files.setdefault(_resolved(path), path)
    return sorted(files.values()), unmatched


def shared(readings: Iterable[Reading]) -> Iterator[Fault]:
    """A fault for each id or token that another file has already."""
    first: dict[tuple[str, str], Document] = {}
    for document in (reading.document for reading in readings):
        if document is None:
            continue
        for key in ("id", "as_token", "hs_token"):
            value = document.data.get(key)
            if not isinstance(value, str) or not value:
                continue
            owner = first.setdefault((key, value), document)
            if owner is not document:
                where = f"{owner.file}:{owner.line((key,))}"
                yield document.fault((key,), f"{key} is the same as in {where}; make it unique")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # reading it will say what is the matter


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links that lead to each other
        return path  # reading it will say what is the matter


def _globbed(pattern: str, base: Path) -> list[Path]:
    # Path.glob takes no absolute pattern.
    return [base / name for name in glob.glob(pattern, root_dir=base, recursive=True)]  # noqa: PTH207


def _registration(contents: _Contents, source: str) -> Registration:
    spaces = contents.namespaces
    ephemeral = (
        contents.receive_ephemeral or contents.msc2409_push_ephemeral or contents.push_ephemeral
    )
    return Registration(
        id=contents.id,
        url=contents.url,
        as_token=contents.as_token,
        hs_token=contents.hs_token,
        sender_localpart=contents.sender_localpart,
        users=_namespaces(spaces.users),
        aliases=_namespaces(spaces.aliases),
        rooms=_namespaces(spaces.rooms),
        receive_ephemeral=ephemeral,
        rate_limited=contents.rate_limited,
        protocols=tuple(contents.protocols or ()),
        encryption=contents.msc3202,
        source=source,
    )


def _namespaces(entries: Iterable[_Entry]) -> tuple[Namespace, ...]:
    return tuple(Namespace(regex=entry.regex, exclusive=entry.exclusive) for entry in entries)


def _oddities(contents: _Contents) -> Iterator[tuple[Location, str]]:
    """What is allowed, but hardly meant."""
    yield from _unknown((), contents)
    yield from _unknown(("namespaces",), contents.namespaces)
    for kind, sigil in _SIGILS.items():
        for index, entry in enumerate(getattr(contents.namespaces, kind)):
            place = ("namespaces", kind, index)
            yield from _unknown(place, entry)
            if re.match(r"\w", entry.regex):
                reason = f"namespaces.{kind}.{index}.regex never matches: {kind} begin with {sigil}"
                yield (*place, "regex"), reason
    if "|" in contents.id:
        yield ("id",), "Synapse does not start with an id that holds |"
    for key in ("as_token", "hs_token"):
        if getattr(contents, key).startswith(_FROM_SAMPLE):
            yield (key,), f"{key} is the sample's, which everybody knows; make a fresh one"
    if contents.as_token == contents.hs_token:
        yield ("hs_token",), "hs_token should differ from as_token"


def _unknown(place: Location, part: _Part) -> Iterator[tuple[Location, str]]:
    known = [field.alias or name for name, field in type(part).model_fields.items()]
    for key in part.model_extra or {}:
        near = nearest(key, known)
        hint = f"; did you mean {near}?" if near else ""
        yield (*place, key), f"{'.'.join(map(str, (*place, key)))} is not a known key{hint}"
