"""The releases of Synapse and of Postgres that the bridge is tested with.

The end-to-end tests run against both ends of the range: requirements.txt locks the newest,
requirements-oldest.txt the oldest, and a test holds the three together. The newest Postgres is the
one that is embedded; `make test-oldest-postgres` runs on the oldest.
"""

from typing import Final

OLDEST_SYNAPSE: Final = "1.143.0"
NEWEST_SYNAPSE: Final = "1.163.2"
# What `schema_version` holds; between releases Synapse raises it, and it never goes down.
OLDEST_SCHEMA_VERSION: Final = 93
NEWEST_SCHEMA_VERSION: Final = 94
OLDEST_POSTGRES: Final = 14
NEWEST_POSTGRES: Final = 18
