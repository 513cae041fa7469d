"""Text of tables and pages: comma- or tab-separated lines in which no cell is a formula, numbers of things."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from typing import Any

_FORMULA = ("=", "+", "-", "@")  # what a cell begins with that a spreadsheet runs


def cell(value: Any) -> str:
    """A value as the text of a cell: empty where undefined; six digits are more than any of these numbers is good for.

    Text that a spreadsheet would run as a formula, as a case called ``=1+1``, gets an apostrophe in front, by which
    spreadsheets show it as the text that it is. Numbers stay numbers; a line end or a tab becomes a blank.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(re.split(r"[\t\r\n]+", str(value).lower() if isinstance(value, bool) else str(value))).strip()
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def delimited(rows: Iterable[Iterable[Any]], delimiter: str = ",") -> str:
    """A table as text, its heading the first of its rows."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()


def counted(number: int, word: str) -> str:
    """As "1 case" and "2 cases"."""
    return f"{number} {word}" + "s" * (number != 1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
