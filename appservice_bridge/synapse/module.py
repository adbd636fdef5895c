"""A module of Synapse's that keeps the capture in its database as this release wants it."""

import logging
from typing import TYPE_CHECKING, Final

from appservice_bridge.blueprint import seeding
from appservice_bridge.blueprint.versions import SchemaTooNewError
from appservice_bridge.synapse.faults import RefusedError, UnavailableError
from appservice_bridge.synapse.installing import Done, Installing
from appservice_bridge.synapse.registered import native_deliveries, owners
from appservice_bridge.synapse.settings import Settings

if TYPE_CHECKING:
    from synapse.module_api import ModuleApi

LOGGER: Final = "appservice_bridge.synapse"
AGAIN_SECONDS: Final = 60.0
INSTEAD: Final = "or install with `appservice-bridge migrate` and `appservice-bridge install`"


class Module:
    """Installs or verifies the capture each time Synapse starts, with Synapse's own rights.

    In homeserver.yaml:

        modules:
          - module: appservice_bridge.synapse.Module
            config:
              role: bridge

    Config keys, none of them required:
        role: the role of Postgres that the bridge connects as, where that is not Synapse's: it is
            granted what it needs on the bridge's schema, and SELECT on the tables it reads.
        delete_delivered: false: that role is not granted DELETE on `device_inbox`, so the bridge
            cannot clean it, whatever its own config says.

    Every process of Synapse's loads it; the one that runs background tasks acts. No fault of the
    bridge's keeps Synapse from starting: it is logged with what mends it, and Synapse goes on.
    """

    def __init__(self, settings: Settings, api: "ModuleApi") -> None:
        self._settings = settings
        self._api = api
        # made now: Synapse's log config may silence every logger that was made before it was read
        self._log = logging.getLogger(LOGGER)
        try:
            acts = api.should_run_background_tasks()
            which = "this process" if acts else "another process of Synapse's"
            self._log.info("loaded: the capture is looked after by %s", which)
            if acts:
                api.delayed_background_call(0, self._begin, desc="appservice_bridge_capture")
        except Exception:
            self._log.exception("the capture is not looked after: %s", INSTEAD)

    @staticmethod
    def parse_config(config: object) -> Settings:
        """Read the module's config; its faults are logged once there is a log."""
        return Settings.read(config)

    async def _begin(self) -> None:
        """All there is to do after a start.

        Dying anywhere in it leaves triggers that work, or none; the next start goes on.
        """
        for fault in self._settings.faults:
            self._log.warning("modules: appservice_bridge.synapse.Module: config: %s", fault)
        try:
            self._warn_of_native_deliveries()
            await self._install()
        except SchemaTooNewError as error:
            self._log.error("the capture is left as it is: %s", error)
        except RefusedError as error:
            self._log.error(
                "the capture is not installed: %s; let the owner of the database give Synapse's "
                "role that right, and restart Synapse, %s",
                *(error, INSTEAD),
            )
        except Exception:
            self._log.exception("the capture is not looked after; Synapse goes on: %s", INSTEAD)

    def _warn_of_native_deliveries(self) -> None:
        hs = self._api._hs  # noqa: SLF001 - nothing public says which flags are set
        services = hs.get_datastores().main.get_app_services()
        try:
            for sentence in native_deliveries(hs.config.experimental, services):
                self._log.warning("delivered twice: %s", sentence)
        except AttributeError:  # another release of Synapse's; the capture matters more
            self._log.exception("whether Synapse delivers natively is not known")

    async def _install(self) -> None:
        hs = self._api._hs  # noqa: SLF001 - nor which database and appservices there are
        main = hs.get_datastores().main
        if main.db_pool.engine.single_threaded:
            self._log.error(
                "nothing is captured: Synapse runs on SQLite, and the bridge needs Postgres; see "
                "Synapse's docs/postgres.md, and remove this module until then"
            )
            return
        who = owners(main.get_app_services(), server_name=hs.hostname)
        role, deletes = self._settings.role, self._settings.delete_delivered
        installing = Installing(self._api, who, role=role, role_deletes=deletes)
        while True:
            try:
                self._report(await installing.run())
            except UnavailableError as error:
                self._log.warning("the capture is tried again in %s s: %s", AGAIN_SECONDS, error)
                await self._api.sleep(AGAIN_SECONDS)
            else:
                return

    def _report(self, done: Done) -> None:
        if not done.has_inbox:
            self._log.error("nothing is captured: Synapse's tables are not in schema public")
        elif done.foreign_owner is not None:
            self._report_foreign(done, done.foreign_owner)
        elif done.applied or done.attached or done.granted:
            self._log.info(
                "capture installed: migrations %s; triggers made on %s; %s; %d grants given",
                ", ".join(f"{number:04}" for number in done.applied) or "none",
                ", ".join(done.attached) or "nothing",
                *(seeding.told(done.foreign), done.granted),
            )
        else:
            self._log.info("capture verified: schema, functions and triggers are this release's")

    def _report_foreign(self, done: Done, owner: str) -> None:
        mend = "run `appservice-bridge migrate` and `appservice-bridge install` after each upgrade"
        if done.missing:
            tables = ", ".join(done.missing)
            self._log.error("not everything is captured: no trigger on %s; %s", tables, mend)
        else:
            self._log.warning("capture in place, left to role %s who made it: %s", owner, mend)
