"""What `doctor` finds of the appservices' users: each lacks one thing, and is named."""

from pathlib import Path

import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.doctor.devices import devices_lacking
from appservice_bridge.doctor.finding import Finding, Level
from tests.support.bridge import registration, write_files
from tests.support.delivered import add_device
from tests.support.facts import Connection, make_synapse_tables

USERS = ("well", "bare", "keyless", "nine", "without_fallback")


@pytest.fixture
async def found(pg: Connection, database: str, tmp_path: Path) -> dict[str, Finding]:
    """Findings by code, of users of whom each but the first lacks something."""
    await make_synapse_tables(pg)
    for name in USERS:
        user = f"@b_{name}:example.org"
        await pg.execute("insert into public.users (name, creation_ts) values ($1, 0)", user)
        if name != "bare":
            await add_device(pg, user, name.upper())
        if name in ("well", "nine", "without_fallback"):
            await give_keys(pg, user, name.upper(), 9 if name == "nine" else 10)
        if name in ("well", "nine"):
            await pg.execute(
                "insert into public.e2e_fallback_keys_json"
                " (user_id, device_id, algorithm, key_id, key_json)"
                " values ($1, $2, 'signed_curve25519', 'f', '{}')",
                user,
                name.upper(),
            )
    bots = [registration("bot", "http://127.0.0.1:9", users=["@b_.*"])]
    of = write_files(tmp_path, database, bots).load()
    return {one.code: one for one in await devices_lacking(pg, owners(of))}


async def give_keys(pg: Connection, user: str, device: str, keys: int) -> None:
    await pg.execute(
        "insert into public.e2e_one_time_keys_json"
        " (user_id, device_id, algorithm, key_id, ts_added_ms, key_json)"
        " select $1, $2, 'signed_curve25519', n::text, 0, '{}' from generate_series(1, $3) n",
        user,
        device,
        keys,
    )


def test_who_lacks_something_is_named_with_the_mend_and_nobody_else_is(
    found: dict[str, Finding],
) -> None:
    for code, named, mend in (
        ("no_device", "@b_bare:example.org", "make a device"),
        ("no_keys", "@b_keyless:example.org KEYLESS", "upload keys"),
        ("few_keys", "@b_nine:example.org NINE", "upload keys"),
        ("no_fallback_key", "@b_without_fallback:example.org WITHOUT_FALLBACK", "upload keys"),
    ):
        one = found[code]
        assert (one.level, one.appservice) == (Level.DOUBT, "bot")
        assert one.what.endswith(f"(1): {named}")
        assert mend in one.mend
    assert len(found) == 4
