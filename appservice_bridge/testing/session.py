"""One stage from a session's first fixture to its end."""

from collections.abc import Iterator
from contextlib import contextmanager

from appservice_bridge.testing.background import BackgroundLoop
from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.stage import StageOptions
from appservice_bridge.testing.starting import started


@contextmanager
def held(options: StageOptions) -> Iterator[Bridge]:
    """Start all of it on a loop of its own, and stop it at the end.

    Raises:
        ConfigError: a declared registration is not sound.
        ChildDiedError: a part did not start; its last lines are noted.
    """
    loop = BackgroundLoop()
    try:
        stage = loop.run(started(options))
        try:
            yield Bridge(stage, loop)
        finally:
            loop.run(stage.stop.aclose())
    finally:
        loop.close()
