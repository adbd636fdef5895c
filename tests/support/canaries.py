"""Secrets and payloads that must not be seen again, and everything that is said meanwhile."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from typer.testing import CliRunner

from appservice_bridge.cli.main import app
from tests.support.bridge import Files, registration, write_files
from tests.support.ingesting import GENERIC

CANARY: Final = "c4nary7f3a"
POISON: Final = "poisonous"  # to the appservice, which refuses for ever what holds it
UNSTORABLE: Final = "unstorable"  # to Postgres, which then quotes the row
ROLES: Final = ("viewer", "operator", "admin")
UNSTORED: Final = (
    "alter table appservice_bridge.outbox add constraint unstorable"
    f" check (position(convert_to('{UNSTORABLE}', 'UTF8') in payload) = 0)"
)


@dataclass(kw_only=True)
class Heard:
    """What was said, and where.

    Attributes:
        secrets: besides the canary, what must not be said.
    """

    secrets: Sequence[str]
    texts: list[tuple[str, str]] = field(default_factory=list)

    def hear(self, where: str, what: str) -> str:
        self.texts.append((where, what))
        return what

    def run(self, *arguments: str) -> str:
        """Run a command in this process, and hear what it says; a traceback as well."""
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return self.hear(" ".join(arguments), result.output)

    def leaks(self) -> list[tuple[str, str]]:
        """Where something was said that must not be, with a little around it."""
        return [
            (where, what[max(0, what.index(secret) - 80) :][:200])
            for where, what in self.texts
            for secret in (CANARY, CANARY.encode().hex(), *self.secrets)
            if secret in what
        ]


def password_of(dsn: str) -> str:
    password = urlsplit(dsn).password
    assert password
    return password


def secret(appservice_id: str, url: str | None) -> dict[str, Any]:
    """A registration whose tokens are canaries."""
    tokens = {f"{kind}_token": f"{CANARY}-{kind}-{appservice_id}" for kind in ("as", "hs")}
    return registration(appservice_id, url, users=[f"@{appservice_id}_.*"]) | tokens


def secret_files(directory: Path, database: str, *, bot: str, homeserver: str) -> Files:
    """A worker for every transport that logs all it can, every secret of it a canary."""
    files = write_files(
        directory,
        database,
        [secret("bot", bot), secret("sock", None), secret("asker", None)],
        capture="triggers",
        homeserver_url=homeserver,
        homeserver={"verify_keys": GENERIC["verify_keys"]},
        appservices={"sock": {"transport": "websocket"}, "asker": {"transport": "poll"}},
        delivery={"keep_delivered_seconds": 3600},
    )
    tokens = []
    for role in ROLES:
        (directory / f"{role}.token").write_text(f"{CANARY}-{role}")
        tokens.append({"name": role, "role": role, "token_file": f"{role}.token"})
    logs(files, "plain", admin={"tokens": tokens})
    return files


def logs(files: Files, form: str, **more: Any) -> None:
    """Have the next worker log everything, in this form."""
    document = yaml.safe_load(files.config.read_text())
    log = {"level": "debug", "format": form}
    files.config.write_text(yaml.safe_dump(document | {"log": log} | more))


def broken_configs(files: Files) -> list[Path]:
    """The same config with a fault in each, always near a secret."""
    document = yaml.safe_load(files.config.read_text())
    nowhere = f"postgresql://bridge:{CANARY}@127.0.0.1:9/synapse"
    many = [{"name": "a", "role": "root", "token": CANARY}]
    faults: dict[str, Any] = {
        "nowhere": {"database": nowhere},
        "no_dsn": {"database": f"mysql://bridge:{CANARY}@127.0.0.1:9/synapse"},
        "wrong_password": {"database": _with_password(document["database"])},
        "unknown": {"admin": {"tokens": many, "secret": CANARY}},
        "token_in_url": {
            "homeserver": {"server_name": "x", "url": f"http://u:{CANARY}@x/?{CANARY}"}
        },
        "no_list": {"registrations": {"x": CANARY}},
    }
    made = []
    for name, fault in faults.items():
        made.append(files.config.parent / f"{name}.yaml")
        made[-1].write_text(yaml.safe_dump(document | fault))
    made.append(files.config.parent / "no_yaml.yaml")
    made[-1].write_text(f"database: [{CANARY}\nadmin: {{token: {CANARY}")
    for name, text in (
        ("syntax", f'as_token: "{CANARY}\nhs_token: {{{CANARY}'),
        ("types", json.dumps(secret("x", "http://x") | {"as_token": [CANARY], "hs_token": 5})),
        ("url", json.dumps(secret("y", f"ftp://u:{CANARY}@x/"))),
        ("twin", json.dumps(secret("bot", f"http://x/?access_token={CANARY}"))),
    ):
        (files.config.parent / f"bad_{name}.yml").write_text(text)
        made.append(files.config.parent / f"with_{name}.yaml")
        ours = {"registrations": ["registration_*.yaml", f"bad_{name}.yml"]}
        made[-1].write_text(yaml.safe_dump(document | ours))
    return made


def _with_password(dsn: str) -> str:
    return dsn.replace(password_of(dsn), CANARY)
