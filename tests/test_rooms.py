"""The start-up check of the rooms, each case in a Python of its own with a real intruder on its path."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import rooms

ROOT = Path(__file__).resolve().parent.parent

# Loads the check by its path, as the face does: `cluster` may be the room that is hidden.
PROBE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("rooms_by_path", sys.argv[1])
rooms = importlib.util.module_from_spec(spec)
sys.modules["rooms_by_path"] = rooms
spec.loader.exec_module(rooms)
try:
    rooms.require_rooms()
except ImportError as error:
    print(json.dumps({"message": str(error), "rooms": [i.room for i in error.intruders],
                      "distributions": [list(i.distributions) for i in error.intruders]}))
else:
    print(json.dumps({"message": None, "rooms": [], "distributions": []}))
"""


def probe(home: Path, *path: Path, cwd: Path | None = None) -> dict[str, Any]:
    """What the check of the rooms in ``home`` says in a new process whose PYTHONPATH is ``path``.

    ``-S`` keeps the environment's own packages out: an editable install would stand in for a room that is missing.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(entry) for entry in path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROBE, str(home / "cluster" / "rooms.py")],
        env=environment, cwd=cwd or home, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def install_intruder(site: Path, room: str, distribution: str) -> Path:
    """Lay out ``site`` as if pip had installed ``distribution`` with a package called ``room``."""
    package = site / room
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("INTRUDER = True\n")
    info = site / f"{distribution.replace('-', '_')}-1.4.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.4.1\n")
    (info / "top_level.txt").write_text(f"{room}\n")
    (info / "RECORD").write_text(f"{room}/__init__.py,,\n")
    return package / "__init__.py"


def install_rooms(site: Path) -> None:
    """Lay out ``site`` as if pip had installed our wheel: the rooms and a record with their hashes."""
    record = []
    for room in rooms.ROOMS:
        shutil.copytree(ROOT / room, site / room, ignore=shutil.ignore_patterns("__pycache__"))
        digest = hashlib.sha256((site / room / "__init__.py").read_bytes()).digest()
        record.append(f"{room}/__init__.py,sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},1")
    info = site / "penstock-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: penstock\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("\n".join(record) + "\n")


def test_own_rooms_pass() -> None:
    assert rooms.check_rooms() == []
    rooms.require_rooms()


@pytest.mark.parametrize("room", ["cluster", "admission", "actors"])
def test_intruder_earlier_on_the_path_is_named_with_file_distribution_and_fix(room: str, tmp_path: Path) -> None:
    file = install_intruder(tmp_path, room, f"{room}-tools")
    said = probe(ROOT, tmp_path, ROOT)
    assert said["rooms"] == [room]
    assert said["distributions"] == [[f"{room}-tools"]]
    assert f"room '{room}' is hidden by {file}" in said["message"]
    assert f"uninstall {room}-tools" in said["message"]


def test_shadowed_package_later_on_the_path_is_no_intruder(tmp_path: Path) -> None:
    install_intruder(tmp_path, "cluster", "cluster")
    assert probe(ROOT, ROOT, tmp_path)["rooms"] == []


def test_plain_directory_is_named_without_a_distribution(tmp_path: Path) -> None:
    (tmp_path / "telemetry").mkdir()
    (tmp_path / "telemetry" / "__init__.py").write_text("")
    said = probe(ROOT, tmp_path, ROOT)
    assert said["rooms"] == ["telemetry"]
    assert "no installed distribution" in said["message"]
    assert f"without {tmp_path} on the Python path" in said["message"]


def test_all_intruders_are_gathered(tmp_path: Path) -> None:
    install_intruder(tmp_path, "cluster", "cluster")
    install_intruder(tmp_path, "actors", "actors-anonymous")
    assert probe(ROOT, tmp_path, ROOT)["rooms"] == ["actors", "cluster"]


def test_missing_room_is_named(tmp_path: Path) -> None:
    install_rooms(tmp_path)
    shutil.rmtree(tmp_path / "admission")
    said = probe(tmp_path, tmp_path)
    assert said["rooms"] == ["admission"]
    assert "room 'admission' is missing" in said["message"]


def test_installed_rooms_pass(tmp_path: Path) -> None:
    install_rooms(tmp_path)
    assert probe(tmp_path, tmp_path)["rooms"] == []


def test_room_overwritten_in_its_place_is_named(tmp_path: Path) -> None:
    install_rooms(tmp_path)
    file = install_intruder(tmp_path, "cluster", "cluster")
    said = probe(tmp_path, tmp_path)
    assert said["rooms"] == ["cluster"]
    assert said["distributions"] == [["cluster"]]
    assert f"room 'cluster' was overwritten by {file}" in said["message"]


def test_rooms_that_ray_unpacks_side_by_side_belong_together(tmp_path: Path) -> None:
    places = [tmp_path / f"_ray_pkg_{number:016x}" for number in range(len(rooms.ROOMS))]
    for room, place in zip(rooms.ROOMS, places, strict=True):
        shutil.copytree(ROOT / room, place / room, ignore=shutil.ignore_patterns("__pycache__"))
    home = places[rooms.ROOMS.index("cluster")]
    assert probe(home, *places)["rooms"] == []
