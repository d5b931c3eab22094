"""notebooks/quickstart.ipynb runs from top to bottom and shows samples and scores."""

import base64
import json
import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
KERNEL = "jdcl-jax-tests"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this very interpreter, found without anything installed, that writes below tmp_path only."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": KERNEL, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        (tmp_path / variable.lower()).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    # One device instead of the suite's two, and code that is compiled fast and runs slowly: few steps are made.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JDCL_JAX_QUICK", "1")
    return KERNEL


def output_text(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    (cell,) = [cell for cell in notebook.cells if cell.get("id") == cell_id]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_is_valid_and_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.end_to_end
@pytest.mark.long
def test_it_runs_and_shows_samples_and_scores(kernel: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(work)}}
    )
    client.execute()

    table = output_text(notebook, "scores").splitlines()
    assert table[0] == "scores after task 2 of 2"
    assert table[2].split()[:2] == ["score", "better"]
    rows = {line.split()[0]: line.split()[1:] for line in table if line.startswith(("fd_classifier", "kld", "ard"))}
    assert set(rows) == {"fd_classifier", "kld", "ard"}
    assert rows["fd_classifier"][0] == "lower"
    assert all(float(number) >= 0 for number in rows["fd_classifier"][1:4]), "two tasks and their union"

    (samples,) = [cell for cell in notebook.cells if cell.get("id") == "samples"]
    pictures = [output.data["image/png"] for output in samples.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert all(base64.b64decode(picture).startswith(PNG) for picture in pictures)
    assert "after task 2: classes 2, 3 are new" in output_text(notebook, "samples")

    (run,) = (work / "runs").iterdir()
    assert json.loads((run / "results.json").read_text())["status"] == "finished"
    assert (run / "report.html").exists()
