"""What is compared: which labels are scored, and where a case of a datalist has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.data import Case
from common.errors import InputError


@dataclass(frozen=True)
class Target:
    """A task that several methods solve.

    Args:
        name: what it is asked for by, and what ``dataset`` says of cases whose ``label`` is of this kind.
        labels: value in the references -> name; masks of bundles are matched by these names.
        key: item of a case that holds the label, where a case has labels of several kinds; else ``label`` does.
        lesions: whether labels are counted lesion by lesion.
        left_open: values in references that say nothing about the labels, such as a lesion among tissues.
    """

    name: str
    labels: Mapping[int, str]
    key: str
    lesions: bool = False
    left_open: Sequence[int] = ()

    def label_of(self, case: Case) -> str | None:
        """Path of the label of this kind that a case has, if any."""
        if case.get("dataset", self.name) != self.name and self.key not in case:
            return None
        return case.get(self.key, case.get("label"))

    def mask_values(self, channels: Mapping[str, str]) -> dict[int, int]:
        """Value in a bundle's masks -> label, of its ``channel_def``; classes of other kinds are background.

        Raises:
            InputError: if a label is missing.
        """
        wanted = {name.lower(): value for value, name in self.labels.items()}
        same = {"anomaly": "lesion"}
        names = {int(value): same.get(name.lower(), name.lower()) for value, name in channels.items() if int(value)}
        missing = set(wanted) - set(names.values())
        if missing:
            raise InputError(f"masks have {', '.join(names.values())}, expected {', '.join(wanted)} among them")
        return {value: wanted.get(name, 0) for value, name in names.items()}

    @property
    def reference_sets(self) -> dict[str, dict[int, list[int]]] | None:
        """How :class:`common.evaluation.Evaluation` reads references, all of a data set of the target's name."""
        if not self.left_open:
            return None
        known = {value: [value] for value in (0, *self.labels)}
        return {self.name: known | {value: [0, *self.labels] for value in self.left_open}}


TARGETS = {
    target.name: target
    for target in (
        Target("lesion", {1: "lesion"}, "lesion", lesions=True),
        Target("tissue", {1: "CSF", 2: "GM", 3: "WM"}, "tissues", left_open=(4,)),
    )
}
