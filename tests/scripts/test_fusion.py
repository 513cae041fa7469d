"""Results of several methods, joined: against what one works out, and against the best of them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import load_script, save_nifti

from common.errors import InputError
from common.intervals import Scaling
from common.scans import json_beside
from labels.fusion import METHODS, Fusion, staple
from labels.volumes import fit_weights

learn, join = load_script("fit_fusion").main, load_script("fuse_results").main

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (20, 20, 20)


@pytest.fixture
def study(tmp_path):
    """Two methods that err independently; ``good`` less often. The first wrote for T1w, the second for FLAIR."""
    rng = np.random.default_rng(3)
    sections = {}
    for section in ("validation", "test"):
        for i in range(3):
            truth = np.zeros(SHAPE, bool)
            truth[5:12, 6:14, 4:15] = True
            images = [
                str(save_nifti(tmp_path / "in" / f"{section}{i}_{s}.nii.gz", truth.astype(np.uint8) + 1, AFFINE))
                for s in ("T1w", "FLAIR")
            ]
            label = save_nifti(tmp_path / "in" / f"{section}{i}_label.nii.gz", truth.astype(np.uint8), AFFINE)
            for method, image, noise in (("poor", images[0], 1.6), ("good", images[1], 1.1)):
                logits = np.where(truth, 1.5, -1.5) + rng.normal(0, noise, SHAPE)
                stem = image.rpartition("/")[2].removesuffix(".nii.gz")
                mask = save_nifti(tmp_path / method / f"{stem}_seg.nii.gz", (logits > 0).astype(np.uint8), AFFINE)
                map_ = (1 / (1 + np.exp(-logits))).astype(np.float32)
                save_nifti(tmp_path / method / f"{stem}_prob.nii.gz", map_, AFFINE)
                json_beside(mask).write_text(json.dumps({"bundle": method, "options": {}}))
            sections.setdefault(section, []).append({"image": images, "label": str(label)})
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"sequences": ["T1w", "FLAIR"], **sections}))
    return {"datalist_file": str(path), "results": [str(tmp_path / "poor"), str(tmp_path / "good")]}


def test_methods_that_err_independently_are_better_together(study, tmp_path, capsys):
    file, out = tmp_path / "fusion.json", tmp_path / "fused"
    learn(**study, section="validation", output_file=str(file))
    fusion = Fusion.read(file)
    assert fusion.best == "weights"
    assert fusion.dice["weights"] > fusion.dice["mean"] > fusion.dice["good"] > fusion.dice["poor"]
    assert fusion.weights[1] > fusion.weights[0] > 0  # as 1 / variance: 1.21 against 2.56
    assert fusion.weights[1] / fusion.weights[0] == pytest.approx(2.56 / 1.21, rel=0.15)
    assert "weights is the best on 3 scans, validation" in capsys.readouterr().out

    join(**study, output_dir=str(out), section="test", fusion_file=str(file))
    truth = np.asarray(nib.load(tmp_path / "in" / "test1_label.nii.gz").dataobj) > 0
    mask = np.asarray(nib.load(out / "test1_T1w_seg.nii.gz").dataobj) > 0
    alone = np.asarray(nib.load(tmp_path / "good" / "test1_FLAIR_seg.nii.gz").dataobj) > 0
    assert (mask ^ truth).sum() < (alone ^ truth).sum()
    doubt = np.asarray(nib.load(out / "test1_T1w_doubt.nii.gz").dataobj)
    assert doubt[mask != truth].mean() > 0.9 * doubt.mean()
    assert len(json.loads((out / "metrics.json").read_text())["cases"]) == 3
    assert json.loads(json_beside(out / "test1_T1w_seg.nii.gz").read_text())["way"] == "weights"


def test_weights_are_those_of_a_logistic_regression():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 40_000))
    truth = rng.uniform(size=40_000) < 1 / (1 + np.exp(-(0.5 * logits[0] + 1.5 * logits[1] - 0.7)))
    maps = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(fit_weights([maps[:, None, None]], [truth[None, None]]), [0.5, 1.5, -0.7], atol=0.06)
    contrary = np.stack([maps[1], 1 - maps[1]])[:, None, None]  # a method that is always wrong gets no say
    assert fit_weights([contrary], [truth[None, None]])[1] == 0


def test_staple_follows_those_that_agree():
    truth = np.zeros((12, 12, 12), bool)
    truth[3:8, 3:8, 3:8] = True
    wrong = np.roll(truth, 4, axis=0)
    found = staple(np.stack([truth, truth, wrong])) > 0.5
    np.testing.assert_array_equal(found, truth)
    assert not staple(np.zeros((2, 3, 3, 3), bool)).any()


def test_maps_are_joined_by_hand():
    fusion = Fusion([], [Scaling(1.0, 0.0), Scaling(2.0, 0.0)], [1.0, 1.0, np.log(2)], {}, {}, "scans")
    maps = np.array([[0.5, 1.0, 0.0], [0.8, 0.0, 0.0]])[:, :, None, None]
    masks = maps > 0.5
    # logits 0 and log 4, and log 2 beside them; two that are as sure of the opposite; none
    np.testing.assert_allclose(fusion.join("weights", masks, maps).ravel(), [8 / 9, 2 / 3, 0], rtol=1e-6)
    # 0.5 stays, log 4 becomes log 16
    np.testing.assert_allclose(fusion.join("mean", masks, maps).ravel(), [(0.5 + 16 / 17) / 2, 0.5, 0], rtol=1e-6)


def test_doubt_is_where_the_scaled_maps_differ(study, tmp_path):
    file, out = tmp_path / "fusion.json", tmp_path / "fused"
    learn(**study, section="validation", output_file=str(file))
    join(**study, output_dir=str(out), section="test", fusion_file=str(file))
    paths = [tmp_path / "poor" / "test0_T1w_prob.nii.gz", tmp_path / "good" / "test0_FLAIR_prob.nii.gz"]
    maps = [np.asarray(nib.load(path).dataobj) for path in paths]
    scaled = [scale(values) for scale, values in zip(Fusion.read(file).scalings, maps, strict=True)]
    doubt = np.asarray(nib.load(out / "test0_T1w_doubt.nii.gz").dataobj)
    np.testing.assert_allclose(doubt, np.abs(scaled[0] - scaled[1]) / 2, atol=1e-5)


def test_one_method_alone_may_be_the_best(study, tmp_path):
    fusion = Fusion([], [], [0.0], dict.fromkeys(METHODS, 0.5), {"uad": 0.8, "mean": 0.8, "weights": 0.7}, "scans")
    assert fusion.best == "uad"
    file = tmp_path / "fusion.json"
    learn(**study, section="validation", output_file=str(file))
    content = json.loads(file.read_text())
    content["dice"]["good"] = 1.0
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="good alone is the best on 3 scans, validation, expected --way"):
        join(**study, output_dir=str(tmp_path / "out"), section="test", fusion_file=str(file))


def test_what_does_not_belong_together_is_one_sentence(study, tmp_path):
    file, out = tmp_path / "fusion.json", str(tmp_path / "out")
    learn(**study, section="validation", output_file=str(file))
    swapped = study | {"results": study["results"][::-1]}
    with pytest.raises(InputError, match="good holds results that were made in another way: bundle is good"):
        join(**swapped, output_dir=out, section="test", fusion_file=str(file))
    path = tmp_path / "good" / "test2_FLAIR_prob.nii.gz"
    save_nifti(path, np.zeros((4, 4, 4), np.float32), AFFINE)
    with pytest.raises(
        InputError,
        match=r"test2_FLAIR_prob\.nii\.gz and .* have shape \(4, 4, 4\) against \(20, 20, 20\), expected one grid",
    ):
        join(**study, output_dir=out, section="test", fusion_file=str(file))
    path.with_name("test2_FLAIR_seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"good/test2_T1w_seg\.nii\.gz: no such file"):
        join(**study, output_dir=out, section="test", fusion_file=str(file))
    assert not (tmp_path / "out").exists()
    file.write_text("{}")
    with pytest.raises(InputError, match="holds no fusion"):
        Fusion.read(file)
