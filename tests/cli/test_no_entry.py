"""A database that is there and lets nobody in: what is said of it."""

from pathlib import Path
from urllib.parse import urlsplit

from tests.support.bridge import registration, write_files
from tests.support.command import command


async def test_a_database_that_lets_nobody_in_is_said_with_what_to_mend(
    database: str, tmp_path: Path
) -> None:
    parts = urlsplit(database)
    wrong = parts._replace(netloc=f"postgres:wrong@{parts.hostname}:{parts.port}")
    for dsn, mend in (
        (wrong, "mend `database` or `database_password_file`"),
        (parts._replace(path="/none"), "create it, or mend `database`"),
    ):
        files = write_files(tmp_path, dsn.geturl(), [registration("bot", None)])
        code, out, err = await command("status", "--config", str(files.config))
        assert (code, out) == (1, "")
        assert mend in err
        assert "wrong" not in err
