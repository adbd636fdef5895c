"""A real Synapse under load: with the bridge, and delivering by itself."""

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from appservice_bridge.bench.crowd import Crowd, NothingCameError, gathered, until_quiet
from appservice_bridge.bench.figures import Side, percentile
from appservice_bridge.bench.receiver import Order
from appservice_bridge.bench.receivers import Receivers
from appservice_bridge.bench.scenario import MEMORY, Figures, Scenario
from appservice_bridge.bench.stage import Running, Stage, connected, registration
from appservice_bridge.dev.bridge_process import BridgeProcess
from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.private_file import write_private
from appservice_bridge.dev.synapse import Synapse, SynapseSettings
from appservice_bridge.domain.registration import relay_path

APPSERVICE: Final = "load"
SERVER: Final = "example.org"
SENDERS: Final = (1, 2, 8, 24)
RECIPIENTS: Final = 8
STEADY_PER_SECOND: Final = 5.0
WARMING_UP: Final = 15  # messages
PATIENCE_SECONDS: Final = 30.0

AT_WORK: Final = """
-- bench.background_updates: what Synapse does after its first start
select exists (select from public.background_updates)
"""


async def loaded(
    crowd: Crowd, receivers: Receivers, senders: Sequence[int], messages: int
) -> Figures:
    """A closed loop with each number of senders.

    Accepted per second, delivered of these in percent, and in milliseconds from before the request
    the slowest hundredth: `p99` to the appservice, `answer-p99` to the homeserver's own answer.
    """
    figures: dict[str, float] = {}
    for count in senders:
        await receivers.order(Order(timed=True))
        accepted, seconds, answered = await crowd.closed_loop(count, messages)
        came = await until_quiet(receivers, accepted)
        figures[f"{count}"] = accepted / seconds
        figures[f"{count}-delivered"] = 100 * came / accepted if accepted else 0.0
        figures[f"{count}-answer-p99"] = percentile(answered, 99)
        if came:
            figures[f"{count}-p99"] = percentile(await receivers.took_ms(), 99)
    return figures


async def unloaded(crowd: Crowd, receivers: Receivers, messages: int) -> Figures:
    """One message at a time, in milliseconds from before its request to the appservice.

    Raises:
        NothingCameError: whoever is to deliver does not.
    """
    await receivers.order(Order(timed=True))
    accepted = await crowd.steadily(messages, STEADY_PER_SECOND)
    if not await until_quiet(receivers, accepted, PATIENCE_SECONDS):
        raise NothingCameError(accepted)
    took = await receivers.took_ms()
    return {"latency": percentile(took, 50), "latency-p99": percentile(took, 99)}


async def _measure(stage: Stage, *, native: bool) -> Figures:
    async with _homeserver(stage, native=native) as (crowd, worker):
        receivers = stage.receivers
        await unloaded(crowd, receivers, WARMING_UP)
        late = await unloaded(crowd, receivers, stage.size(80, quick=15))
        load = await loaded(crowd, receivers, SENDERS, stage.size(600, quick=80))
        memory = {} if worker is None else {MEMORY: worker.peak_memory_mb()}
        return {**late, **load, **memory}


@asynccontextmanager
async def _homeserver(stage: Stage, *, native: bool) -> AsyncIterator[tuple[Crowd, Running | None]]:
    """Synapse on a new database, with people on it, and the bridge unless it is `native`."""
    directory = Path(tempfile.mkdtemp(prefix="synapse-", dir=stage.directory))
    bridge = BridgeProcess(directory / "bridge.yaml", directory / "bridge.log")
    own = registration(APPSERVICE, stage.receivers.url(APPSERVICE))
    async with stage.database(template="template0") as dsn:
        settings = SynapseSettings(
            directory=directory / "synapse",
            server_name=SERVER,
            database=dsn,
            registration_shared_secret=secrets.token_urlsafe(),
            registrations=[_homeserver_copy(directory, own, None if native else bridge)],
            native_encryption=native,
            log_level="WARNING",
        )
        synapse = Synapse(settings)
        _write_config(bridge, own, dsn, synapse)
        try:
            await launched(synapse)
            worker = None if native else await _attached(bridge)
            crowd = await _crowd(synapse, own["as_token"])
            await _until_it_rests(dsn)
            yield crowd, worker
        finally:
            for part in (bridge, synapse):
                part.stop()
            for port in (bridge.relay, bridge.admin, synapse.port):
                port.release()


async def _crowd(synapse: Synapse, as_token: str) -> Crowd:
    return await gathered(
        synapse.url,
        shared_secret=synapse.settings.registration_shared_secret,
        as_token=as_token,
        senders=max(SENDERS),
        localparts=[f"{APPSERVICE}_{number}" for number in range(RECIPIENTS)],
    )


def _homeserver_copy(directory: Path, own: dict[str, Any], bridge: BridgeProcess | None) -> Path:
    copy = own
    if bridge is not None:
        url = bridge.relay.url + relay_path(APPSERVICE)
        copy = own | {"url": url, "org.matrix.msc3202": False}
    path = directory / "homeserver_copy.yaml"
    path.write_text(json.dumps(copy))
    return path


def _write_config(bridge: BridgeProcess, own: dict[str, Any], dsn: str, synapse: Synapse) -> None:
    bridge.config.with_name("registration.yaml").write_text(json.dumps(own))
    document = {
        "database": dsn,
        "homeserver": {"server_name": SERVER, "url": synapse.url},
        "listen": {"relay": bridge.relay.address, "admin": bridge.admin.address},
        "registrations": ["registration.yaml"],
    }
    write_private(bridge.config, yaml.safe_dump(document))


async def _attached(bridge: BridgeProcess) -> Running:
    await bridge.prepare("migrate")
    await bridge.prepare("install")
    await launched(bridge)
    return Running(child=bridge.child)


async def _until_it_rests(dsn: str) -> None:
    async with connected(dsn) as conn:
        while await conn.fetchval(AT_WORK):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.5)


def _units() -> dict[str, str]:
    units = {"latency": "ms", "latency-p99": "ms", MEMORY: "MB"}
    for count in SENDERS:
        units |= {f"{count}": "accepted/s", f"{count}-delivered": "%"}
        units |= {f"{count}-p99": "ms", f"{count}-answer-p99": "ms"}
    return units


SCENARIOS: Final = (
    Scenario(
        name="synapse",
        about="real Synapse with 1 to 24 senders in a closed loop; beside its own delivery",
        units=_units(),
        sides={
            Side.BRIDGE: partial(_measure, native=False),
            Side.NATIVE: partial(_measure, native=True),
        },
    ),
)
