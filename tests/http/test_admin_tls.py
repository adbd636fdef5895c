"""The admin port with a certificate of its own, while the relay speaks plain HTTP."""

import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat

from appservice_bridge.cli.doors import Doors
from appservice_bridge.config.faults import ConfigError
from appservice_bridge.http.doors import Certificate, CertificateError
from tests.support.bridge import registration, worker, write_files
from tests.support.certificate import self_signed
from tests.support.facts import Connection
from tests.support.reloading import ROOT, change, with_tokens


async def test_the_admin_port_speaks_tls_and_the_relay_does_not(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    files = with_tokens(write_files(tmp_path, database, [registration("bot", None)]))
    admin = files.load().config.admin.model_dump(mode="json", exclude_none=True)
    certificate = str(self_signed(tmp_path))
    change(files, admin=admin | {"tls_cert_file": certificate, "tls_key_file": certificate})
    over_tls = aiohttp.TCPConnector(ssl=ssl._create_unverified_context())
    async with worker(files, over_tls=True), aiohttp.ClientSession(connector=over_tls) as session:
        url = files.admin_url.replace("http:", "https:") + ROOT + "/whoami"
        async with session.get(url, headers={"Authorization": "Bearer secret-viewer"}) as answer:
            assert (await answer.json())["role"] == "viewer"
        with pytest.raises(aiohttp.ClientError):
            await session.get(files.admin_url + "/health")
        assert (await session.get(files.relay_url + "/")).status == 404


def test_a_certificate_that_does_not_load_names_its_keys_in_the_config(
    database: str, tmp_path: Path
) -> None:
    files = write_files(tmp_path, database, [registration("bot", None)])
    (tmp_path / "not.pem").write_text("x")
    change(files, admin={"tls_cert_file": "not.pem", "tls_key_file": "not.pem"})
    with pytest.raises(CertificateError, match=r"admin\.tls_cert_file"):
        Doors(files.load().config)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("section", ["admin", "listen"])
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(
    database: str, tmp_path: Path, form: PrivateFormat, section: str
) -> None:
    files = write_files(tmp_path, database, [registration("bot", None)])
    pair = self_signed(tmp_path, form=form, encryption=BestAvailableEncryption(b"secret"))
    named = {"tls_cert_file": pair.name, "tls_key_file": pair.name}
    listen = files.load().config.listen
    ports = {"relay": str(listen.relay), "admin": str(listen.admin)}
    change(files, **{section: (ports | named if section == "listen" else named)})
    with pytest.raises(ConfigError, match=rf"{section}\.tls_key_file .*the key has a passphrase"):
        files.load()
    with pytest.raises(CertificateError, match="the key has a passphrase"):
        Certificate(section, pair, pair)  # put there while the bridge runs
