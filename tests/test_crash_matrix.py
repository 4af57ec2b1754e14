"""Every point of the effect protocol by every fault by every kind of tool, on a real cluster: the ledger judges.

The docs have the table of what each cell comes to. A few cells are in the default suite; all of them are `make matrix`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from matrix import FAULTS, KINDS, POINTS, Cell, Found, Matrix, matrix_at, table
from strikes import APPLIED, CUT, FROZEN, KILLED, SENT, STORE_KILLED, TIMEOUT

from cluster.session import LocalRay

pytestmark = pytest.mark.ray

# Every point, every fault and every kind of tool at least once, and each fault where it matters most.
FEW = (
    Cell("before_intent", KILLED, "neither"),
    Cell("after_intent", STORE_KILLED, "neither"),
    Cell("after_begin", FROZEN, "neither"),
    Cell("before_call", CUT, "neither"),
    Cell(SENT, CUT, "reconcilable"),
    Cell(APPLIED, TIMEOUT, "idempotent"),
    Cell(APPLIED, KILLED, "neither"),
    Cell("after_call", STORE_KILLED, "reconcilable"),
    Cell("after_settle", KILLED, "neither"),
    Cell("after_journal", TIMEOUT, "idempotent"),
)


@pytest.fixture(scope="module")
def matrix(ray_cluster: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with matrix_at(ray_cluster, tmp_path_factory.mktemp("matrix"), name="matrix") as matrix:
        yield matrix


async def judged(matrix: Matrix, cells: list[Cell]) -> list[Found]:
    """Goes through the cells, and compares all of them with the table in the end."""
    promised, found = table(), []
    async with matrix.client() as client:
        for cell in cells:
            found.append(await matrix.found(client, cell))
            end = found[-1]
            print(f"{cell}: {end.state} x{end.applied} ({end.took_s:.1f} s)", flush=True)
    wrong = [
        end for end in found if end.state != promised[end.cell].state or end.applied not in promised[end.cell].applied
    ]
    assert not wrong, "\n".join(f"{end.cell}: {end.state} x{end.applied}, not {promised[end.cell]}" for end in wrong)
    assert all(end.applied <= 1 for end in found)
    assert all(end.listed == (end.state == "unknown") for end in found)
    return found


def test_the_short_version_has_every_point_fault_and_kind() -> None:
    assert [{cell[part] for cell in FEW} for part in range(3)] == [set(POINTS), set(FAULTS), set(KINDS)]


async def test_a_few_cells_of_the_crash_matrix(matrix: Matrix) -> None:
    await judged(matrix, list(FEW))


@pytest.mark.matrix
@pytest.mark.timeout(1800)
async def test_the_crash_matrix(matrix: Matrix) -> None:
    only = os.environ.get("MATRIX_ONLY", "")
    # Faults that take a host take turns with those that do not: meanwhile the next host starts.
    order = (KILLED, CUT, TIMEOUT, FROZEN, STORE_KILLED)
    cells = [Cell(point, fault, kind) for point in POINTS for kind in KINDS for fault in order]
    await judged(matrix, [cell for cell in cells if only in str(cell)])
