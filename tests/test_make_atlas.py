"""Label maps of people become an atlas that sae_segmentation takes, with the table of neighbors beside it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import load_script

from common.errors import InputError
from labels.atlas import average_of_label_maps
from sae_segmentation.loss import neighbor_table
from sae_segmentation.prior import open_atlas

main = load_script("make_atlas").main
CLASSES = {"background": [0, 9], "gray": [3, 42], "white": [2, 41]}


@pytest.fixture
def people(tmp_path):
    """Two maps of the same brain in FreeSurfer's numbers, of which one lies 6 mm further along x; and its labels."""
    values = np.zeros((14, 10, 10), np.int32)
    values[2:12, 2:8, 2:8] = 3
    values[7:12, 2:8, 2:8] = 42
    values[4:10, 4:6, 4:6] = 2
    values[0, 0, 0] = 9
    moved = np.eye(4)
    moved[0, 3] = 6
    for name, affine in (("a", np.eye(4)), ("b", moved)):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii.gz")
    labels = np.select([np.isin(values, (3, 42)), values == 2], [1, 2], 0)
    return tmp_path, labels


def test_people_in_one_space_are_averaged(people):
    folder, labels = people
    back = np.eye(4)
    back[0, 3] = -6
    items = [{"label": "a.nii.gz"}, {"label": "b.nii.gz", "world_to_mni": back.tolist()}]
    (folder / "maps.json").write_text(json.dumps({"training": items}))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    main(
        str(folder / "out" / "atlas.nii.gz"),
        datalist_file=str(folder / "maps.json"),
        classes=str(folder / "classes.json"),
        sigma_mm=0,
    )
    atlas = open_atlas(str(folder / "out" / "atlas.nii.gz"), 3)
    found = atlas.probabilities.argmax(0).numpy()
    start = np.rint(-atlas.affine[:3, 3]).astype(int)  # of the maps' first voxel, world 0
    inside = tuple(slice(s + 1, s + n - 1) for s, n in zip(start, labels.shape, strict=True))
    np.testing.assert_array_equal(found[inside], labels[1:-1, 1:-1, 1:-1])
    assert atlas.probabilities.max(0).values.min() > 0.999  # the two people agree everywhere
    side = json.loads((folder / "out" / "atlas.json").read_text())
    assert side["classes"] == ["background", "gray", "white"]
    np.testing.assert_allclose(side["neighbors"], neighbor_table(torch.from_numpy(labels), 3), atol=1e-3)


def test_a_map_is_placed_by_its_file_first_and_by_its_matrix_then(people):
    """A file that begins at 6 mm, and a matrix to twice the size: the voxel v lies at 2 (v + 6)."""
    folder, labels = people
    items = [{"label": "b.nii.gz", "world_to_mni": np.diag([2.0, 2, 2, 1]).tolist()}]
    (folder / "maps.json").write_text(json.dumps({"training": items}))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    options = {"datalist_file": str(folder / "maps.json"), "classes": str(folder / "classes.json"), "sigma_mm": 0}
    main(str(folder / "atlas.nii.gz"), spacing_mm=2, **options)
    middle, _ = open_atlas(str(folder / "atlas.nii.gz"), 3).brain_moments
    place = np.argwhere(labels > 0).mean(0)
    np.testing.assert_allclose(middle, 2 * (place + [6, 0, 0]), atol=0.5)


def test_frequencies_of_neighbors_are_averaged_and_not_their_logarithms(people):
    """In one of two maps no voxel of white matter is there: its pairs are half as frequent, not forbidden."""
    folder, labels = people
    (folder / "classes.json").write_text(json.dumps({"background": [0], "gray": [1], "white": [2]}))
    maps = [labels, np.minimum(labels, 1)]
    for name, values in zip("cd", maps, strict=True):
        nib.save(nib.Nifti1Image(values.astype(np.uint8), np.eye(4)), folder / f"{name}.nii.gz")
    files = [str(folder / f"{name}.nii.gz") for name in "cd"]
    main(str(folder / "atlas.nii.gz"), label_files=files, classes=str(folder / "classes.json"), sigma_mm=0)
    found = json.loads((folder / "atlas.json").read_text())["neighbors"]
    expected = np.mean([neighbor_table(torch.from_numpy(values), 3).exp().numpy() for values in maps], axis=0)
    np.testing.assert_allclose(np.exp(found), expected, rtol=2e-3)


def test_people_who_differ_share_the_probability_and_smoothing_keeps_the_sum(people):
    _, labels = people
    moved = np.eye(4)
    moved[0, 3] = 6
    sharp = average_of_label_maps([(labels, np.eye(4)), (labels, moved)], 3, sigma_mm=0)
    assert set(sharp.probabilities.unique().tolist()) == {0.0, 0.5, 1.0}
    assert sharp.probabilities[1:].sum() == pytest.approx((labels > 0).sum())
    soft = average_of_label_maps([(labels, np.eye(4))], 3, sigma_mm=1.5, spacing_mm=2.0)
    assert torch.allclose(soft.probabilities.sum(0), torch.ones(soft.probabilities.shape[1:]), atol=1e-5)
    assert 8 * soft.probabilities[1:].sum().item() == pytest.approx((labels > 0).sum(), rel=0.1)
    assert soft.probabilities.max(0).values.min() < 0.9


def test_every_value_is_a_class_by_default(people):
    folder, labels = people
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.eye(4)), folder / "plain.nii.gz")
    main(str(folder / "atlas.nii.gz"), label_files=[str(folder / "plain.nii.gz")], sigma_mm=0.5)
    assert json.loads((folder / "atlas.json").read_text())["classes"] == ["0", "1", "2"]


def test_what_cannot_be_used_is_named(people):
    folder, _ = people
    a, out = [str(folder / "a.nii.gz")], str(folder / "atlas.nii.gz")

    def classes(**groups: list[int]) -> str:
        path = folder / f"{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps(groups))
        return str(path)

    cases = [
        (
            {"label_files": a, "classes": classes(background=[0], gray=[3, 42])},
            "has the values 2, 9, which are in no class",
        ),
        ({"label_files": a, "classes": classes(background=[0, 3], gray=[3])}, "has the value 3 in two classes"),
        ({"label_files": a, "classes": classes(background=[0])}, "expected two names or more"),
        ({"label_files": a, "classes": str(folder / "none.json")}, "none.json cannot be read"),
        ({"label_files": [str(folder / "none.nii.gz")]}, "none.nii.gz does not exist"),
        ({"label_files": a, "datalist_file": a[0]}, "expected either label_files or datalist_file"),
        ({}, "expected either label_files or datalist_file"),
    ]
    for options, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            main(out, **options)
    (folder / "maps.json").write_text(json.dumps({"training": [{"label": "a.nii.gz", "world_to_mni": [1, 2]}]}))
    with pytest.raises(InputError, match=r"world_to_mni of item 0 of .*, expected 4 x 4 numbers"):
        main(out, datalist_file=str(folder / "maps.json"))
    with pytest.raises(InputError, match=r"expected a name that ends in .nii.gz"):
        main(str(folder / "atlas.npz"), label_files=a)
    assert not (folder / "atlas.nii.gz").exists()
