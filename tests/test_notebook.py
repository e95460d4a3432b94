"""The quickstart notebook runs, and what is committed of its outputs is what a run gives.

After a change of its cells run it again, and read its text beside the new outputs:

    .venv/bin/jupyter execute --inplace docs/notebooks/quickstart.ipynb
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "quickstart.ipynb"
COMMITTED = nbformat.read(NOTEBOOK, as_version=4)
LARGEST = 300_000


def test_the_notebook_runs_as_it_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    executed = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(executed, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "quickstart" / "metrics.jsonl").exists()
    for notebook in (COMMITTED, executed):
        cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
        assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
        outputs = {name: cell.outputs for name, cell in cells.items()}
        assert not [one for found in outputs.values() for one in found if one.get("name") == "stderr"]
        said = {name: "".join(one.get("text", "") for one in found) for name, found in outputs.items()}
        assert said["resume"] == "same weights: True\nsame threshold: True\n"
        accuracies = [float(re.search(r"accuracy.*?: ([\d.]+)%", said[name])[1]) for name in ("broken", "attached")]
        assert accuracies[0] < 85 < 90 < accuracies[1]
        number = re.match(r"max_grad_norm: ([\d.]+)\npolicy: {'kind': '\w+'", said["suggest"])
        assert f"Fixed(threshold={float(number[1])})" in said["number"]
        assert all("image/png" in outputs[name][0].data for name in ("broken-plot", "plot"))


def test_what_is_committed_is_small_and_tells_of_no_machine() -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
    shown = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in COMMITTED.cells
        for output in cell.get("outputs", ())
    )
    assert not re.search(r"(?<![\w.])(/\w+){2}|site-packages|\\Users\\", shown)
