"""Whether the config and the registrations agree with each other."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from appservice_bridge.config.document import Location
from appservice_bridge.config.faults import Fault
from appservice_bridge.config.model import AppserviceSection, ListenOn
from appservice_bridge.config.registrations import ENCRYPTION, Reading
from appservice_bridge.config.values import endpoint_of
from appservice_bridge.domain.nearest import nearest
from appservice_bridge.domain.registration import WEBSOCKET, Registration, relay_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The parts of the config that speak about registrations; None: faulty in itself."""

    listen: ListenOn | None
    appservices: Mapping[str, AppserviceSection | None]


def strangers(sections: Sections, readings: Iterable[Reading]) -> Iterator[tuple[Location, str]]:
    """Places in the config that speak of an appservice which no file registers."""
    documents = (reading.document for reading in readings)
    ids = {document.data.get("id") for document in documents if document is not None}
    known = sorted(name for name in ids if isinstance(name, str))
    for name in sections.appservices:
        if name not in ids:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known) or 'none'}"
            yield ("appservices", name), f"appservices.{name} has no registration; {hint}"


def contradictions(sections: Sections, readings: Iterable[Reading]) -> Iterator[Fault]:
    """Registrations with which the config cannot work."""
    for reading in readings:
        registration, document = reading.registration, reading.document
        if registration is None or document is None:
            continue
        if sections.listen is not None and _is_loop(registration, sections.listen):
            yield document.fault(
                ("url",),
                "url points at the bridge itself; here it must name the real appservice,"
                " and only the homeserver's copy the relay",
            )
        section = sections.appservices.get(registration.id)
        wants_http = section is not None and section.transport == "http"
        if wants_http and registration.url in {None, WEBSOCKET}:
            reason = f"appservices.{registration.id}.transport is http, which needs an http url"
            yield document.fault(("url",), reason)


def doubts(sections: Sections, readings: Iterable[Reading]) -> Iterator[Fault]:
    """Registrations that say one thing where the config says another."""
    for reading in readings:
        registration, document = reading.registration, reading.document
        if registration is None or document is None or registration.encryption is not False:
            continue
        section = sections.appservices.get(registration.id)
        if section is not None and section.encryption == "on":
            reason = (
                f"{ENCRYPTION} is false, but appservices.{registration.id}.encryption is on;"
                " the config decides"
            )
            yield document.fault((ENCRYPTION,), reason)


def _is_loop(registration: Registration, listen: ListenOn) -> bool:
    """Whether the url is the relay's address, or its port and the path of the relay's own url."""
    if registration.url is None or registration.url == WEBSOCKET:
        return False
    called = endpoint_of(registration.url)
    is_copy = urlsplit(registration.url).path.endswith(relay_path(registration.id))
    return listen.relay.answers_for(called) or (is_copy and called.port == listen.relay.port)
