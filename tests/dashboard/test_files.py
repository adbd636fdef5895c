"""How the worker serves the page: its own files, to everybody, and nothing else."""

from pathlib import Path

import aiohttp
import pytest

from tests.support.bridge import Files, registration, worker, write_files
from tests.support.facts import Connection
from tests.support.reloading import with_tokens
from tests.support.wheel import PROJECT

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = PROJECT / "appservice_bridge" / "http" / "dashboard" / "page"
SERVED = sorted(
    path.relative_to(PAGE).as_posix()
    for path in PAGE.rglob("*")
    if path.suffix in {".css", ".js", ".svg"}
)


@pytest.fixture
def files(database: str, tmp_path: Path) -> Files:
    return with_tokens(write_files(tmp_path, database, [registration("bot", None)]))


async def test_the_page_and_its_files_are_served_without_a_token_and_run_nothing_foreign(
    pg: Connection, files: Files
) -> None:
    assert "vendor/uplot/uPlot.esm.js" in SERVED
    async with worker(files), aiohttp.ClientSession(files.admin_url) as browser:
        for path in ("/", *(f"/dashboard/{name}" for name in SERVED)):
            async with browser.get(path) as answer:
                assert answer.status == 200
                assert answer.charset == "utf-8"
                policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert "require-trusted-types-for 'script'" in policy


async def test_what_a_browser_has_already_is_not_sent_again(pg: Connection, files: Files) -> None:
    async with worker(files), aiohttp.ClientSession(files.admin_url) as browser:
        async with browser.get("/dashboard/main.js") as answer:
            known = {"If-None-Match": answer.headers["ETag"]}
            assert answer.headers["Cache-Control"] == "no-cache"
        async with browser.get("/dashboard/main.js", headers=known) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with browser.get("/dashboard/api.js", headers=known) as answer:
            assert answer.status == 200


async def test_nothing_beside_the_page_is_served(pg: Connection, files: Files) -> None:
    async with worker(files), aiohttp.ClientSession(files.admin_url) as browser:
        for path in (
            "/dashboard/",
            "/dashboard/files.py",
            "/dashboard/vendor/uplot/LICENSE",
            "/dashboard/..%2Ffiles.py",
            "/dashboard/%2E%2E/admin.py",
            "/index.html",
        ):
            async with browser.get(path) as answer:
                assert (answer.status, (await answer.json())["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_no_file_turns_text_into_markup_or_leads_elsewhere() -> None:
    own = [path for path in PAGE.rglob("*") if path.is_file() and "vendor" not in path.parts]
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    for path in own:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert not [word for word in forbidden if word in text], path
