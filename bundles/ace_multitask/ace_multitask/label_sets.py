"""What a label of a data set says: the set of joint classes that a voxel may have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type

from common.errors import InputError
from common.files import read_json
from common.transforms.io import file_of

IGNORE = "ignore"
_KEYS = ("labels", "background_is_complete")


class LabelSets:
    """The table of label sets: data set and label value -> set of joint classes that are possible there.

    A label value v of data set k is an observation, and all observations are numbered: code 0 is "nothing known", which
    padding also gets, codes 1, 2, ... are (k, v) in the order of the data sets and of their values. A batch of code
    volumes can thus mix data sets. A value stands for

    - one class, ``"1": "CSF"``;
    - several, one of which is true, ``"3": ["WM", "lesion"]`` for white matter with the lesions in it;
    - all classes, ``"9": "ignore"``.

    Value 0, where the table does not name it, is all classes that this data set does not name; with
    ``background_is_complete`` it is the first joint class alone.

    Args:
        classes: names of the joint classes, background first; or a dict of index -> name, as in ``channel_def``.
        datasets: name -> ``{"labels": {value: classes}, "background_is_complete": bool}``.

    Attributes:
        classes: names of the joint classes.
        datasets: names of the data sets.
        allowed: (codes, classes), bool: whether a voxel with this code may be of this class.
        code_of: (data set, value) -> code.
        dataset_of_code, value_of_code: data set and label value of each code; None for code 0.

    Raises:
        InputError: if a table is malformed, names an unknown class, if a class is named by no data set, or if two
            classes are told apart by none.

    Reference:
        The adaptive cross entropy of Roulet et al., MIDL 2019, has two data sets; the general table is ours.
    """

    def __init__(self, classes: Sequence[str] | Mapping[Any, str], datasets: Mapping[str, Mapping[str, Any]]) -> None:
        self.classes = _class_names(classes)
        if not isinstance(datasets, Mapping) or not datasets:
            raise InputError(f"label_sets has the datasets {datasets!r}, expected a table for each of them")
        self.datasets = tuple(datasets)
        self._tables = {name: self._table(name, content) for name, content in datasets.items()}
        observations = [(name, value) for name, table in self._tables.items() for value in table]
        if len(observations) > 255:
            raise InputError(f"label_sets has {len(observations)} label values, expected 255 or fewer")
        self.code_of = {observation: code for code, observation in enumerate(observations, start=1)}
        self.dataset_of_code: list[str | None] = [None, *(name for name, _ in observations)]
        self.value_of_code: list[int | None] = [None, *(value for _, value in observations)]
        self.allowed = torch.ones(len(observations) + 1, len(self.classes), dtype=torch.bool)
        for (name, value), code in self.code_of.items():
            possible = self._tables[name][value]
            self.allowed[code] = torch.tensor([c in possible for c in range(len(self.classes))])
        self._check_identifiable()

    def values(self, dataset: str) -> tuple[int, ...]:
        """Label values that the files of a data set may hold, 0 included.

        Raises:
            InputError: if the data set is not in the table.
        """
        if dataset not in self._tables:
            raise InputError(f"{dataset!r} is no dataset of label_sets, expected one of {_listed(self.datasets)}")
        return tuple(self._tables[dataset])

    def code(self, dataset: str, value: int | str) -> int:
        """Code of a label value.

        Raises:
            InputError: if the table has no such data set or value.
        """
        values = self.values(dataset)
        if str(value) not in map(str, values):
            raise InputError(f"{value!r} is no label value of dataset {dataset}, expected one of {_listed(values)}")
        return self.code_of[dataset, int(value)]

    def matrix(self) -> dict[str, dict[str, str]]:
        """Data set -> class -> what its labels say of the class.

        ``exact``: whatever value can be this class, means this class alone; ``merged``: one stands for other classes
        too; ``unknown``: none can be this class, or only ignored ones.
        """
        return {
            name: {class_name: self._knowledge(name, c) for c, class_name in enumerate(self.classes)}
            for name in self.datasets
        }

    def describe(self) -> str:
        """The matrix as aligned text, to be printed when a training starts."""
        rows = [["", *self.classes], *([name, *row.values()] for name, row in self.matrix().items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def tables(self) -> dict[str, dict[str, Any]]:
        """The ``datasets`` of this table as JSON has them, the value 0 spelled out."""
        return {name: {"labels": self._named(table)} for name, table in self._tables.items()}

    def naive(self) -> LabelSets:
        """The same codes with every data set taken at its word: its 0 is background and nothing else."""
        tables = {name: table["labels"] | {"0": self.classes[0]} for name, table in self.tables().items()}
        return LabelSets(self.classes, {name: {"labels": labels} for name, labels in tables.items()})

    def single(self, dataset: str) -> LabelSets:
        """One data set alone, with the classes that it tells apart; those it does not become one, called as the first.

        The lesion set has background and lesion, say, the tissue set background and tissues.
        """
        self.values(dataset)
        rows = [i for i, name in enumerate(self.dataset_of_code) if name == dataset]
        columns = self.allowed[rows].T.tolist()  # what the data set says of each class
        first = {tuple(column): c for c, column in reversed(list(enumerate(columns))) if any(column)}
        kept = sorted(first.values())
        labels = {
            str(value): [self.classes[c] for c in kept if c in possible]
            for value, possible in self._tables[dataset].items()
        }
        return LabelSets([self.classes[c] for c in kept], {dataset: {"labels": labels}})

    def _dataset_of(self, case: Mapping[Hashable, Any], dataset_key: str) -> str:
        name = case.get(dataset_key)
        if name not in self._tables:
            image = case.get("image")
            where = file_of(image) if isinstance(image, MetaTensor) else case.get("name", image)
            found = "no dataset" if name is None else f"the dataset {name!r}"
            raise InputError(f"the case {where} has {found}, expected one of {_listed(self.datasets)}")
        return name

    def _table(self, dataset: str, content: Mapping[str, Any]) -> dict[int, frozenset[int]]:
        where = f"label_sets of dataset {dataset}"
        if not isinstance(content, Mapping) or not isinstance(content.get("labels"), Mapping) or not content["labels"]:
            raise InputError(f'{where} is {content!r}, expected {{"labels": {{value: classes}}}}')
        unknown = [key for key in content if key not in _KEYS]
        if unknown:
            raise InputError(f"{where} has the key {unknown[0]!r}, expected only {_listed(_KEYS)}")
        complete = content.get("background_is_complete", False)
        if not isinstance(complete, bool):
            raise InputError(f"{where} has background_is_complete {complete!r}, expected true or false")
        table = {_value(value, where): self._set(names, where) for value, names in content["labels"].items()}
        if len(table) < len(content["labels"]):
            raise InputError(f"{where} has the values {_listed(content['labels'])}, expected each of them once")
        every = frozenset(range(len(self.classes)))
        if complete and 0 in table:
            raise InputError(f"{where} has both a value 0 and background_is_complete, expected one of them")
        if 0 not in table:
            named = frozenset().union(*(possible for possible in table.values() if possible != every))
            table[0] = frozenset({0}) if complete else every - named
        if not table[0]:
            raise InputError(f"{where} names every class, expected one that is left for the value 0")
        return dict(sorted(table.items()))

    def _set(self, names: str | Sequence[str], where: str) -> frozenset[int]:
        if names == IGNORE:
            return frozenset(range(len(self.classes)))
        names = [names] if isinstance(names, str) else names
        unknown = [name for name in names if name not in self.classes] if isinstance(names, Sequence) else names
        if unknown or not names:
            raise InputError(f"{where} has the class {unknown!r}, expected some of {_listed(self.classes)} or {IGNORE}")
        return frozenset(self.classes.index(name) for name in names)

    def _named(self, table: Mapping[int, frozenset[int]]) -> dict[str, list[str]]:
        return {str(value): [self.classes[c] for c in sorted(possible)] for value, possible in table.items()}

    def _knowledge(self, dataset: str, c: int) -> str:
        sets = [s for s in self._tables[dataset].values() if c in s and len(s) < len(self.classes)]
        if not sets:
            return "unknown"
        return "exact" if all(len(s) == 1 for s in sets) else "merged"

    def _check_identifiable(self) -> None:
        positive = [v not in (None, 0) for v in self.value_of_code]
        informative = ~self.allowed.all(1)
        named = self.allowed[torch.tensor(positive) & informative].any(0)
        absent = [name for c, name in enumerate(self.classes) if c > 0 and not named[c]]
        if absent:
            raise InputError(f"no dataset of label_sets annotates {_listed(absent)}, expected at least one that does")
        cells: dict[tuple[bool, ...], list[str]] = {}
        for name, column in zip(self.classes, self.allowed.T.tolist(), strict=True):
            cells.setdefault(tuple(column), []).append(name)
        together = [_listed(cell) for cell in cells.values() if len(cell) > 1]
        if together:
            raise InputError(
                f"no dataset of label_sets tells apart {' nor '.join(together)}, expected one that has a value for one "
                "of them alone, or one class in their place"
            )


class ObservationCodesd(MapTransform):
    """Replace the label values of files by the codes of :class:`LabelSets`.

    Padding with 0 in later transforms then means "nothing known".

    Args:
        keys: label maps, (1, *spatial).
        label_sets: the table.
        dataset_key: item that names the data set of the case.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        InputError: if the case names no data set of the table, or a file has a value that its table lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_sets: LabelSets,
        dataset_key: str = "dataset",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_sets = label_sets
        self.dataset_key = dataset_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            dataset = self.label_sets._dataset_of(d, self.dataset_key)
            label = convert_data_type(d[key], torch.Tensor)[0]
            codes = torch.zeros_like(label, dtype=torch.uint8)
            for value in self.label_sets.values(dataset):
                codes.masked_fill_(label == value, self.label_sets.code_of[dataset, value])
            if (codes == 0).any():
                found = torch.unique(label[codes == 0]).tolist()
                raise InputError(
                    f"{file_of(d[key])} has the label values {_listed(f'{v:g}' for v in found)}, expected only "
                    f"{_listed(self.label_sets.values(dataset))} as label_sets has them for dataset {dataset}"
                )
            d[key] = convert_to_dst_type(codes, d[key], dtype=torch.uint8)[0]
        return d


def load_label_sets(config: Mapping[str, Any], datalist_file: str | Path | None = None) -> LabelSets:
    """The table of a datalist, or of a config if the datalist has none.

    Args:
        config: ``{"classes": names, "datasets": tables}``.
        datalist_file: JSON file that may hold ``"label_sets"`` in the same form beside its lists of cases; what it
            holds takes the place of the config's.

    Raises:
        InputError: as :class:`LabelSets`, or if one of the two is not in this form.
    """
    own: Any = {}
    if datalist_file is not None:
        datalist = read_json(datalist_file, "lists of cases")
        own = datalist.get("label_sets", {}) if isinstance(datalist, dict) else {}
    source = f"{datalist_file}: label_sets" if own else "label_sets"
    if not isinstance(own, Mapping) or set(config | own) != {"classes", "datasets"}:
        raise InputError(f"{source} is {own or config!r}, expected classes and datasets and nothing else")
    try:
        return LabelSets(**(config | own))
    except InputError as e:
        raise InputError(f"{datalist_file}: {e}" if own else str(e)) from e


def _class_names(classes: Sequence[str] | Mapping[Any, str]) -> tuple[str, ...]:
    if isinstance(classes, Mapping):
        try:
            by_index = {int(index): name for index, name in classes.items()}
            names = [by_index[index] for index in range(len(classes))]
        except (KeyError, ValueError) as e:
            raise InputError(f"classes has the indices {_listed(classes)}, expected 0, 1, ... without a gap") from e
    else:
        names = list(classes) if not isinstance(classes, str) else []
    valid = all(isinstance(name, str) and name and name != IGNORE for name in names)
    if not valid or len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"classes is {classes!r}, expected two or more different names, background first")
    return tuple(names)


def _value(value: Any, where: str) -> int:
    try:
        number = int(str(value))
    except ValueError as e:
        raise InputError(f"{where} has the label value {value!r}, expected a whole number") from e
    if number < 0:
        raise InputError(f"{where} has the label value {number}, expected 0 or above")
    return number


def _listed(items: Any) -> str:
    return ", ".join(str(item) for item in items)
