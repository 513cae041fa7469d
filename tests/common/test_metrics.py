"""Metrics against values worked out by hand, scikit-learn, MONAI and surface_distance."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score, precision_recall_curve

from common.errors import InputError
from common.metrics import (
    LesionDetection,
    assd_mm,
    average_precision,
    best_dice,
    bootstrap_interval,
    dice,
    dice_over_thresholds,
    false_positive_volume_ml,
    hd95_mm,
    lesion_detection,
    lesion_f1,
    lesion_precision,
    lesion_recall,
    pooled_dice,
    precision_recall,
    summarize,
    surface_distances,
    threshold_for_false_positive_rate,
    volume_difference_ml,
    volume_ml,
    voxel_overlap,
)

EMPTY = np.zeros((4, 4, 4), dtype=np.uint8)


def box(shape, *ranges):
    """A mask of the given shape that is 1 in one box."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*bounds) for bounds in ranges)] = 1
    return mask


@pytest.fixture
def random_case():
    """Scores that are higher on the lesion, with ties, and the lesion."""
    rng = np.random.default_rng(0)
    reference = rng.random((20, 21, 22)) < 0.05
    scores = np.round(np.clip(rng.normal(0.3 + 0.3 * reference, 0.2), 0, 1), 2).astype(np.float32)
    return scores, reference


class TestOverlap:
    def test_dice_of_two_boxes_that_share_half(self):
        # 16 voxels each, 8 in common: 2 * 8 / (16 + 16)
        assert dice(box((4, 4, 4), (0, 4), (0, 4), (0, 1)), box((4, 4, 4), (0, 4), (2, 4), (0, 2))) == 0.5

    def test_voxels_are_counted_in_the_right_class(self):
        counts = voxel_overlap([1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0])
        assert (counts.true_positives, counts.false_positives, counts.false_negatives) == (1, 2, 1)
        assert counts.precision == pytest.approx(1 / 3)
        assert counts.recall == pytest.approx(1 / 2)

    def test_dice_is_0_where_only_the_prediction_is_empty(self):
        assert dice(EMPTY, box((4, 4, 4), (0, 1), (0, 1), (0, 1))) == 0

    @pytest.mark.parametrize("prediction", [EMPTY, EMPTY + 1])
    def test_dice_and_recall_are_nan_where_the_reference_is_empty(self, prediction):
        counts = voxel_overlap(prediction, EMPTY)
        assert np.isnan(counts.dice)
        assert np.isnan(counts.recall)

    def test_precision_is_nan_without_prediction_and_0_if_all_is_false(self):
        assert np.isnan(voxel_overlap(EMPTY, EMPTY + 1).precision)
        assert np.isnan(voxel_overlap(EMPTY, EMPTY).precision)
        assert voxel_overlap(EMPTY + 1, EMPTY).precision == 0

    @pytest.mark.parametrize("empty_prediction", [False, True])
    @pytest.mark.parametrize("empty_reference", [False, True])
    def test_dice_equals_that_of_monai(self, random_case, empty_prediction, empty_reference):
        scores, reference = random_case
        prediction = (scores > 0.5) & (not empty_prediction)
        reference = reference & (not empty_reference)
        expected = DiceMetric()(torch.tensor(prediction)[None, None], torch.tensor(reference)[None, None]).item()
        assert dice(prediction, reference) == pytest.approx(expected, nan_ok=True)

    def test_pooled_dice_weighs_voxels_and_not_cases(self):
        # case 1: TP 1, FP 0, FN 0; case 2: TP 3, FP 3, FN 3; together 2 * 4 / (8 + 3 + 3); mean of cases: 0.75
        predictions = [[1, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0]]
        references = [[1, 0], [1, 1, 1, 0, 0, 0, 1, 1, 1]]
        assert pooled_dice(iter(predictions), iter(references)) == pytest.approx(8 / 14)

    def test_false_positives_on_a_healthy_scan_lower_the_pooled_dice(self):
        assert pooled_dice([[1, 0], [1, 1]], [[1, 0], [0, 0]]) == pytest.approx(2 / 4)
        assert np.isnan(pooled_dice([[1, 1]], [[0, 0]]))

    def test_volumes_are_millilitres(self):
        mask = box((10, 10, 10), (0, 10), (0, 10), (0, 5))  # 500 voxels of 0.5 * 2 * 3 mm^3
        assert volume_ml(mask, (0.5, 2, 3)) == pytest.approx(1.5)
        assert volume_difference_ml(mask, mask * 0, (0.5, 2, 3)) == pytest.approx(1.5)
        assert volume_difference_ml(mask * 0, mask, (0.5, 2, 3)) == pytest.approx(-1.5)

    def test_false_positive_volume_leaves_out_the_reference(self):
        prediction = box((10, 10, 10), (0, 10), (0, 10), (0, 5))
        reference = box((10, 10, 10), (0, 10), (0, 10), (1, 10))
        assert false_positive_volume_ml(prediction, (1, 1, 1), reference) == pytest.approx(0.1)
        assert false_positive_volume_ml(prediction, (1, 1, 1)) == pytest.approx(0.5)

    @pytest.mark.parametrize("metric", [dice, lesion_f1, lesion_recall, lesion_precision, voxel_overlap])
    def test_grids_that_differ_are_refused_and_never_broadcast(self, metric):
        with pytest.raises(ValueError, match=r"\(4, 4, 4\).*\(1, 4, 4\)"):
            metric(EMPTY, EMPTY[:1])

    @pytest.mark.parametrize("values", [[0, 2], [0.5, 1], [np.nan, 1], [-1, 0]])
    def test_what_is_not_a_mask_is_refused(self, values):
        with pytest.raises(ValueError, match="0 and 1 only"):
            dice(np.array(values), np.array([0, 1]))

    @pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, np.nan), (1, -1, 1)])
    def test_impossible_spacing_is_refused(self, spacing):
        with pytest.raises(ValueError, match="3 positive numbers"):
            volume_ml(EMPTY, spacing)
        with pytest.raises(ValueError, match="3 positive numbers"):
            hd95_mm(EMPTY, EMPTY, spacing)


class TestSurface:
    def test_single_voxels_are_their_distance_apart_in_mm(self):
        a, b = EMPTY.copy(), EMPTY.copy()
        a[0, 0, 0] = b[1, 2, 3] = 1
        expected = np.sqrt(0.5**2 + (2 * 2) ** 2 + (3 * 3) ** 2)
        assert hd95_mm(a, b, (0.5, 2, 3)) == pytest.approx(expected)
        assert assd_mm(a, b, (0.5, 2, 3)) == pytest.approx(expected)

    def test_distances_by_hand_on_a_line(self):
        # a = {0, 1, 2}: surface {0, 2} in 1-D; b = {2, 3, 4, 5}: surface {2, 5}
        # from a: 2, 0; from b: 0, 3, in voxels of 2 mm
        a, b = np.array([1, 1, 1, 0, 0, 0, 0]), np.array([0, 0, 1, 1, 1, 1, 0])
        distances = surface_distances(a, b, [2.0])
        assert distances.to_reference.tolist() == [4, 0]
        assert distances.to_prediction.tolist() == [0, 6]
        assert distances.assd == 10 / 4
        assert distances.hd95 == pytest.approx(0.95 * 6)

    def test_equal_masks_are_0_apart_also_at_the_border_of_the_image(self):
        assert hd95_mm(EMPTY + 1, EMPTY + 1, (1, 1, 1)) == assd_mm(EMPTY + 1, EMPTY + 1, (1, 1, 1)) == 0

    def test_voxels_at_the_border_of_the_image_are_surface(self):
        # the full image against its corner voxel: the far corner is a surface voxel of the full one
        corner = box((4, 4, 4), (0, 1), (0, 1), (0, 1))
        assert surface_distances(EMPTY + 1, corner, (1, 1, 1)).to_reference.max() == pytest.approx(np.sqrt(27))

    @pytest.mark.parametrize("metric", [hd95_mm, assd_mm])
    def test_empty_masks(self, metric):
        assert np.isnan(metric(EMPTY, EMPTY, (1, 1, 1)))
        assert np.isnan(metric(EMPTY + 1, EMPTY, (1, 1, 1)))
        assert metric(EMPTY, EMPTY + 1, (1, 1, 1)) == np.inf

    @pytest.mark.parametrize("shift", [(0, 0, 0), (3, 0, 0), (2, 1, 4)])
    def test_distances_equal_those_of_monai(self, shift):
        spacing = (1.5, 1.0, 2.5)
        index = np.indices((30, 32, 24))
        shapes = [
            sum(((i - c) / r) ** 2 for i, c, r in zip(index, center, radii, strict=True)) < 1
            for center, radii in (((12, 14, 10), (8, 9, 5)), (np.add((12, 14, 10), shift), (9, 6, 6)))
        ]
        prediction, reference = (torch.tensor(shape)[None, None] for shape in shapes)
        expected_hd = HausdorffDistanceMetric(percentile=95)(prediction, reference, spacing=spacing).item()
        expected_assd = SurfaceDistanceMetric(symmetric=True)(prediction, reference, spacing=spacing).item()
        assert hd95_mm(*shapes, spacing) == pytest.approx(expected_hd, abs=1e-4)
        assert assd_mm(*shapes, spacing) == pytest.approx(expected_assd, abs=1e-4)

    def test_distances_agree_with_surface_distance_to_half_a_voxel(self):
        # that package weighs surface elements by their area and puts them on voxel corners
        surface_distance = pytest.importorskip("surface_distance")
        index = np.indices((40, 40, 40))
        a = ((index - 20) ** 2).sum(axis=0) < 12**2
        b = ((index - np.array([24, 20, 20])[:, None, None, None]) ** 2).sum(axis=0) < 10**2
        spacing = (1.0, 1.2, 1.5)
        reference = surface_distance.compute_surface_distances(b, a, spacing)
        assert hd95_mm(a, b, spacing) == pytest.approx(
            surface_distance.compute_robust_hausdorff(reference, 95), abs=0.5
        )
        expected = np.mean(surface_distance.compute_average_surface_distance(reference))
        assert assd_mm(a, b, spacing) == pytest.approx(expected, abs=0.5)


class TestScores:
    def test_curve_by_hand(self):
        # descending: 0.9 lesion, 0.8 not, 0.7 lesion, 0.7 not, 0.1 lesion, 0.0 not
        curve = precision_recall(np.array([0.9, 0.8, 0.7, 0.7, 0.1, 0.0]), np.array([1, 0, 1, 0, 1, 0]))
        assert curve.thresholds.tolist() == [0.9, 0.7, 0.1]
        assert curve.true_positives.tolist() == [1, 2, 3]
        assert curve.false_positives.tolist() == [0, 2, 2]
        assert curve.average_precision == pytest.approx(1 / 3 * (1 / 1 + 2 / 4 + 3 / 5))
        assert curve.dice.tolist() == pytest.approx([2 / 4, 4 / 7, 6 / 8])
        assert curve.best_dice == (0.75, 0.1)

    def test_average_precision_equals_that_of_scikit_learn(self, random_case):
        scores, reference = random_case
        expected = average_precision_score(reference.ravel(), scores.ravel())
        assert average_precision(scores, reference) == pytest.approx(expected, rel=1e-12)

    def test_best_dice_is_the_best_f1_of_scikit_learn_and_its_threshold_reaches_it(self, random_case):
        scores, reference = random_case
        precision, recall, _ = precision_recall_curve(reference.ravel(), scores.ravel())
        expected = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        value, threshold = best_dice(scores, reference)
        assert value == pytest.approx(expected, rel=1e-12)
        assert dice(scores >= threshold, reference) == pytest.approx(value)

    def test_pooling_equals_putting_all_voxels_in_one_array(self, random_case):
        scores, reference = random_case
        parts = [slice(0, 3), slice(3, 11), slice(11, 20)]
        pooled = precision_recall([scores[s] for s in parts], [reference[s] for s in parts])
        whole = precision_recall(scores, reference)
        assert pooled.average_precision == whole.average_precision
        assert pooled.best_dice == whole.best_dice

    def test_cases_of_different_shapes_and_types_are_pooled(self):
        scores = [np.array([[0.5, 0.25]], dtype=np.float16), np.array([0.75, 0.5, 0.0])]
        references = [np.array([[1, 0]]), np.array([False, False, True])]
        expected = average_precision_score([1, 0, 0, 0, 1], [0.5, 0.25, 0.75, 0.5, 0.0])
        assert average_precision(scores, references) == pytest.approx(expected)

    def test_healthy_cases_add_false_positives_to_the_pool(self):
        lesion, healthy = (np.array([0.9, 0.1]), np.array([1, 0])), (np.array([0.95, 0.1]), np.array([0, 0]))
        assert average_precision(*lesion) == 1
        assert average_precision([lesion[0], healthy[0]], [lesion[1], healthy[1]]) == 0.5

    def test_without_lesions_average_precision_is_nan_and_best_dice_refuses(self):
        scores, reference = np.array([0.1, 0.2]), np.array([0, 0])
        assert np.isnan(average_precision(scores, reference))
        with pytest.raises(InputError, match="needs lesion voxels"):
            best_dice(scores, reference)
        assert np.isnan(dice_over_thresholds(scores, reference, [0.1, 0.2])).all()

    def test_all_lesion_is_found_perfectly(self):
        assert average_precision(np.array([0.1, 0.2]), np.array([1, 1])) == 1
        assert best_dice(np.array([0.1, 0.2]), np.array([1, 1])) == (1.0, 0.1)

    def test_constant_scores_are_as_good_as_chance(self):
        assert average_precision(np.full(8, 0.5), np.array([1, 1, 0, 0, 0, 0, 0, 0])) == 0.25

    def test_dice_over_thresholds_equals_thresholding(self, random_case):
        scores, reference = random_case
        thresholds = np.array([0.9, 0.0, 0.5, 2.0, 0.31, 0.25])
        table = dice_over_thresholds([scores, scores[:4]], [reference, reference[:4] & False], thresholds)
        assert table.shape == (2, 6)
        assert table[0] == pytest.approx([dice(scores >= threshold, reference) for threshold in thresholds])
        assert np.isnan(table[1]).all()

    @pytest.mark.parametrize("function", [average_precision, best_dice, lambda s, r: dice_over_thresholds(s, r, [0.5])])
    def test_bad_scores_are_refused(self, function):
        with pytest.raises(ValueError, match="1 of 2 scores are nan"):
            function(np.array([np.nan, 1]), np.array([0, 1]))
        with pytest.raises(ValueError, match="differ in shape"):
            function(np.zeros((2, 1)), np.zeros((1, 2)))
        with pytest.raises(ValueError, match="0 and 1 only"):
            function(np.zeros(2), np.array([0, 2]))
        with pytest.raises(ValueError, match="zip"):
            function([np.zeros(2), np.zeros(2)], [np.array([0, 1])])


class TestThresholdFromHealthyScans:
    def test_threshold_by_hand(self):
        # 10 voxels, 20 % may reach it: the two largest are 0.8 and 0.9
        scores = np.arange(10) / 10
        assert threshold_for_false_positive_rate(scores, 0.2) == 0.8

    @pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.5])
    def test_the_rate_is_kept_and_no_lower_score_keeps_it(self, rate):
        rng = np.random.default_rng(1)
        scores = [np.round(rng.random(5000), 3).astype(np.float32) for _ in range(3)]
        pooled = np.concatenate(scores)
        threshold = threshold_for_false_positive_rate(scores, rate)
        assert np.mean(pooled >= threshold) <= rate
        assert np.mean(pooled >= np.max(pooled[pooled < threshold])) > rate

    def test_ties_do_not_break_the_rate(self):
        # 30 % are 0.9, so at a rate of 20 % only the single 1.0 may pass
        scores = np.array([1.0, 0.9, 0.9, 0.9, 0, 0, 0, 0, 0, 0])
        assert threshold_for_false_positive_rate(scores, 0.2) == 1.0

    def test_too_many_voxels_at_the_largest_score_are_refused(self):
        with pytest.raises(InputError, match=r"30\.00%.*share the largest score 1.*20\.00%"):
            threshold_for_false_positive_rate(np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0.0]), 0.2)

    def test_a_rate_of_less_than_a_voxel_is_refused(self):
        with pytest.raises(InputError, match="less than one of the 10 brain voxels"):
            threshold_for_false_positive_rate(np.arange(10.0), 0.01)

    @pytest.mark.parametrize("rate", [0, 1, -0.1, 5])
    def test_a_rate_that_is_no_share_is_refused(self, rate):
        with pytest.raises(ValueError, match="between 0 and 1"):
            threshold_for_false_positive_rate(np.arange(10.0), rate)

    def test_nan_is_refused(self):
        with pytest.raises(ValueError, match="1 of 2 scores are nan"):
            threshold_for_false_positive_rate(np.array([np.nan, 1]), 0.5)


class TestLesions:
    def masks(self):
        """Reference lesions of 4, 4 and 1 voxels; predictions: half of the first, one far off, all of the third."""
        reference, prediction = np.zeros((1, 12, 12), np.uint8), np.zeros((1, 12, 12), np.uint8)
        reference[0, 0:2, 0:2] = reference[0, 5:7, 0:2] = reference[0, 10, 10] = 1
        prediction[0, 0:2, 1:3] = prediction[0, 5, 8] = prediction[0, 10, 10] = 1
        return prediction, reference

    def test_lesions_by_hand(self):
        found = lesion_detection(*self.masks())
        assert found == LesionDetection(
            reference_lesions=3, detected_lesions=2, predicted_lesions=3, true_predictions=2
        )
        assert found.recall == found.precision == pytest.approx(2 / 3)
        assert found.f1 == pytest.approx(2 / 3)

    def test_a_lesion_must_be_covered_as_far_as_min_overlap_says(self):
        assert lesion_detection(*self.masks(), min_overlap=0.5).detected_lesions == 2
        assert lesion_detection(*self.masks(), min_overlap=0.51).detected_lesions == 1

    def test_f1_is_the_harmonic_mean(self):
        # 4 lesions, 1 detected; 2 predictions, 1 true: recall 1/4, precision 1/2
        assert LesionDetection(4, 1, 2, 1).f1 == pytest.approx(2 * 0.5 * 0.25 / 0.75)

    def test_counts_of_cases_add_up(self):
        assert LesionDetection(4, 1, 2, 1) + LesionDetection(3, 2, 5, 4) == LesionDetection(7, 3, 7, 5)

    @pytest.mark.parametrize(("connectivity", "lesions"), [(6, 3), (18, 2), (26, 1)])
    def test_neighbors_that_join_a_lesion(self, connectivity, lesions):
        reference = EMPTY.copy()
        reference[0, 0, 0] = reference[1, 1, 0] = reference[2, 2, 1] = 1  # an edge, then a corner in common
        assert lesion_detection(EMPTY, reference, connectivity).reference_lesions == lesions

    def test_connectivity_is_checked(self):
        with pytest.raises(ValueError, match=r"\[6, 18, 26\], found 8"):
            lesion_detection(EMPTY, EMPTY, connectivity=8)
        assert lesion_detection(EMPTY[0], EMPTY[0] + 1, connectivity=8).reference_lesions == 1

    def test_one_prediction_may_detect_two_lesions(self):
        reference = np.array([[1, 0, 1]])
        assert lesion_detection(np.array([[1, 1, 1]]), reference, 4) == LesionDetection(2, 2, 1, 1)

    def test_empty_masks(self):
        lesion = EMPTY + 1
        assert np.isnan([lesion_recall(p, EMPTY) for p in (EMPTY, lesion)]).all()
        assert np.isnan([lesion_f1(p, EMPTY) for p in (EMPTY, lesion)]).all()
        assert np.isnan([lesion_precision(EMPTY, r) for r in (EMPTY, lesion)]).all()
        assert lesion_precision(lesion, EMPTY) == 0
        assert lesion_recall(EMPTY, lesion) == lesion_f1(EMPTY, lesion) == 0

    def test_min_overlap_must_be_a_share(self):
        with pytest.raises(ValueError, match="between 0 and 1, found 50"):
            lesion_detection(EMPTY, EMPTY, min_overlap=50)

    def test_min_overlap_0_asks_for_a_voxel(self):
        apart = box((4, 4, 4), (0, 1), (0, 1), (0, 1)), box((4, 4, 4), (3, 4), (3, 4), (3, 4))
        assert lesion_detection(*apart, min_overlap=0) == LesionDetection(1, 0, 1, 0)


class TestSummary:
    def test_values_by_hand(self):
        summary = summarize([0.2, 0.4, np.nan, 0.9, np.inf])
        assert summary.mean == pytest.approx(0.5)
        assert summary.sd == pytest.approx(np.sqrt((0.09 + 0.01 + 0.16) / 2))
        assert summary.median == pytest.approx(0.65)  # of 0.2, 0.4, 0.9 and inf
        assert (summary.cases, summary.infinite) == (3, 1)
        assert summary.low < summary.mean < summary.high

    def test_too_few_values_have_no_interval(self):
        one, none = summarize([0.5]), summarize([np.nan])
        assert (one.mean, one.cases) == (0.5, 1)
        assert np.isnan([one.sd, one.low, one.high, none.mean, none.median, none.low]).all()

    def test_interval_equals_that_of_scipy(self):
        values = np.random.default_rng(2).normal(0.6, 0.1, 30)
        expected = bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
        assert bootstrap_interval(values, np.ones(30)) == pytest.approx(tuple(expected), abs=0.003)

    def test_interval_covers_the_true_mean_about_95_times_in_100(self):
        rng = np.random.default_rng(3)
        intervals = [bootstrap_interval(rng.random(40), np.ones(40), resamples=500) for _ in range(300)]
        assert 0.90 < np.mean([low < 0.5 < high for low, high in intervals]) < 0.99

    def test_cases_of_one_subject_are_drawn_together(self):
        # copying every case changes nothing if the copies belong to the same subject
        values = np.random.default_rng(4).random(10)
        subjects = [f"sub-{i:02d}" for i in range(10)]
        once = bootstrap_interval(values, np.ones(10), subjects)
        assert bootstrap_interval(np.tile(values, 5), np.ones(50), subjects * 5) == pytest.approx(once)
        naive = bootstrap_interval(np.tile(values, 5), np.ones(50))
        assert naive[1] - naive[0] < 0.7 * (once[1] - once[0])

    def test_ratio_ignores_draws_without_denominator(self):
        low, high = bootstrap_interval([1, 0, 0], [2, 0, 0])
        assert low == high == 0.5

    def test_a_ratio_of_nothing_but_zeros_has_no_interval(self):
        assert np.isnan(bootstrap_interval([0, 0], [0, 0])).all()

    def test_same_input_gives_the_same_interval(self):
        values = np.random.default_rng(5).random(10)
        assert bootstrap_interval(values, np.ones(10)) == bootstrap_interval(values, np.ones(10))
