"""The notebooks run from top to bottom on the committed runs, say what they compute, and are committed with
their outputs.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"reading_a_spike", "comparing_runs", "capacity"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_computes_every_figure_of_its_sentences(path: Path) -> None:
    notebook = read(path)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert any(
        "image/svg+xml" in output.get("data", {}) for cell in notebook.cells for output in outputs(cell)
    )
    said = " ".join(" ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    *_, last = notebook.cells
    claims = "".join(output.get("text", "") for output in outputs(last)).splitlines()
    assert len(claims) > 5
    for claim in claims:
        assert claim in said, "a sentence says something else"
        said = said.replace(claim, "")
    # What is left has no figure but in code, and in the names of percentiles.
    left = re.sub(r"`[^`]*`|\bp\d+\b|^ ?\d\. | \d\. |M/D/1", " ", said)
    assert not re.findall(r"\S*\d\S*", left)
    assert "flashgrid.mplstyle" in "".join(cell.source for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path: Path) -> None:
    notebook = read(path)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run once, from top to bottom"
    found = [output for cell in notebook.cells for output in outputs(cell)]
    assert not [output for output in found if output.output_type == "error"]
    assert not [output for output in found if output.get("name") == "stderr"]


def read(path: Path) -> nbformat.NotebookNode:
    notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def outputs(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return list(cell.get("outputs", []))
