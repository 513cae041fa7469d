"""One HTML page in one file: text, tables and pictures, no script and nothing from the network.

It follows the colors that a reader's system prefers, light or dark, and prints whole.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .files import without_folders, write_text
from .pictures import PREDICTION_COLOR, REFERENCE_COLOR, Picture


@dataclass(frozen=True)
class Tile:
    """A number to read first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row. ``bars`` are columns of shares, 0 to 1, that get a bar."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[int] = ()


@dataclass(frozen=True)
class CaseView:
    """One case: name, facts, pictures, each in a row of its own if they are wide; ``flags`` say what looks wrong.

    ``view`` is the address of a page of :mod:`common.viewer`, from the folder of this one.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture] = ()
    wide: bool = False
    flags: Sequence[str] = ()
    view: str = ""


@dataclass(frozen=True)
class Section:
    """One report on a page that may hold several. All text is plain text; ``failures`` are of cases by name.

    ``summary`` are tables that stand before the charts; ``reference`` says whether pictures of cases show one; ``keys``
    are the names of both contours, the second one empty where no picture has any.
    """

    title: str
    lead: str = ""
    failures: Sequence[tuple[str, str]] = ()
    tiles: Sequence[Tile] = ()
    summary: Sequence[Table] = ()
    charts: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    cases: Sequence[CaseView] = ()
    cases_note: str = ""
    reference: bool = True
    keys: tuple[str, str] = ("reference", "prediction")
    details: Sequence[tuple[str, str]] = field(default_factory=tuple)
    definitions: Sequence[tuple[str, str]] = field(default_factory=tuple)


def write_html_report(path: str | Path, title: str, sections: Sequence[Section], lead: str = "") -> Path:
    """Write sections to one self-contained page; of files that it names it tells no folders.

    Args:
        path: HTML file; it appears whole or not at all.
        title: of the page.
        sections: in the order of the page; with more than one there are links to them on top.
        lead: a sentence or two below the title.

    Raises:
        InputError: if the file cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(src=_data_uri, share=_share, public=lambda text: without_folders(str(text)))
    text = environment.from_string(text_of("page.html")).render(
        title=title, lead=lead, sections=list(sections), style=Markup(style_of("page.css"))
    )
    write_text(path, text)
    return Path(path)


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode('ascii')}"


def _share(text: str) -> str:
    """Width of a bar in percent; none where the cell does not begin with a number."""
    try:
        return f"{100 * min(max(float(text.split()[0]), 0), 1):.0f}%"
    except (ValueError, IndexError):
        return "0%"


def text_of(name: str) -> str:
    """A file beside this one; the packager takes what is named in the code."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def style_of(name: str) -> str:
    """A style sheet beside this file, below the colors of all pages."""
    colors = text_of("colors.css").replace("REFERENCE_COLOR", REFERENCE_COLOR)
    return f"\n\n{colors.replace('PREDICTION_COLOR', PREDICTION_COLOR)}\n{text_of(name)}"
