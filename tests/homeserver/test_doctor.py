"""`doctor` beside a real Synapse: each test breaks one thing, and it is found with its mend."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.domain.supported import NEWEST_SYNAPSE, OLDEST_SYNAPSE
from tests.support.command import command
from tests.support.homeserver import Client, Homeserver

JsonDict = dict[str, Any]
HEALTHY = {"no_device", "no_keys", "few_keys", "no_fallback_key", "dead_letters"}
"""What the tests of this directory leave behind, and is no fault."""


@dataclass(frozen=True)
class Copy:
    """The bridge's configuration and one registration, to be broken; the rest is left alone."""

    directory: Path

    @property
    def registration(self) -> Path:
        return self.directory / "registration.yaml"

    @property
    def homeserver(self) -> Path:
        return self.directory / "homeserver.yaml"

    @property
    def at_homeserver(self) -> Path:
        return self.directory / "homeserver_copy.yaml"

    def change(self, file: Path, edit: Callable[[JsonDict], None]) -> None:
        document = yaml.safe_load(file.read_text())
        edit(document)
        file.write_text(yaml.safe_dump(document))

    async def findings(self, *more: str) -> tuple[int, dict[str, JsonDict]]:
        """Exit code, and the findings that are not left by other tests, by code."""
        config = str(self.directory / "bridge.yaml")
        status, out, err = await command("doctor", "--config", config, "--json", *more)
        assert out, err
        answer = json.loads(out)
        assert answer["version"] == 1
        found = {one["code"]: one for one in answer["findings"] if one["code"] not in HEALTHY}
        return status, found

    async def found(self, code: str, *more: str) -> JsonDict:
        """The one thing that is wrong."""
        status, found = await self.findings(*more)
        assert set(found) == {code}
        assert status == (1 if found[code]["level"] == "fault" else 0)
        return found[code]


@pytest.fixture
def copy(synapse: Homeserver, tmp_path: Path) -> Copy:
    """What the bridge that runs was started with, of the appservice `others` alone."""
    made = Copy(tmp_path)
    for number in range(len(synapse.appservices)):
        file = synapse.directory / f"registration_{number}.yaml"
        if json.loads(file.read_text())["id"] == "others":
            shutil.copy(file, made.registration)
            copy_of = synapse.directory / f"homeserver_copy_{number}.yaml"
            shutil.copy(copy_of, made.at_homeserver)
    document = yaml.safe_load(synapse.bridge.config.read_text())
    document["registrations"] = ["registration.yaml"]
    document.pop("appservices", None)
    (tmp_path / "bridge.yaml").write_text(yaml.safe_dump(document))
    listed: JsonDict = {"app_service_config_files": ["homeserver_copy.yaml"]}
    made.homeserver.write_text(yaml.safe_dump(listed))
    return made


@pytest.fixture
async def appservice(synapse: Homeserver) -> AsyncIterator[None]:
    """`others` listens, and answers pings that carry its token."""
    registered = synapse.appservices["others"]

    async def ping(request: web.Request) -> web.Response:
        token = registered.registration["hs_token"]
        known = request.headers.get("Authorization") == f"Bearer {token}"
        return web.json_response({}, status=200 if known else 403)

    async def take(_request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/_matrix/app/v1/ping", ping)
    app.router.add_put("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    registered.port.release()
    await web.TCPSite(runner, "127.0.0.1", registered.port.number).start()
    yield
    await runner.cleanup()


@pytest.mark.usefixtures("appservice")
async def test_nothing_is_found_where_all_is_well_and_the_supported_range_is_named(
    copy: Copy,
) -> None:
    status, found = await copy.findings("--homeserver-config", str(copy.homeserver))
    assert (status, found) == (0, {})
    config = str(copy.directory / "bridge.yaml")
    _, out, _ = await command("doctor", "--config", config)
    assert f"{OLDEST_SYNAPSE} to {NEWEST_SYNAPSE}" in out


@pytest.mark.usefixtures("appservice")
async def test_native_flags_left_on_are_found(copy: Copy) -> None:
    flag = "msc2409_to_device_messages_enabled"
    copy.change(copy.homeserver, lambda d: d.update(experimental_features={flag: True}))
    finding = await copy.found("native_flag", "--homeserver-config", str(copy.homeserver))
    assert f"{flag}: false" in finding["mend"]
    assert "homeserver.yaml:4: " in finding["mend"]


@pytest.mark.usefixtures("appservice")
async def test_a_server_name_that_is_not_the_homeservers_is_found(copy: Copy) -> None:
    bridge = copy.directory / "bridge.yaml"
    right = yaml.safe_load(bridge.read_text())["homeserver"]["server_name"]
    copy.change(bridge, lambda d: d["homeserver"].update(server_name="other.org"))
    finding = await copy.found("server_name")
    assert f"server_name: {right}`" in finding["mend"]


@pytest.mark.usefixtures("appservice")
async def test_a_copy_that_does_not_point_at_the_relay_is_found(copy: Copy) -> None:
    copy.change(copy.at_homeserver, lambda d: d.update(url="http://127.0.0.1:1"))
    finding = await copy.found("not_at_relay", "--homeserver-config", str(copy.homeserver))
    assert "/appservice/others" in finding["mend"]


@pytest.mark.usefixtures("appservice")
async def test_a_token_that_the_homeservers_copy_does_not_have_is_found(copy: Copy) -> None:
    copy.change(copy.at_homeserver, lambda d: d.update(hs_token="another"))
    finding = await copy.found("token_mismatch", "--homeserver-config", str(copy.homeserver))
    assert "hs_token" in finding["what"]
    assert "another" not in json.dumps(finding)


@pytest.mark.usefixtures("appservice")
async def test_two_of_the_homeservers_registrations_with_one_token_are_found(copy: Copy) -> None:
    twin = copy.directory / "twin.yaml"
    shutil.copy(copy.at_homeserver, twin)
    copy.change(twin, lambda d: d.update(id="twin", hs_token="another"))
    files = ["homeserver_copy.yaml", "twin.yaml"]
    copy.change(copy.homeserver, lambda d: d.update(app_service_config_files=files))
    finding = await copy.found("token_shared", "--homeserver-config", str(copy.homeserver))
    assert "twin.yaml" in finding["what"]


@pytest.mark.usefixtures("appservice")
async def test_an_as_token_that_the_running_homeserver_does_not_know_is_found(copy: Copy) -> None:
    copy.change(copy.registration, lambda d: d.update(as_token="another"))
    finding = await copy.found("token_mismatch")
    assert "as_token" in finding["what"]
    assert "another" not in json.dumps(finding)


async def test_an_appservice_that_does_not_listen_is_found(copy: Copy) -> None:
    finding = await copy.found("appservice_unreachable")
    assert "registration.yaml" in finding["mend"]


@pytest.mark.usefixtures("appservice")
async def test_an_appservice_with_another_hs_token_is_found(copy: Copy) -> None:
    copy.change(copy.registration, lambda d: d.update(hs_token="another"))
    finding = await copy.found("token_mismatch")
    assert "refuses our hs_token, 403" in finding["what"]


@pytest.mark.usefixtures("appservice")
async def test_a_homeserver_that_does_not_answer_is_found(copy: Copy) -> None:
    nowhere = f"http://127.0.0.1:{LoopbackPort().number}"
    bridge = copy.directory / "bridge.yaml"
    copy.change(bridge, lambda d: d["homeserver"].update(url=nowhere))
    finding = await copy.found("homeserver_unreachable")
    assert nowhere in finding["mend"]


@pytest.mark.usefixtures("appservice")
async def test_a_trigger_that_is_gone_is_found(copy: Copy, synapse: Homeserver) -> None:
    drop = "alter table public.user_signature_stream {} trigger appservice_bridge_insert"
    synapse.execute(drop.format("disable"))
    try:
        status, found = await copy.findings()
    finally:
        synapse.execute(drop.format("enable"))
    assert status == 1
    assert {"capture_broken"} <= set(found) <= {"capture_broken", "capture_mode"}
    assert "appservice-bridge install" in found["capture_broken"]["mend"]


@pytest.mark.usefixtures("appservice")
async def test_few_keys_and_no_fallback_key_and_no_device_are_found(
    copy: Copy, client: Client, fresh: str
) -> None:
    puppet = await client.puppet("others", f"others_{fresh}")
    key = {"key": "a", "signatures": {}}
    keys = {f"signed_curve25519:{n}": key for n in range(3)}
    await client.call("POST", "/keys/upload", puppet.token, {"one_time_keys": keys})
    config = str(copy.directory / "bridge.yaml")
    status, out, _ = await command("doctor", "--config", config, "--json")
    found = {one["code"]: one for one in json.loads(out)["findings"]}
    assert status == 0
    assert "@others" in found["few_keys"]["what"]
    assert "@others" in found["no_fallback_key"]["what"]
    assert all(one["level"] == "doubt" for one in found.values())


async def test_the_probe_reaches_the_relay_and_not_the_appservice(
    copy: Copy, synapse: Homeserver
) -> None:
    async with aiohttp.ClientSession() as http:
        path = "/_matrix/client/v1/appservice/others/ping"
        token = synapse.appservices["others"].as_token
        async with http.post(
            synapse.url + path,
            json={"transaction_id": "ab-probe-1"},
            headers={"Authorization": f"Bearer {token}"},
        ) as response:
            assert (await response.json())["status"] == 418
