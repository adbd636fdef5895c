"""The server's name: whoever is of another one than the config says is owned by no appservice."""

from collections.abc import Iterator

from appservice_bridge.config.loading import Loaded
from appservice_bridge.doctor.finding import Finding


def other_server_name(of: Loaded, found: str | None) -> Iterator[Finding]:
    """A homeserver of another name; the same finding whoever says it. None: nobody knows."""
    configured = of.config.homeserver.server_name
    if found is not None and found != configured:
        yield Finding(
            code="server_name",
            what=f"the homeserver is {found}, and the config says {configured}:"
            " no appservice owns any of its users, and nothing is captured for them",
            mend=f"set `homeserver.server_name: {found}` in the config, and restart the workers",
        )
