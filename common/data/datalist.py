"""A datalist: a JSON of cases, read once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, write_json
from .cases import check_cases
from .names import checked_sequences, entries_of, paths_in, short_name
from .splits import check_lesions

logger = logging.getLogger(__name__)

CASES = "a list of cases or a dict of such lists"
_FILES = ("image", "label", "brain_mask")
NOTHING = ("", "n/a")  # what a cell says that has no value, BIDS writes the second
# what the bundles themselves put into a case on its way: a column that a table happens to call so is passed by
_OURS = ("deviation", "entropy", "failure", "pred", "prob", "reconstruction", "soft", "weight")


class Datalist:
    """MONAI's JSON of cases, read once. A tool that asks it several times looks at the files of a case once.

    Args:
        path: a list of items, or a dict of such lists; paths in it are absolute or relative to the JSON.
        mask_key: key of the brain mask in an item.

    Attributes:
        path: of the JSON.
        names: of its sections, those that list a case; none of a plain list.
        header: what stands beside the sections, as ``sequences``.

    Raises:
        InputError: if the file cannot be read, or has another form.
    """

    def __init__(self, path: str | Path, mask_key: str = "brain_mask") -> None:
        self.path = Path(str(path))  # a name such as 2025 comes from the command line as a number
        self._content = read_json(self.path, CASES)
        self._mask_key = mask_key
        self._passed: dict[str, set[str]] = {}
        if not isinstance(self._content, list | dict):
            found = type(self._content).__name__
            raise InputError(f"{self.path} holds {found}, expected a list of cases or a dict of lists")
        lists = self._content.items() if isinstance(self._content, dict) else ()
        self.names = tuple(name for name, value in lists if isinstance(value, list) and any(map(_has_image, value)))
        self.header = {name: value for name, value in lists if name not in self.names}

    def __str__(self) -> str:
        return str(self.path)

    def check_inside(self, dataset_dir: str | Path) -> None:
        """Refuse a folder that does not hold the JSON: one of the two was meant."""
        if Path(dataset_dir).resolve() not in self.path.resolve().parents:
            raise InputError(f"{self} does not lie in dataset_dir {dataset_dir}, expected only one of the two")

    @property
    def sequences(self) -> tuple[str, ...] | None:
        """What it says that its images are; None where it says nothing."""
        listed = self.header.get("sequences")
        if listed is None:
            return None
        if not isinstance(listed, list):
            raise InputError(f"{self.path} has sequences {str(listed)[:80]}, expected a list of names such as T1w")
        return checked_sequences(listed, f"{self.path} has sequences")

    @property
    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """Section -> :meth:`items`; a plain list is ``training``."""
        return {name: self.items(name) for name in self.names} or {"training": self.items()}

    def items(self, section: str | None = None) -> list[dict[str, Any]]:
        """What stands in a section, or in all of them, with absolute paths; no file is looked at.

        Raises:
            InputError: if there is no such section, it lists no case, or an item has another form.
        """
        listed = self._listed(section)
        if not listed:
            under = f" under {section}" if section else ""
            raise InputError(f"{self.path} lists no case{under}, expected at least one")
        return [self._item(item, f"item {number} of {self.path}") for number, item in enumerate(listed)]

    def cases(
        self,
        sequences: Sequence[str],
        section: str | None = None,
        require: Sequence[str] = (),
        optional_sequences: Sequence[str] = (),
        dataset_name: str | None = None,
        healthy: bool | None = None,
        one_grid: bool = True,
        lesions: bool = False,
    ) -> list[dict[str, Any]]:
        """Cases to work on, each checked by the headers of its files; see :func:`common.data.list_cases`."""
        sequences = checked_sequences(sequences, "sequences is")
        cases = self.items(section)
        if healthy is not None:
            cases = self._of_health(cases, healthy, section)
        if self.sequences is not None:
            cases = self._of_sequences(cases, sequences, optional_sequences)
        if dataset_name is not None:
            cases = self._of_dataset(cases, dataset_name)
        if "label" in require:
            cases = self._without_healthy_unlabeled(cases)
        cases = check_cases(cases, self.path, sequences, require, optional_sequences, one_grid, self._passed)
        if lesions:
            check_lesions(cases, f"the {section} section of {self}" if section else str(self))
        return cases

    def _listed(self, section: str | None) -> list[Any]:
        if isinstance(self._content, list):
            if section is None:
                return self._content
            raise InputError(
                f"{self.path} holds a list without sections, though {section!r} is asked for, expected a dict of lists"
            )
        if section is None:
            return [item for name in self.names for item in self._content[name]]
        if not isinstance(self._content.get(section), list):
            known = ", ".join(self.names) or "training, validation, test"
            raise InputError(f"{self.path} has no list {section!r}, expected one of {known}")
        return self._content[section]

    def _item(self, item: Any, where: str) -> dict[str, Any]:
        if isinstance(item, str):  # MONAI's lists for testing may be of bare paths
            item = {"image": item}
        if not isinstance(item, dict) or not item.get("image"):
            raise InputError(f'{where} is {str(item)[:80]}, expected {{"image": path, ...}}')
        if not isinstance(item.get("healthy"), bool | None):
            raise InputError(f"{where} has healthy {item['healthy']!r}, expected true or false")
        files = (*_FILES, self._mask_key)
        given = {k: _checked_value(k, v, where, k in files) for k, v in item.items() if k not in _OURS}
        case = {
            key: _map_paths(value, lambda p: _absolute(p, self.path.parent), every=key in files)
            for key, value in given.items()
            if value is not None
        }
        if self._mask_key in case:
            case["brain_mask"] = case.pop(self._mask_key)
        return case

    def _of_sequences(
        self, cases: list[dict[str, Any]], wanted: tuple[str, ...], optional: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Of the images of each case those that are wanted; cases that lack one are left out."""
        listed = self.sequences
        places = {short_name(name): place for place, name in enumerate(listed)}
        missing = [name for name in wanted if short_name(name) not in places and name not in optional]
        if missing:
            raise InputError(f"{self} lists images of {', '.join(listed)}, expected {', '.join(missing)} among them")
        chosen = []
        for case in cases:
            entries = entries_of(case)
            if len(entries) != len(listed):
                shown = ", ".join(map(str, entries))
                raise InputError(f"{self} has a case of {shown}, expected {len(listed)} images ({', '.join(listed)})")
            images = [entries[places[short_name(name)]] if short_name(name) in places else None for name in wanted]
            if any(images) and all(path or name in optional for path, name in zip(images, wanted, strict=True)):
                chosen.append(case | {"image": images if len(images) > 1 else images[0]})
        if not chosen:
            raise InputError(f"{self} has no case with {' and '.join(wanted)} among its {len(cases)}, expected one")
        if len(chosen) < len(cases):
            logger.info("%s: %d cases without %s left out", self, len(cases) - len(chosen), " and ".join(wanted))
        return chosen

    def _of_dataset(self, cases: list[dict[str, Any]], dataset_name: str) -> list[dict[str, Any]]:
        kept = [case for case in cases if case.get("dataset") == dataset_name]
        if not kept:
            found = ", ".join(sorted({str(case["dataset"]) for case in cases if "dataset" in case})) or "none named"
            raise InputError(
                f"{self} has no case of the data set {dataset_name!r} among its {len(cases)}, found {found}"
            )
        return kept

    def _of_health(self, cases: list[dict[str, Any]], healthy: bool, section: str | None) -> list[dict[str, Any]]:
        """Those who are said to be healthy, or the others; all of them if nothing is said of anybody in the file."""
        everybody = self._listed(None)
        if not any(isinstance(item, dict) and item.get("healthy") is not None for item in everybody):
            logger.info("%s says of nobody whether they are healthy: all %d cases are taken", self, len(cases))
            return cases
        kept = [case for case in cases if bool(case.get("healthy")) == healthy]
        if not kept:
            wanted = f'case {"with" if healthy else "without"} "healthy": true'
            raise InputError(
                f"{self} has no {wanted} among its {len(cases)}{f' under {section}' if section else ''}, expected one"
            )
        if len(kept) < len(cases):
            which = "not said to be healthy" if healthy else "healthy"
            logger.info("%s: %d of %d cases left out, %s", self, len(cases) - len(kept), len(cases), which)
        return kept

    def _without_healthy_unlabeled(self, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [case for case in cases if "label" in case or not case.get("healthy")]
        if cases and not kept:
            raise InputError(f"{self} has no label for any of its {len(cases)} cases, all healthy, expected one")
        if len(kept) < len(cases):
            logger.info("%s: %d healthy cases without label left out", self, len(cases) - len(kept))
        return kept


def write_datalist(
    path: str | Path, sections: dict[str, Sequence[dict[str, Any]]], header: dict[str, Any] | None = None
) -> Path:
    """Write cases as MONAI's dict of lists, with paths relative to the file; it appears whole or not at all.

    Args:
        path: JSON file to write.
        sections: name -> cases, as :meth:`Datalist.cases` reads them again.
        header: what else stands in the file, before the lists.

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    content = (header or {}) | {
        section: [
            {key: _map_paths(value, lambda p: _relative(p, path.parent)) for key, value in case.items()}
            for case in cases
        ]
        for section, cases in sections.items()
    }
    write_json(path, content)
    return path


def _checked_value(key: str, value: Any, where: str, is_file: bool) -> Any:
    """A value of an item, None for nothing; of what is no file only text, numbers and booleans are kept."""
    if key == "image":
        return [None if _is_nothing(v) else v for v in value] if isinstance(value, list) else value
    if is_file and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or _is_nothing(value):
        return None
    expected = str if is_file else str | int | float
    if (is_file or key in ("subject", "dataset")) and (not isinstance(value, expected) or isinstance(value, bool)):
        raise InputError(f"{where} has {key} {str(value)[:80]}, expected {'one path' if is_file else 'a name'}")
    return value if isinstance(value, str | int | float | bool) else None


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NOTHING


def _map_paths(value: Any, change: Callable[[str], str], every: bool = False) -> Any:
    """Paths of NIfTI files changed, or every text."""
    if isinstance(value, list | tuple):
        return [_map_paths(v, change, every) for v in value]
    return change(value) if paths_in(value) or (every and isinstance(value, str)) else value


def _absolute(path: str, folder: Path) -> str:
    try:
        return str((folder / Path(path).expanduser()).absolute())
    except RuntimeError as e:  # ~somebody
        raise InputError(f"{path} names a user who is not there, expected the path of a file") from e


def _relative(path: str, folder: Path) -> str:
    return Path(relpath(path, folder)).as_posix()


def _has_image(item: Any) -> bool:
    """Whether an item of a list is of a case; other lists hold notes, or labels without an image."""
    return "image" in item if isinstance(item, dict) else bool(paths_in(item))
