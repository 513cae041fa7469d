"""Real scans that a user lists in one JSON file: sets of cases with references, checked before anything is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog import describe, descriptions
from common.data import Case, check_cases
from common.errors import InputError
from common.files import read_json
from datalists.survey import read_facts

SEQUENCES = ("T1w", "FLAIR")
LABELS = {"lesion": range(2), "tissues": range(5)}  # item of a case -> values that its file may have
LESION = 4  # in a tissue map


@dataclass(frozen=True)
class ScanSet:
    """Scans of one origin, all with the same items.

    Args:
        name: of its folder.
        title, note: in the tables.
        items: what the cases have, of T1w, FLAIR, brain_mask, lesion and tissues.
        cases: ``subject``, ``image``, ``brain_mask``, and ``content``, which tells scans from others of the same name.
        references: subject -> item -> path of the reference.
        shows_lesions: whether a tissue map has lesions.
        adapt: whether bundles are also fitted to the scans, where they can be, which takes minutes a scan.
    """

    name: str
    title: str
    note: str
    items: frozenset[str]
    cases: list[Case]
    references: dict[str, dict[str, str]]
    shows_lesions: bool
    adapt: bool

    @property
    def sequences(self) -> list[str]:
        """What the images of a case are."""
        return [sequence for sequence in SEQUENCES if sequence in self.items]

    def fits(self, bundle: str) -> bool:
        """Whether the cases have what a bundle needs."""
        return any(needed <= self.items for needed in describe(bundle).needs)


@dataclass(frozen=True)
class Further:
    """What a list of real scans has for a bundle that registers.

    Args:
        controls: title -> weights of a registration that learned without labels.
        labeled_scan: ``T1w`` and ``tissues`` of a subject of no set, whose labels are propagated.
    """

    controls: dict[str, Path] = field(default_factory=dict)
    labeled_scan: dict[str, Path] | None = None


@dataclass(frozen=True)
class RealScans:
    """What a user's JSON lists, see :func:`read_real_scans`.

    Args:
        path: of the JSON.
        sets: the scans.
        further: bundle -> what there is for its registration.
    """

    path: Path
    sets: list[ScanSet]
    further: dict[str, Further] = field(default_factory=dict)

    def further_of(self, bundle: str) -> Further:
        """What there is for the registration of a bundle."""
        return self.further.get(bundle, Further())

    def sets_of(self, bundle: str) -> list[ScanSet]:
        """The sets that a bundle is scored on; InputError if there is none."""
        found = [scans for scans in self.sets if scans.fits(bundle)]
        if not found:
            wanted = " or ".join(", ".join(sorted(needed)) for needed in describe(bundle).needs)
            raise InputError(f"no set of {self.path} fits {bundle}, expected one whose cases have {wanted}")
        return found


def read_real_scans(path: str | Path) -> RealScans:
    """Sets of real scans, every file checked, also the values of the references.

    ``{"sets": [{"name", "title", "note", "adapt", "cases": [{"subject", "T1w", "FLAIR", "brain_mask", "lesion",
    "tissues"}]}], "<bundle>": {"controls": {title: weights}, "labeled_scan": {"T1w", "tissues"}}}``: a case has a
    subject, one sequence or both, and what else there is, all cases of a set the same; ``adapt``, true or false, and
    the entry of a bundle that registers, and each part of it, may be left out. ``lesion`` is 1 where there is one,
    ``tissues`` 1 CSF, 2 GM, 3 WM, 4 lesion. Paths are absolute or relative to the JSON.

    Raises:
        InputError: if something is missing, unknown, named twice or of another form, or a file cannot be used.
    """
    path = Path(path)
    registering = [name for name, description in descriptions().items() if description.registration]
    content = _checked(read_json(path, "sets of real scans"), path, ("sets",), registering)
    sets = [_read_set(item, path) for item in _filled(content["sets"], path)]
    _refuse_twice([scans.name for scans in sets], path)
    further = {name: _read_further(content[name], name, path) for name in registering if name in content}
    return RealScans(path, sets, further)


def _read_further(item: Any, bundle: str, path: Path) -> Further:
    where = f"{bundle} of {path}"
    item = _checked(item, where, (), ("controls", "labeled_scan"))
    controls, labeled = item.get("controls", {}), None
    if not isinstance(controls, dict):
        raise InputError(f"controls of {where} is {controls!r}, expected weights of registrations by their titles")
    controls = {title: _path(value, where, path) for title, value in controls.items()}
    for file in controls.values():
        if not file.is_file():
            raise InputError(f"{file} in {where} does not exist, expected weights of a registration")
    if "labeled_scan" in item:
        scan = _checked(item["labeled_scan"], f"labeled_scan of {where}", ("T1w", "tissues"))
        labeled = {key: _path(value, where, path) for key, value in scan.items()}
        check_cases([{"image": str(labeled["T1w"]), "label": str(labeled["tissues"])}], path, ["T1w"])
        _values_of(labeled["tissues"], range(LESION))
    return Further(controls, labeled)


def _read_set(item: Any, path: Path) -> ScanSet:
    item = _checked(item, f"a set of {path}", ("name", "title", "note", "cases"), ("adapt",))
    if not re.fullmatch(r"[\w-]+", str(item["name"])):
        raise InputError(f"a set of {path} has the name {item['name']!r}, expected letters, digits, - and _")
    where = f"the set {item['name']} of {path}"
    adapt = item.get("adapt", False)
    if not isinstance(adapt, bool):
        raise InputError(f"adapt of {where} is {adapt!r}, expected true or false")
    optional = (*SEQUENCES, "brain_mask", *LABELS)
    listed = [_checked(case, f"a case of {where}", ("subject",), optional) for case in _filled(item["cases"], where)]
    _refuse_twice([str(case["subject"]) for case in listed], where)
    items = frozenset(listed[0]) - {"subject"}
    for case in listed:
        differing = sorted(items ^ (set(case) - {"subject"}))
        if differing:
            known = f"one has {differing[0]} and another has not"
            raise InputError(f"the cases of {where} differ: {known}, expected the same items in all of a set")
    sequences = [sequence for sequence in SEQUENCES if sequence in items]
    if not sequences:
        raise InputError(f"the cases of {where} have no image, expected {' or '.join(SEQUENCES)}")
    others = sorted(items - set(sequences))
    cases = [
        {"subject": str(case["subject"]), "image": [str(_path(case[key], where, path)) for key in sequences]}
        | {key: str(_path(case[key], where, path)) for key in others}
        for case in listed
    ]
    check_cases(cases, path, sequences, others)
    labels = [key for key in LABELS if key in items]
    values = {key: {v for case in cases for v in _values_of(case[key], LABELS[key])} for key in labels}
    return ScanSet(
        str(item["name"]),
        str(item["title"]),
        str(item["note"]),
        items,
        [_to_predict(case) for case in cases],
        {case["subject"]: {key: case[key] for key in labels} for case in cases},
        LESION in values.get("tissues", ()),
        adapt,
    )


def _to_predict(case: Case) -> Case:
    """A case without its references."""
    return {key: case[key] for key in ("subject", "image", "brain_mask") if key in case}


def _checked(item: Any, where: str | Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A dict with the keys that are needed and none but these and the optional ones."""
    expected = ", ".join([*needed, *(f"{key} (optional)" for key in optional)])
    if not isinstance(item, dict):
        raise InputError(f"{where} is {str(item)[:60]!r}, expected a dict with {expected}")
    wrong = [f"no {key}" for key in needed if key not in item]
    wrong += [repr(key) for key in item if key not in (*needed, *optional)]
    if wrong:
        raise InputError(f"{where} has {wrong[0]}, expected {expected}")
    return item


def _filled(value: Any, where: str | Path) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} has {str(value)[:60]!r}, expected a list with one entry or more")
    return value


def _refuse_twice(names: Sequence[str], where: str | Path) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{where} has {twice[0]} twice, expected every name once")


def _path(value: Any, where: str, source: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} has {value!r}, expected a path")
    return (source.parent / Path(value).expanduser()).absolute()


def _values_of(path: str | Path, known: Sequence[int]) -> tuple[int, ...]:
    values = read_facts(str(path), "label").values
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{path} has the value {unknown[0]}, expected {', '.join(map(str, known))} only")
    return values
