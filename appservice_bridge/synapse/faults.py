"""What may go wrong in Synapse's database, told apart by what is to be done about it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from appservice_bridge.blueprint.capture import BUSY
from appservice_bridge.domain.errors import BridgeError

if TYPE_CHECKING:
    from synapse.storage.database import LoggingTransaction

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MADE_BY_ANOTHER: Final = frozenset({"23505", "42P06", "42P07", "42710", "XX000"})
_OUTAGES: Final = ("08", "25006", "25P03", "53", "57", "58")  # the latter may be classes


class BusyError(BridgeError):
    """Someone else holds what is needed, or did the same at this moment; look again soon."""


class UnavailableError(BridgeError):
    """The database cannot be used now; try again in a while."""


class RefusedError(BridgeError):
    """Postgres refuses it, and will again; an operator has to mend it."""


def named(
    work: Callable[Concatenate["LoggingTransaction", _P], _T],
) -> Callable[Concatenate["LoggingTransaction", _P], _T]:
    """Do a step, and name the driver's error, which may quote a row, and Synapse would log it."""

    def step(txn: "LoggingTransaction", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return work(txn, *args, **kwargs)
        except BridgeError:
            raise
        except Exception as error:
            if not hasattr(error, "pgcode"):
                raise
            raise _named(error) from None

    return step


def _named(error: Any) -> BridgeError:
    state = error.pgcode
    if state is None or state.startswith(_OUTAGES):
        return UnavailableError(f"database unavailable, sqlstate {state}")
    if state in BUSY or state in _MADE_BY_ANOTHER:
        return BusyError(f"sqlstate {state}")
    reason = f"sqlstate {state}"
    if state.startswith("42"):  # names roles, tables and columns, never values
        reason = f"{reason}: {str(error).splitlines()[0]}"
    return RefusedError(reason)
