"""Installs or verifies the capture from inside Synapse, in steps that may each be repeated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from appservice_bridge.blueprint.capture import TRIES, rest_seconds
from appservice_bridge.domain.owners import Owners
from appservice_bridge.synapse import steps
from appservice_bridge.synapse.faults import BusyError, UnavailableError, named

if TYPE_CHECKING:
    from synapse.module_api import ModuleApi

_T = TypeVar("_T")

TOO_BUSY: Final = "the homeserver's tables stayed locked by other DB transactions"


@dataclass(kw_only=True)
class Done:
    """What was found and what was done about it.

    Attributes:
        has_inbox: False: these are not Synapse's tables, and nothing was done.
        foreign_owner: another role made the schema, and nothing was done.
        missing: names of tables whose trigger is missing, where nothing was done.
        applied: numbers of migrations.
        attached: tables that got a trigger.
        foreign: users put on the list of the foreign.
        granted: how many grants the bridge's role got.
    """

    has_inbox: bool
    foreign_owner: str | None
    missing: list[str]
    applied: list[int] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    foreign: int = 0
    granted: int = 0


class Installing:
    """One run; dying between two steps leaves what the next start goes on from."""

    def __init__(
        self, api: "ModuleApi", owners: Owners, *, role: str | None, role_deletes: bool
    ) -> None:
        self._api = api
        self._owners = owners
        self._role = role
        self._role_deletes = role_deletes

    async def run(self) -> Done:
        """Do all of it; what is there already stays as it is.

        Raises:
            UnavailableError: not now.
            RefusedError: Synapse's role may not.
            SchemaTooNewError: a newer release was here.
        """
        found = await self._step(steps.look)
        done = Done(
            has_inbox=found.has_inbox,
            foreign_owner=found.foreign_owner,
            missing=sorted({trigger.table for trigger in found.missing}),
        )
        if not found.has_inbox or found.foreign_owner is not None:
            return done
        await self._step(steps.ensure_schema)
        done.applied = await self._step(steps.migrate)
        done.foreign = await self._seed()
        if found.disabled:
            await self._step(steps.mend)
        await self._step(steps.replace_functions)
        done.attached = await self._attach()
        if self._role is not None:
            done.granted = await self._step(steps.grant, self._role, self._role_deletes)
        return done

    async def _seed(self) -> int:
        after: str | None = ""
        foreign = 0
        while after is not None:
            after, more = await self._step(steps.seed_page, self._owners, after)
            foreign += more
        return foreign

    async def _attach(self) -> list[str]:
        """Make what is missing, a table at a time; the next one where a table is in use.

        It is looked for each time, for the command may be making it, too.
        """
        attached: list[str] = []
        for tries in range(TRIES):
            found = await self._step(steps.look)
            if not found.missing:
                return attached
            table = found.missing[tries % len(found.missing)].table
            triggers = [trigger for trigger in found.missing if trigger.table == table]
            try:
                await self._once(steps.attach, table, triggers)
            except BusyError:
                await self._api.sleep(rest_seconds(tries))
            else:
                attached.append(table)
        raise UnavailableError(TOO_BUSY)

    async def _step(self, work: Callable[..., _T], *args: Any) -> _T:
        """One DB transaction, again after a rest where someone else is in the way."""
        for tries in range(TRIES):
            try:
                return await self._once(work, *args)
            except BusyError:
                await self._api.sleep(rest_seconds(tries))
        raise UnavailableError(TOO_BUSY)

    async def _once(self, work: Callable[..., _T], *args: Any) -> _T:
        desc = f"appservice_bridge_{work.__name__}"
        return await self._api.run_db_interaction(desc, named(work), *args)
