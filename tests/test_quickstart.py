"""The quickstart: the bundles on phantoms, one page, and no folder touched that it did not make."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import BUNDLES
from PIL import Image

from common.errors import InputError
from comparison import find_methods, quickstart


@pytest.fixture(scope="module")
def finished(random_bundles, tmp_path_factory) -> list:
    """Comparisons of a run on one patient and one healthy subject, bundles side by side."""
    folder = tmp_path_factory.mktemp("run") / "quickstart"
    groups = {"ms": (0, 0, 1), "healthy": (0, 0, 1)}
    options = {f"{bundle.name}/inference": {"spacing": [6.0, 6.0, 6.0]} for bundle in BUNDLES}
    return quickstart.run(folder, random_bundles, groups, 6.0, options, "cpu", num_workers=2)


@pytest.mark.slow
def test_one_page_compares_every_method_on_every_case(finished):
    page = (finished[0].output_dir / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Lesion", "Tissue"]
    assert page.count("<article") == 2 + 2
    for comparison in finished:
        methods = [method for method in find_methods().values() if method.target == comparison.target]
        titles = {method.title for method in methods}
        unshipped = {method.title for method in methods if not method.is_shipped}
        assert {result.method.title for result in comparison.results} == titles - unshipped
        assert not comparison.unfit


@pytest.mark.slow
def test_masks_lie_on_the_grid_of_the_phantoms(finished):
    for comparison in finished:
        for result in comparison.results:
            for case in result.evaluation.cases:
                scan = nib.load(next(path for path in case["image"] if path is not None))
                mask = nib.load(result.evaluation.output_dir / f"{case['name']}_seg.nii.gz")
                assert mask.shape == scan.shape
                np.testing.assert_array_equal(mask.affine, scan.affine)


@pytest.mark.slow
def test_picture_of_each_bundle_has_three_panels_side_by_side(finished):
    for name in [f"{bundle.name}{suffix}" for bundle in BUNDLES for suffix in ("", "_worst")]:
        with Image.open(finished[0].output_dir / "pictures" / f"{name}.png") as picture:
            assert picture.width > 2 * picture.height


def test_second_run_replaces_the_results_and_leaves_other_files(tmp_path):
    out = tmp_path / "out"
    quickstart.clear(out)
    for name in ("cohort/sub-001/scan.nii.gz", "runs/x", "report.html", "lesion_cases.csv", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of the first run, or of the user")
    quickstart.clear(out)
    assert [path.name for path in out.iterdir() if path.name != quickstart.MARKER] == ["notes.txt"]


def test_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "cohort").mkdir()
    with pytest.raises(InputError, match="holds files of something else"):
        quickstart.run(tmp_path, BUNDLES[0].parent, {"ms": (0, 0, 1)}, 6.0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "thesis.tex"]


def test_link_in_an_own_folder_is_removed_and_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.txt").write_text("precious")
    quickstart.clear(out)
    (out / "cohort").symlink_to(elsewhere)
    quickstart.clear(out)
    assert not (out / "cohort").exists()
    assert (elsewhere / "data.txt").read_text() == "precious"
