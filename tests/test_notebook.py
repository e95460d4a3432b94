"""The quickstart notebook runs, and what is committed of its outputs is what a run gives.

After a change of its cells run it again, and read its text beside the new outputs:

    .venv/bin/jupyter execute --inplace docs/notebooks/quickstart.ipynb
"""

import base64
import re
import struct
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "quickstart.ipynb"
COMMITTED = nbformat.read(NOTEBOOK, as_version=4)
LARGEST = 300_000


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run in a kernel of its own; a cell that raises fails here."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert (folder / "runs" / "quickstart" / "metrics.jsonl").exists()
    return notebook


@pytest.fixture(params=["committed", "executed"])
def notebook(request: pytest.FixtureRequest) -> Any:
    return COMMITTED if request.param == "committed" else request.getfixturevalue("executed")


def outputs(notebook: Any, cell_id: str) -> list[Any]:
    return next(cell.outputs for cell in notebook.cells if cell.id == cell_id)


def text(notebook: Any, cell_id: str) -> str:
    return "".join(output.text for output in outputs(notebook, cell_id))


def accuracy(notebook: Any, cell_id: str) -> float:
    found = re.search(r"accuracy.*?: ([\d.]+)%", text(notebook, cell_id))
    assert found is not None
    return float(found[1])


def test_without_clipping_it_breaks_down_and_with_it_it_trains(notebook: Any) -> None:
    assert accuracy(notebook, "broken") < 85
    assert accuracy(notebook, "attached") > 90


def test_the_resumed_training_is_the_uninterrupted_one(notebook: Any) -> None:
    assert text(notebook, "resume") == "same weights: True\nsame threshold: True\n"


def test_a_number_comes_of_the_log(notebook: Any) -> None:
    number = re.match(r"max_grad_norm: ([\d.]+)\npolicy: {'kind': '\w+'", text(notebook, "suggest"))
    assert number is not None
    assert float(number[1]) > 0
    assert f"Fixed(threshold={float(number[1])})" in text(notebook, "number")


@pytest.mark.parametrize("cell_id", ["broken-plot", "plot"])
def test_the_pictures_are_shown(notebook: Any, cell_id: str) -> None:
    (output,) = outputs(notebook, cell_id)
    png = base64.b64decode(output.data["image/png"])
    assert struct.unpack(">II", png[16:24]) == (1080, 777)
    assert output.metadata["image/png"] == {"width": 540, "height": 389}


def test_the_cells_were_run_in_order_without_a_warning(notebook: Any) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]


def test_what_is_committed_is_small_and_tells_of_no_machine() -> None:
    raw = NOTEBOOK.read_text(encoding="utf-8")
    assert len(raw) < LARGEST
    shown = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in COMMITTED.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert not re.search(r"(?<![\w.])(/\w+){2}|site-packages|\\Users\\", shown)
