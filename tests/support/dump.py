"""What pg_dump says of a database, without what differs from one dump to the next."""

import shutil
import subprocess
from pathlib import Path

from appservice_bridge.dev.postgres import EmbeddedPostgres

A_KEY_OF_THIS_DUMP = ("\\restrict", "\\unrestrict")


def schema_dump(server: EmbeddedPostgres, dsn: str, *options: str) -> str:
    """Every object with its owner and its grants; no rows."""
    beside = Path(server.cluster.program("pg_dump"))
    program = str(beside) if beside.exists() else shutil.which("pg_dump")
    assert program is not None
    done = subprocess.run(
        [program, "--schema-only", *options, dsn], check=True, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith(A_KEY_OF_THIS_DUMP)]
    return "\n".join(lines)
