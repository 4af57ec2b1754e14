"""The locks, the layout, the wheel and the README's commands hold what they promise."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.rooms import ROOMS

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-runtime.lock")
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([a-z0-9.]+)( ; [a-zA-Z0-9_.'<>=!() ]+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds of a copy of this tree, offline, with the locked build backend."""
    tree = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree / file)
    for other in ("tests", "examples", "benchmarks"):  # must stay out, also where they look like packages
        (tree / other).mkdir()
        (tree / other / "__init__.py").touch()
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--no-build-isolation", "--wheel-dir", str(out), str(tree)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def pins(lock: str) -> dict[str, str]:
    """Versions by name of a lock."""
    found = (PIN.match(line) for line in (ROOT / lock).read_text().splitlines())
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_nothing_but_versions_and_hashes(lock: str) -> None:
    """No option, no URL, no comment: so no index host either."""
    text = (ROOT / lock).read_text()
    lines = text.splitlines()
    strange = [
        f"{lock}:{number}: {line}"
        for number, line in enumerate(lines, 1)
        if not PIN.match(line) and not HASH.match(line)
    ]
    assert strange == []
    assert not re.search(r"https?:|//|index|find-links|trusted-host", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_version_in_the_lock_has_hashes(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    bare = [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if PIN.match(line) and not HASH.match(following)
    ]
    assert len(pins(lock)) > 30
    assert bare == []


def test_locks_satisfy_pyproject(project: dict[str, Any]) -> None:
    """A change of dependencies comes with `make lock` in the same commit."""
    locked = pins("requirements.lock")
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["example"], *extras["dev"]]
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement} but {version}: run `make lock`"
        )


def test_runtime_lock_is_a_part_of_the_lock() -> None:
    locked, runtime = pins("requirements.lock"), pins("requirements-runtime.lock")
    assert runtime.items() <= locked.items()
    assert "pytest" not in runtime


def test_lock_that_names_an_index_stays_out() -> None:
    assert "/uv.lock" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("room", ROOMS)
def test_room_is_typed_and_says_what_it_is_for(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
    assert (ROOT / room / "__init__.py").read_text().startswith('"""')


def test_wheel_holds_all_of_the_rooms_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for pattern in ("*.py", "*.lua", "py.typed")
        for path in (ROOT / room).rglob(pattern)
        if "__pycache__" not in path.parts
    }
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == ours
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_rooms_of_the_wheel_belong_together(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "penstock = penstock.cli:main" in archive.read(entry_points).decode()
    program = "from cluster import rooms; rooms.require_rooms(); print(rooms.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path.resolve())


def test_commands_of_the_readme_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    told = set(re.findall(r"^\$ make ([a-z-]+)", readme, flags=re.MULTILINE))
    assert {"demo", "test"} <= told <= targets
    contributing = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert contributing <= targets


def test_ci_runs_the_readme_test_command_and_the_checks() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    commands = [line for line in lines if line.startswith("make ")]
    assert commands == ["make test", "make lint", "make types", "make imports"]


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
