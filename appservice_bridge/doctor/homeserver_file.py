"""homeserver.yaml and the homeserver's copies of the registrations, where they can be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appservice_bridge.config.document import Document, read
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import Loaded
from appservice_bridge.config.registrations import ENCRYPTION
from appservice_bridge.doctor.finding import Finding, Level
from appservice_bridge.doctor.server_name import other_server_name
from appservice_bridge.domain.registration import Registration, relay_path

NATIVE_FLAGS: Final = ("msc2409_to_device_messages_enabled", "msc3202_transaction_extensions")
_FLAGS: Final = "experimental_features"
_FILES: Final = "app_service_config_files"


def homeserver_file(path: Path, of: Loaded) -> Iterator[Finding]:
    """What homeserver.yaml says that does not go with the bridge.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    document = read(path)
    name = document.data.get("server_name")
    yield from other_server_name(of, name if isinstance(name, str) else None)
    yield from _native_flags(document)
    copies: list[Document] = []
    for read_or_not in _copies(document, path):
        if isinstance(read_or_not, Finding):
            yield read_or_not
        else:
            copies.append(read_or_not)
    known = {copy.data.get("id"): copy for copy in copies}
    for registration in of.registrations:
        if of.config.settings(registration).transport == "none":
            continue
        wanted = of.config.listen.relay_url + relay_path(registration.id)
        copy = known.get(registration.id)
        if copy is None:
            yield _not_listed(path, registration)
        else:
            yield from _copy(_Pair(registration, copy, wanted))
    yield from _shared_tokens(copies)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A registration of the bridge's, and what the homeserver has of it."""

    own: Registration
    copy: Document
    wanted_url: str

    def finding(self, key: str, code: str, what: str, mend: str) -> Finding:
        place = f"{self.copy.file}:{self.copy.line((key,)) or 1}"
        return Finding(code=code, what=what, mend=f"{place}: {mend}", appservice=self.own.id)


def _native_flags(document: Document) -> Iterator[Finding]:
    flags = document.data.get(_FLAGS)
    for flag in NATIVE_FLAGS:
        if isinstance(flags, dict) and flags.get(flag):
            place = f"{document.file}:{document.line((_FLAGS, flag)) or 1}"
            yield Finding(
                code="native_flag",
                what=f"the homeserver delivers encryption data by itself, too: {flag} is on",
                mend=f"{place}: set `{flag}: false`, and restart the homeserver",
            )


def _copies(document: Document, path: Path) -> Iterator[Document | Finding]:
    files = document.data.get(_FILES) or []
    for number, file in enumerate(files if isinstance(files, list) else []):
        try:
            yield read(path.parent / str(file))
        except ConfigError as error:
            yield Finding(
                code="copy_unreadable",
                what=f"a registration of the homeserver's cannot be read: {error.faults[0]}",
                mend=f"{document.file}:{document.line((_FILES, number)) or 1}: mend the path",
                level=Level.DOUBT,
            )


def _not_listed(path: Path, registration: Registration) -> Finding:
    return Finding(
        code="not_registered",
        what="the homeserver's configuration does not list a registration with this id",
        mend=f"write its copy with `appservice-bridge registration for-homeserver "
        f"{registration.source} -o COPY.yaml`, and list it in {path} under {_FILES}",
        appservice=registration.id,
    )


def _copy(pair: _Pair) -> Iterator[Finding]:
    url = pair.copy.data.get("url")
    if not isinstance(url, str) or not url.rstrip("/").endswith(relay_path(pair.own.id)):
        yield pair.finding(
            "url",
            "not_at_relay",
            "the homeserver's copy of the registration does not point at the relay",
            f'set `url: "{pair.wanted_url}"`, and restart the homeserver',
        )
    for key, own in (("as_token", pair.own.as_token), ("hs_token", pair.own.hs_token)):
        if pair.copy.data.get(key) != own:
            yield pair.finding(
                key,
                "token_mismatch",
                f"{key} of the homeserver's copy is not that of {pair.own.source}",
                "write the copy again with `appservice-bridge registration for-homeserver`,"
                " and restart the homeserver",
            )
    if pair.copy.data.get(ENCRYPTION):
        yield pair.finding(
            ENCRYPTION,
            "native_flag",
            "the homeserver's copy asks for device lists and key counts from the homeserver",
            f"set `{ENCRYPTION}: false`, and restart the homeserver",
        )


def _shared_tokens(copies: list[Document]) -> Iterator[Finding]:
    for key in ("as_token", "hs_token"):
        first: dict[object, Document] = {}
        for copy in copies:
            token = copy.data.get(key)
            if not isinstance(token, str):
                continue
            other = first.setdefault(token, copy)
            if other is not copy:
                yield Finding(
                    code="token_shared",
                    what=f"{copy.file} and {other.file} have the same {key}",
                    mend=f"{copy.file}:{copy.line((key,)) or 1}: give it a token of its own",
                )
