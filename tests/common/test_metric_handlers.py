"""The metrics inside MONAI engines, against the exact functions on arrays."""

import multiprocessing
import socket
from functools import partial

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from sklearn.metrics import average_precision_score

from common.errors import InputError
from common.metrics import BestDice, CaseMean, VoxelAveragePrecision, average_precision, best_dice, dice, lesion_f1


@pytest.fixture
def cases():
    """Four cases of (1, 8, 9, 10) scores between 0 and 1 and references, the last one healthy."""
    rng = np.random.default_rng(0)
    references = [(rng.random((1, 8, 9, 10)) < 0.1).astype(np.float32) for _ in range(4)]
    references[3][:] = 0
    scores = [np.clip(rng.normal(0.3 + 0.3 * r, 0.15), 0, 1).astype(np.float32) for r in references]
    return scores, references


@pytest.fixture
def unused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_engine(metrics, scores, references, batch_size=1):
    """Values of metrics after a run of an evaluator whose network hands the scores on."""
    data = [{"image": s, "label": r} for s, r in zip(scores, references, strict=True)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=batch_size),
        network=torch.nn.Identity(),
        key_val_metric=metrics,
    )
    evaluator.run()
    return evaluator.state


def direct(metric, *outputs):
    """Value of a metric after a few iterations without an engine."""
    metric.reset()
    for output in outputs:
        metric.update(output)
    return metric.compute()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pooled_metrics_in_an_engine_are_those_of_the_arrays(cases, batch_size):
    transform = from_engine(["pred", "label"])
    metrics = {"ap": VoxelAveragePrecision(transform), "dice": BestDice(transform)}
    state = on_engine(metrics, *cases, batch_size)
    assert state.metrics["ap"] == pytest.approx(average_precision(*cases), abs=1e-3)
    assert state.metrics["dice"] == pytest.approx(best_dice(*cases)[0], abs=1e-3)
    assert state.metrics["dice"] <= best_dice(*cases)[0]
    assert state.best_metric == state.metrics["ap"]


def test_best_dice_publishes_the_threshold_that_reaches_it(cases):
    state = on_engine({"dice": BestDice(from_engine(["pred", "label"]))}, *cases)
    threshold = state.metrics["dice_threshold"]
    scores, references = (np.concatenate(arrays) for arrays in cases)
    assert dice(scores >= threshold, references) == pytest.approx(state.metrics["dice"], abs=1e-12)


def test_scores_on_bin_edges_are_exact():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.7, 0.1, 0.0]]).mul(65536).round().div(65536)
    reference = torch.tensor([[1, 0, 1, 0, 1, 0]])
    expected = average_precision_score(reference[0], scores[0])
    assert direct(VoxelAveragePrecision(), ([scores], [reference])) == pytest.approx(expected, rel=1e-12)


def test_curve_by_hand_in_4_bins():
    # bins of 0.25: lesion 1.0 -> 3, lesion 0.5 -> 2, other 0.6 -> 2, lesion 0.2 -> 0, other 0 -> 0
    output = ([torch.tensor([[1.0, 0.5, 0.6, 0.2, 0.0]])], [torch.tensor([[1, 1, 0, 1, 0]])])
    assert direct(VoxelAveragePrecision(bins=4), output) == pytest.approx(1 / 3 * (1 / 1 + 2 / 3 + 3 / 5))
    metric = BestDice(bins=4)
    assert direct(metric, output) == pytest.approx(6 / 8)  # everything: 2 * 3 / (3 + 2 + 3)
    assert metric.threshold == 0


def test_another_range_of_scores(cases):
    scores, references = cases
    plain = direct(BestDice(), (list(map(torch.tensor, scores)), list(map(torch.tensor, references))))
    metric = BestDice(score_range=(-1, 3))
    shifted = [torch.tensor(4 * s - 1) for s in scores]
    assert direct(metric, (shifted, list(map(torch.tensor, references)))) == pytest.approx(plain, abs=1e-3)
    assert -1 <= metric.threshold <= 3


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan")])
def test_scores_outside_the_range_are_refused(score):
    with pytest.raises(InputError, match="between 0 and 1, found"):
        direct(BestDice(), ([torch.tensor([[0.5, score]])], [torch.tensor([[0, 1]])]))


@pytest.mark.parametrize("metric", [BestDice, VoxelAveragePrecision])
def test_a_run_without_lesions_is_refused(metric):
    with pytest.raises(InputError, match=f"{metric.__name__} needs lesion voxels"):
        direct(metric(), ([torch.tensor([[0.5, 0.1]])], [torch.tensor([[0, 0]])]))


@pytest.mark.parametrize("metric", [BestDice(), VoxelAveragePrecision(), CaseMean(dice)])
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match=r"\(1, 2\) and reference \(1, 1\) differ"):
        direct(metric, ([torch.zeros(1, 2)], [torch.zeros(1, 1)]))


def test_a_reference_with_labels_above_1_is_refused():
    with pytest.raises(InputError, match="0 and 1 only, found up to 2"):
        direct(BestDice(), ([torch.zeros(1, 2)], [torch.tensor([[0, 2]])]))


@pytest.mark.parametrize("arguments", [{"score_range": (1, 0)}, {"bins": 0}])
def test_impossible_bins_are_refused(arguments):
    with pytest.raises(ValueError, match="ascend"):
        BestDice(**arguments)


def test_a_second_epoch_starts_from_nothing(cases):
    metric = VoxelAveragePrecision()
    output = tuple(list(map(torch.tensor, arrays)) for arrays in cases)
    first = direct(metric, output)
    assert direct(metric, output) == first
    assert direct(metric, output, output) == pytest.approx(first)


def test_half_precision_and_meta_tensors_are_taken(cases):
    scores, references = (list(map(torch.tensor, arrays)) for arrays in cases)
    output = [MetaTensor(s.half()) for s in scores], [MetaTensor(r) for r in references]
    expected = average_precision([s.half().numpy() for s in scores], [r.numpy() for r in references])
    assert direct(VoxelAveragePrecision(), output) == pytest.approx(expected, abs=1e-3)


def test_memory_does_not_grow_with_the_number_of_cases(cases):
    metric = BestDice()
    output = tuple(list(map(torch.tensor, arrays)) for arrays in cases)
    direct(metric, *[output] * 5)
    tensors = [value for value in vars(metric).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) == 2 * 65536 * 8


def test_case_mean_is_the_mean_over_cases_with_lesions(cases):
    scores, references = cases
    predictions = [(s > 0.45).astype(np.float32) for s in scores]
    metrics = {
        "dice": CaseMean(dice, from_engine(["pred", "label"])),
        "f1": CaseMean(partial(lesion_f1, connectivity=6), from_engine(["pred", "label"])),
    }
    state = on_engine(metrics, predictions, references)
    lesions = list(zip(predictions, references, strict=True))[:3]  # the fourth is healthy, where both are nan
    assert state.metrics["dice"] == pytest.approx(np.mean([dice(p[0], r[0]) for p, r in lesions]))
    assert state.metrics["f1"] == pytest.approx(np.mean([lesion_f1(p[0], r[0], 6) for p, r in lesions]))


def test_case_mean_is_nan_where_no_case_is_defined():
    assert np.isnan(direct(CaseMean(dice), ([torch.ones(1, 2)], [torch.zeros(1, 2)])))


def test_case_mean_wants_one_channel():
    with pytest.raises(ValueError, match="one channel, found 2"):
        direct(CaseMean(dice), ([torch.ones(2, 2)], [torch.zeros(2, 2)]))


def test_all_are_named_in_json(cases):
    transform = "$monai.handlers.from_engine(['pred', 'label'])"
    parser = ConfigParser(
        {
            "imports": ["$import monai"],
            "key_metric": {
                "ap": {"_target_": "common.metrics.VoxelAveragePrecision", "output_transform": transform},
                "best_dice": {"_target_": "common.metrics.handlers.BestDice", "output_transform": transform},
                "lesion_f1": {
                    "_target_": "common.metrics.CaseMean",
                    "metric": {"_target_": "common.metrics.lesion_f1", "_mode_": "callable", "min_overlap": 0.1},
                    "output_transform": transform,
                },
                "hd95_mm": {
                    "_target_": "common.metrics.CaseMean",
                    "metric": {
                        "_target_": "common.metrics.surface.hd95_mm",
                        "_mode_": "callable",
                        "spacing": [1.0, 1.0, 1.0],
                    },
                    "output_transform": transform,
                },
            },
        }
    )
    parser.parse()
    metrics = parser.get_parsed_content("key_metric")
    masks = [np.round(s) for s in cases[0]]
    values = on_engine(metrics, masks, cases[1]).metrics
    assert {"ap", "best_dice", "best_dice_threshold", "lesion_f1", "hd95_mm"} <= set(values)
    assert np.isfinite(list(values.values())).all()


def _on_rank(rank, world_size, port, scores, references, results):
    torch.set_num_threads(1)  # the parent's threads did not survive the fork
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    idist.sync()
    values = []
    for metric in (VoxelAveragePrecision(), BestDice(), CaseMean(lambda s, r: dice(s > 0.45, r))):
        metric.reset()
        metric.update((scores[rank::world_size], references[rank::world_size]))
        values.append(metric.compute())
    results.put((rank, values))
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(cases, unused_port):
    scores, references = (list(map(torch.tensor, arrays)) for arrays in cases)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(target=_on_rank, args=(rank, 2, unused_port, scores, references, results)) for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    values = dict(results.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(timeout=60)
    expected = [
        direct(metric, (scores, references))
        for metric in (VoxelAveragePrecision(), BestDice(), CaseMean(lambda s, r: dice(s > 0.45, r)))
    ]
    assert values[0] == values[1] == pytest.approx(expected, rel=1e-12)
