"""The notebook runs as it stands, and is kept without outputs."""

from __future__ import annotations

import re

import nbformat
import nibabel as nib
import numpy as np
import pytest
from bundle_tools import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
def test_the_notebook_goes_from_a_raw_head_to_a_corrected_mask(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTORIAL_DIR", str(tmp_path))
    before = sorted(NOTEBOOK.parent.rglob("*")), NOTEBOOK.read_bytes()
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    (corrected,) = (tmp_path / "corrected").glob("*.nii.gz")
    masks = [np.asarray(nib.load(path).dataobj) > 0 for path in (tmp_path / "results" / corrected.name, corrected)]
    both, sizes = np.count_nonzero(masks[0] & masks[1]), [np.count_nonzero(mask) for mask in masks]
    assert sizes[0] > 0
    shown = "".join(str(output.get("text", "")) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert float(re.search(r"^dice +([\d.]+)", shown, re.MULTILINE)[1]) == pytest.approx(
        2 * both / sum(sizes), abs=1e-3
    )
    assert "draft against correction" in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert (sorted(NOTEBOOK.parent.rglob("*")), NOTEBOOK.read_bytes()) == before
