"""The environment of a Synapse: made once, by one, whole or not at all. The real one is long."""

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from appservice_bridge.testing.synapse_environment import (
    LOCK,
    EnvironmentNotMadeError,
    SynapseEnvironment,
    user_cache,
)


def wheel_of(directory: Path, name: str) -> Path:
    """A package with nothing but a name."""
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr(f"{name}.py", "HERE = __file__\n")
        files.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        files.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        files.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def small(tmp_path: Path) -> SynapseEnvironment:
    """One package from this disk in Synapse's stead."""
    wheel = wheel_of(tmp_path, "small")
    lock = tmp_path / "lock.txt"
    digest = sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(f"# matrix-synapse==0\nsmall @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    return SynapseEnvironment(cache=tmp_path / "cache", lock=lock)


def imports(python: Path) -> str:
    code = "import small, sys; print(small.HERE)"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout


def test_of_those_who_come_at_once_one_makes_it_and_all_get_the_same(
    small: SynapseEnvironment,
) -> None:
    said: list[str] = []
    half = small.cache / f".{small.path.name}.of-somebody-who-was-killed"
    half.mkdir(parents=True)
    with ThreadPoolExecutor(3) as pool:
        pythons = list(pool.map(lambda _: small.ensure(said.append), range(3)))
    assert set(pythons) == {small.python}
    assert len(said) == 1
    assert str(small.path) in said[0]
    assert imports(small.python).startswith(str(small.path))
    assert not half.exists()
    (small.lock.parent / "small-1.0-py3-none-any.whl").unlink()  # no package index any more
    assert SynapseEnvironment(cache=small.cache, lock=small.lock).ensure(said.append)
    assert len(said) == 1


def test_what_could_not_be_installed_leaves_nothing_and_says_why(
    small: SynapseEnvironment,
) -> None:
    whole = small.lock.read_text()
    small.lock.write_text(whole.replace("sha256:", "sha256:0"))
    with pytest.raises(EnvironmentNotMadeError, match="appservice_bridge_synapse_python") as failed:
        small.ensure(lambda _: None)
    assert "hash" in str(failed.value).lower()
    left = [path.name for path in small.cache.iterdir()]
    assert left == [f"{small.path.name}.lock"]


def test_other_versions_and_other_pythons_are_other_environments(
    small: SynapseEnvironment,
) -> None:
    before = small.path
    small.lock.write_text(small.lock.read_text() + "# another\n")
    assert small.path != before
    assert sys.implementation.cache_tag in small.path.name
    assert small.version == "unknown" or small.path.name.startswith(f"synapse-{small.version}")


def test_the_lock_that_is_shipped_names_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    shipped = SynapseEnvironment(cache=user_cache())
    assert shipped.lock == LOCK
    assert shipped.version.count(".") == 2
    assert shipped.path.parent == Path("/somewhere/appservice-bridge")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache().is_relative_to(Path.home())
