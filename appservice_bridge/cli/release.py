"""What a sound configuration may ask for and this release does not have."""

from collections.abc import Iterator
from pathlib import Path

from appservice_bridge.config.faults import Fault
from appservice_bridge.config.loading import Loaded


def missing(config: Path, of: Loaded) -> list[Fault]:
    """A fault for each thing asked for: better refused at once than silently not done."""
    return [
        Fault(file=str(config), reason=f"{what} is not in this release yet")
        for what in _asked_for_and_not_there(of)
    ]


def _asked_for_and_not_there(of: Loaded) -> Iterator[str]:
    for registration in of.registrations:
        transport = of.config.settings(registration).transport
        if transport not in ("http", "none"):
            yield f"appservice {registration.id}: transport {transport}"
