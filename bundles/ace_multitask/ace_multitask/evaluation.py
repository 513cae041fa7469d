"""What a table of label sets means for scores: groups of classes, checks of the cases, Dice by data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.transforms import MapTransform

from common.errors import InputError
from common.metrics import dice

from .label_sets import LabelSets

logger = logging.getLogger(__name__)

_ITEMS = from_engine(["pred", "label"])


def scored_groups(label_sets: LabelSets, dataset: str) -> dict[str, tuple[int, ...]]:
    """What a data set can score: the foreground classes that it labels, or merges, by name.

    A value that stands for ``WM`` alone scores ``WM``; one that stands for white matter with the lesions in it scores
    ``WM + lesion``, predictions being merged likewise. Values that may be background, or anything, score nothing.

    Returns:
        Name -> indices of the classes, in the order of the label values.
    """
    groups = {}
    for possible in _rows(label_sets, dataset).values():
        if 0 not in possible and len(possible) < len(label_sets.classes):
            groups[" + ".join(label_sets.classes[c] for c in possible)] = possible
    return groups


def reference_sets(label_sets: LabelSets) -> dict[str, dict[int, tuple[int, ...]]]:
    """The table as :class:`common.evaluation.Evaluation` reads it: data set -> label value -> possible classes."""
    return {dataset: _rows(label_sets, dataset) for dataset in label_sets.datasets}


def _rows(label_sets: LabelSets, dataset: str) -> dict[int, tuple[int, ...]]:
    allowed = {value: label_sets.allowed[label_sets.code_of[dataset, value]] for value in label_sets.values(dataset)}
    return {value: tuple(row.nonzero().flatten().tolist()) for value, row in allowed.items()}


def matrix_table(label_sets: LabelSets) -> dict[str, Any]:
    """:meth:`LabelSets.matrix` as a table of the report: caption, columns, rows."""
    rows = [[name, *row.values()] for name, row in label_sets.matrix().items()]
    return {
        "caption": "What each data set says of each class",
        "columns": ["data set", *label_sets.classes],
        "rows": rows,
    }


def table_of_cases(label_sets: LabelSets, cases: Sequence[Mapping[str, Any]]) -> LabelSets:
    """The part of the table that some cases are of, so that its checks speak of what there is to learn from.

    Raises:
        InputError: if a case is of no data set of the table, or the data sets of the cases leave a class unlabeled.
    """
    _check_names(label_sets, cases)
    present = set(names_of_datasets(cases))
    return LabelSets(label_sets.classes, {k: v for k, v in label_sets.tables().items() if k in present})


def names_of_datasets(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data set of each case.

    Raises:
        InputError: if a case names none.
    """
    nameless = [case for case in cases if "dataset" not in case]
    if nameless:
        raise InputError(f"the case {_title(nameless[0])} names no dataset, expected one for every case")
    return [case["dataset"] for case in cases]


def check_sets(label_sets: LabelSets, **parts: Sequence[Mapping[str, Any]]) -> None:
    """Log the table, and refuse cases without a known data set and a validation that leaves a class unscored.

    Args:
        label_sets: the table.
        parts: lists of cases by the name of the part, as ``training=..., validation=...``.

    Raises:
        InputError: naming the case, or the classes that the validation set cannot score.
    """
    for cases in parts.values():
        _check_names(label_sets, cases)
    shown = table_of_cases(label_sets, parts["training"]) if "training" in parts else label_sets
    logger.info("what each data set says of each class:\n%s", shown.describe())
    if "validation" not in parts:
        return
    datasets = {part: sorted({case["dataset"] for case in cases}) for part, cases in parts.items()}
    learned, scored = (
        {c for d in datasets[p] for g in scored_groups(label_sets, d).values() for c in g} for p in parts
    )
    missing = ", ".join(label_sets.classes[c] for c in sorted(learned - scored))
    if missing:
        found = ", ".join(datasets["validation"])
        raise InputError(
            f"the validation set has cases of {found} only and cannot score {missing}, expected a case of every data "
            "set there too, so two subjects of each at least"
        )


def _check_names(label_sets: LabelSets, cases: Sequence[Mapping[str, Any]]) -> None:
    for case, name in zip(cases, names_of_datasets(cases), strict=True):
        if name not in label_sets.datasets:
            known = ", ".join(label_sets.datasets)
            raise InputError(f"the case {_title(case)} names {name!r} as its dataset, expected one of {known}")


def _title(case: Mapping[str, Any]) -> str:
    return str(case["name"] if "name" in case else case.get("image"))


class ExactClassesd(MapTransform):
    """Replace codes by the class that they stand for, and by 0 where they leave it open: labels to look at.

    Args:
        keys: code volumes, (1, *spatial).
        label_sets: the table of the codes.
    """

    def __init__(self, keys: str | Sequence[str], label_sets: LabelSets) -> None:
        super().__init__(keys)
        exact = label_sets.allowed.sum(1) == 1
        self.classes = torch.where(exact, label_sets.allowed.int().argmax(1), 0).to(torch.uint8)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            codes = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            d[key] = MetaTensor(self.classes.to(codes.device)[codes.long()])
        return d


class LabelSetDice(Metric):
    """Dice of whole volumes, of each data set on the classes that it labels; the mean over classes is the metric.

    The Dice of a class is the mean over the cases that show it, by data set, then over data sets. Voxels whose label
    leaves open whether they are of the class do not count. Every single Dice is published as
    ``<name>_<data set>_<class>`` beside the mean.

    Args:
        label_sets: the table of the codes.
        output_transform: engine output -> (label maps of the prediction, code volumes), each (1, *spatial).
        device: where the sums are kept.

    Raises:
        InputError: at the end of a run, if a class of the cases' data sets was in none of their references.
    """

    def __init__(
        self,
        label_sets: LabelSets,
        output_transform: Callable = _ITEMS,
        device: str | torch.device = "cpu",
    ) -> None:
        self.label_sets = label_sets
        groups = {d: scored_groups(label_sets, d) for d in label_sets.datasets}
        self.columns = [(d, name, classes) for d, named in groups.items() for name, classes in named.items()]
        super().__init__(output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases; ignite calls it when an epoch starts."""
        self._sums = torch.zeros(len(self.columns), dtype=torch.float64, device=self._device)
        self._cases = torch.zeros(len(self.columns), dtype=torch.float64, device=self._device)
        self._seen = torch.zeros(len(self.columns), dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Score the cases of one iteration: (label maps, codes)."""
        for prediction, codes in zip(*output, strict=True):
            if prediction.shape != codes.shape or len(codes) != 1:
                raise ValueError(f"prediction {tuple(prediction.shape)} and codes {tuple(codes.shape)} differ")
            self._score(np.asarray(prediction[0].cpu()), np.asarray(codes[0].cpu()).astype(np.intp))

    def _score(self, prediction: np.ndarray, codes: np.ndarray) -> None:
        datasets = {self.label_sets.dataset_of_code[code] for code in np.unique(codes) if code}
        allowed = self.label_sets.allowed.numpy()
        for i, (dataset, _, classes) in enumerate(self.columns):
            if dataset not in datasets:
                continue
            group = np.isin(np.arange(allowed.shape[1]), classes)
            inside, outside = ~(allowed & ~group).any(1), ~(allowed & group).any(1)
            reference = inside[codes]
            self._seen[i] += 1
            if reference.any():
                self._sums[i] += dice(np.isin(prediction, classes) & (inside | outside)[codes], reference)
                self._cases[i] += 1

    @sync_all_reduce("_sums", "_cases", "_seen")
    def compute(self) -> float:
        """Mean over the classes."""
        by_class: dict[str, list[float]] = {}
        self.single = {}
        for (dataset, name, _), total, cases, seen in zip(
            self.columns, self._sums.tolist(), self._cases.tolist(), self._seen.tolist(), strict=True
        ):
            if seen:
                by_class.setdefault(name, [])
            if cases:
                by_class[name].append(total / cases)
                self.single[f"{dataset}_{name.replace(' + ', '_')}"] = total / cases
        absent = ", ".join(name for name, values in by_class.items() if not values)
        if absent or not by_class:
            raise InputError(f"the validation cases show no {absent or 'class at all'}, expected a case that has it")
        return float(np.mean([np.mean(values) for values in by_class.values()]))

    def completed(self, engine: Engine, name: str) -> None:
        """Publish the mean under ``name``, and each Dice beside it."""
        super().completed(engine, name)
        engine.state.metrics.update({f"{name}_{key}": value for key, value in self.single.items()})
