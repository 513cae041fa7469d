"""The words in which a bundle describes itself, in its ``description.py``.

An :class:`Inference` makes masks. A :class:`Stage` is one training. A :class:`Use` is a way to use the bundle, step by
step. A :class:`Method` is compared with those of other bundles, a :class:`Row` is scored on real scans. They hold each
other: a stage that is advised is the same object as the one that a comparison trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# kind of case that a training asks for -> what it means
KINDS = {
    "any": "with its label where it has one",
    "unlabeled": "any case, its label kept from the training",
    "healthy": "of a person said to be healthy; of everybody where the datalist is silent on health",
    "patients": "not said to be healthy",
    "labeled": "with a label",
    "drawn": "with a label, and not said to be healthy",
    "data sets": "with a label, and the name of its data set, which says what the label means",
}


@dataclass(frozen=True, eq=False)
class Inference:
    """A way to masks: ``inference.json``, and layers on it.

    Args:
        layers: names of the configs on ``inference.json``.
        weights: entries of the configs that name files of weights; none for a method without a network.
        least_volume: entry with the volume in mm3 below which a lesion is left out; "" if all are kept.
        is_probability: whether its map is one, so that the entropy of the map means something.
        told: entries for the image and the label of one labeled scan, for a method that needs one.
    """

    layers: tuple[str, ...] = ()
    weights: tuple[str, ...] = ("weights",)
    least_volume: str = ""
    is_probability: bool = False
    told: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """One training.

    Args:
        configs: a complete config and the layers on it.
        learns, validates: kind of case, of :data:`KINDS` -> the least number of them in the sections training and
            validation; all cases of these kinds are used.
        writes: file of weights.
        paper: kind of case -> subjects of this kind that the paper trained on.
        given: option -> the step before whose result it is.
        options: further entries of the configs.
        datalists: option that names a datalist -> kind of the cases in it; by default ``datalist_file``, and the
            first kind that it validates on.
        sections: False for a training that takes all the cases, whatever their section.
        output_dir: where the weights go, if not to ``models/`` of the bundle.
        name: tells trainings apart that have the same configs.
        note: what the measured time leaves out.

    Raises:
        ValueError: if a kind is none of :data:`KINDS`.
    """

    configs: tuple[str, ...]
    learns: Mapping[str, int]
    validates: Mapping[str, int]
    writes: str = "model.pt"
    paper: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, Stage | Prediction] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    datalists: Mapping[str, str] = field(default_factory=dict)
    sections: bool = True
    output_dir: str = ""
    name: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.datalists:
            object.__setattr__(self, "datalists", {"datalist_file": next(iter(self.validates))})
        used = {*self.learns, *self.validates, *self.paper, *self.datalists.values()}
        unknown = sorted(used - KINDS.keys())
        if unknown:
            raise ValueError(f"a stage of {self.configs[-1]} names {unknown[0]!r}, expected some of {', '.join(KINDS)}")

    @property
    def learns_from_predictions(self) -> bool:
        """Whether its labels are made on the way, by a step before."""
        return any(isinstance(step, Prediction) for step in self.given.values())


@dataclass(frozen=True, eq=False)
class Prediction:
    """An inference as a step of a way of use.

    Args:
        inference: what makes the masks.
        by: the stage whose weights it takes; None for those that are shipped.
        layers: configs on those of the inference, for what is written beside the masks.
        of: kind of the cases, of :data:`KINDS`.
        section: of the datalist; "" for all.
        output_dir: of the results, which go to a folder of the bundle in it; "" for the one of the config.
        writes: file below the folder of the bundle that a later stage takes.
    """

    inference: Inference
    by: Stage | None = None
    layers: tuple[str, ...] = ()
    of: str = "any"
    section: str = ""
    output_dir: str = "results"
    writes: str = ""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A threshold, found on the section validation and written into the config.

    A comparison chooses all thresholds alike, by the best Dice.

    Args:
        inference: whose threshold it is.
        rate: share of healthy voxels that may reach it; None for the best Dice of labeled cases.
    """

    inference: Inference
    rate: float | None = None


Step = Stage | Prediction | Calibration


@dataclass(frozen=True, eq=False)
class Use:
    """A way to use the bundle.

    Args:
        way: what is done.
        gives: what comes out.
        steps: to be run in this order.
        values: values that a label may have; None where ``label_sets`` of the datalist or of ``train.json`` say it.
        any_sequence: another sequence may take the place of that of the configs, by ``--sequences``.
    """

    way: str
    gives: str
    steps: tuple[Step, ...]
    values: tuple[int, ...] | None = None
    any_sequence: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its trainings; none where the weights are applied as they are shipped."""
        return tuple(step for step in self.steps if isinstance(step, Stage))


@dataclass(frozen=True, eq=False)
class Method:
    """What is compared with the methods of other bundles.

    Args:
        name: what it is asked for by.
        title: on the page.
        target: name of the target, ``lesion`` or ``tissue``.
        inference: what makes its masks.
        trained_by: the stage that makes its weights; None where nothing is to be trained.
        is_shipped: whether the bundle ships what it needs.
        is_baseline: whether it is what the others have to beat.
        bundle: whose it is; filled in when the description is read.
    """

    name: str
    title: str
    target: str
    inference: Inference
    trained_by: Stage | None = None
    is_shipped: bool = True
    is_baseline: bool = False
    bundle: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the tables on real scans: masks that are made with the weights and thresholds that are shipped.

    Args:
        title: in the tables.
        inference: what makes its masks.
        is_baseline: whether it is what the bundle has to beat.
        adapted_by: stage that fits weights to the scans first, without their labels.
        is_told: whether it is told a labeled scan, and which registration to use.
        bundle: whose configs it runs; by default those of the bundle that the table is of.
    """

    title: str
    inference: Inference
    is_baseline: bool = False
    adapted_by: Stage | None = None
    is_told: bool = False
    bundle: str = ""

    @property
    def is_shipped(self) -> bool:
        """Whether it is what ``inference.json`` does, as it is."""
        return not (self.inference.layers or self.adapted_by or self.is_told)


@dataclass(frozen=True, eq=False)
class Description:
    """All that the tools know of a bundle beside its configs.

    Args:
        summary: a paragraph for the README, which ends with the paper.
        inferences: its ways to masks.
        uses: its ways of use.
        methods: compared with those of other bundles.
        rows: of its tables on real scans.
        needs: what the cases of a set of real scans must have, in one of these ways.
        registration: complete config that registers pairs and writes their scores to ``registration.csv``.
        registration_alone: entries of that config for the network without the refinement of each pair.
        neighbor_table: dotted name of the function that counts, in a label map, which class stands beside which, for a
            bundle that learns from an atlas with such a table.
        suspects_in: sequences in which its shipped weights say where a scan has lesions, for who implants others; none
            where they do not.
        exporter: how its network becomes TorchScript, ``script`` or ``trace``.
        single_pass: entries of ``inference.json`` with which the network looks at each voxel once, for benchmarks.
        trains_in_label: whether MONAI Label can train it, with one image and one label a case.
        small: config -> entries that let it run in seconds on small scans of 4 mm or more, for tests.
        name: of its folder; filled in when the description is read.

    Raises:
        ValueError: if the exporter is another one.
    """

    summary: str
    inferences: tuple[Inference, ...]
    uses: tuple[Use, ...]
    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    needs: tuple[frozenset[str], ...]
    registration: str = ""
    registration_alone: Mapping[str, Any] = field(default_factory=dict)
    neighbor_table: str = ""
    suspects_in: tuple[str, ...] = ()
    exporter: str = "script"
    single_pass: Mapping[str, Any] = field(default_factory=dict)
    trains_in_label: bool = False
    small: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if self.exporter not in ("script", "trace"):
            raise ValueError(f"exporter is {self.exporter!r}, expected script or trace")
