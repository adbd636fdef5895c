"""What the fixtures give, for annotations; nothing heavy is imported with it."""

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from appservice_bridge.testing.appservice import Appservice
    from appservice_bridge.testing.matrix_user import MatrixUser
    from appservice_bridge.testing.stand import Handler


class AppserviceFactory(Protocol):
    """The fixture `appservice_factory`."""

    def __call__(
        self, bot: "str | Handler | None" = None, *, registration: Path | str | None = None
    ) -> "Appservice":
        """As `Bridge.appservice`; given back when the test ends."""


class MatrixUserFactory(Protocol):
    """The fixture `matrix_user_factory`."""

    def __call__(self, name: str = "user") -> "Coroutine[Any, Any, MatrixUser]":
        """As `Bridge.user`; closed when the test ends."""
