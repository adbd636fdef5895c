"""How Postgres runs a statement: the nodes of its plan, with what each looked at."""

import json
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from appservice_bridge.storage.database import Connection

Node: TypeAlias = dict[str, Any]

MODES: Final = ("force_custom_plan", "force_generic_plan")


async def planned(conn: Connection, statement: str, parameters: str, mode: str) -> list[Node]:
    """The nodes of one execution, which is then undone; parameters as SQL."""
    given = f"({parameters})" if parameters else ""
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute(f"set local plan_cache_mode = {mode}")
    await conn.execute(f"prepare hot as {statement}")
    try:
        found = await conn.fetchval(f"explain (analyze, format json) execute hot{given}")
    finally:
        await transaction.rollback()
        await conn.execute("deallocate hot")
    return list(nodes(json.loads(found)[0]["Plan"]))


def nodes(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def is_scan(node: Node) -> bool:
    """Whether it reads a table."""
    return node["Node Type"].endswith("Scan") and "Relation Name" in node


def looked_at(scan: Node) -> float:
    """How many rows it read, wanted or not, each time it ran."""
    return float(scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0))
