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
    text = environment.from_string(TEMPLATE).render(
        title=title, lead=lead, sections=list(sections), style=Markup(STYLE)
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


# of this page and of those that it links to
COLORS = f"""
:root {{ color-scheme:light dark; --ink:#1c2733; --muted:#5a6878; --line:#e1e6ec; --card:#fff; --page:#f4f6f8;
  --accent:#00547a; --link:#00547a; --alarm:#b3261e; --bar:#d3e6f0;
  --reference:{REFERENCE_COLOR}; --prediction:{PREDICTION_COLOR}; }}
@media screen and (prefers-color-scheme:dark) {{ :root {{ --ink:#e4e9ee; --muted:#9fadba; --line:#34404b;
  --card:#1b232b; --page:#12181e; --accent:#0b3a52; --link:#7cc4ea; --alarm:#ff9187; --bar:#1f4c63; }} }}
"""

STYLE = f"""
{COLORS}
* {{ box-sizing:border-box; }}
html {{ -webkit-text-size-adjust:100%; scroll-behavior:smooth; }}
body {{ margin:0; background:var(--page); color:var(--ink); overflow-wrap:anywhere;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }}
main, header > div {{ max-width:1200px; margin:0 auto; padding:0 24px; }}
header {{ background:var(--accent); color:#fff; padding:30px 0 26px; }}
h1 {{ margin:0; font-size:1.9rem; line-height:1.2; letter-spacing:-.01em; }}
header p {{ margin:8px 0 0; max-width:75ch; color:#dcebf3; }}
nav {{ margin-top:14px; display:flex; flex-wrap:wrap; gap:8px; }}
nav a {{ color:#fff; text-decoration:none; border:1px solid #ffffff66; border-radius:99px; padding:4px 14px; }}
nav a:hover, nav a:focus-visible {{ background:#ffffff26; }}
section {{ padding:34px 0 14px; }}
section + section {{ border-top:2px solid var(--line); }}
h2 {{ margin:0 0 4px; font-size:1.5rem; line-height:1.25; }}
h3 {{ margin:34px 0 12px; font-size:1.12rem; }}
.lead {{ margin:0 0 18px; max-width:80ch; color:var(--muted); }}
.failures {{ margin:0 0 18px; padding:12px 16px; border:1px solid var(--line); border-left:5px solid var(--alarm);
  border-radius:10px; background:var(--card); }}
.failures dl {{ margin:6px 0 0; }}
.tiles {{ display:grid; gap:12px; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); }}
.tile, figure.chart, .case, .table {{ background:var(--card); border:1px solid var(--line); border-radius:10px; }}
.tile {{ padding:14px 16px; max-width:300px; }}
.tile span {{ display:block; color:var(--muted); font-size:.86rem; line-height:1.35; }}
.tile b {{ display:block; font-size:1.75rem; font-weight:650; line-height:1.3; font-variant-numeric:tabular-nums; }}
.charts {{ display:grid; gap:12px; margin-top:12px; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); }}
figure {{ margin:0; }}
figure.chart {{ padding:14px 14px 12px; max-width:430px; }}
figure.chart img {{ width:100%; height:auto; display:block; }}
figcaption {{ color:var(--muted); font-size:.84rem; line-height:1.4; }}
figure.chart figcaption {{ margin-top:8px; }}
.table {{ overflow-x:auto; overflow-y:hidden; width:fit-content; max-width:100%; }}
table {{ border-collapse:collapse; font-size:.9rem; font-variant-numeric:tabular-nums; }}
th, td {{ padding:7px 14px; text-align:right; white-space:nowrap; }}
thead th {{ color:var(--muted); font-weight:600; white-space:normal; overflow-wrap:normal; line-height:1.3;
  border-bottom:2px solid var(--line); vertical-align:bottom; }}
tbody tr + tr > * {{ border-top:1px solid var(--line); }}
th:first-child {{ text-align:left; position:sticky; left:0; background:var(--card); border-right:1px solid var(--line);
  white-space:normal; min-width:170px; max-width:320px; }}
tbody th {{ font-weight:500; }}
.bar {{ background:linear-gradient(90deg,var(--bar) var(--w),transparent var(--w)); }}
.key {{ display:flex; flex-wrap:wrap; gap:4px 20px; margin:0 0 14px; color:var(--muted); font-size:.92rem; }}
.key i {{ display:inline-block; width:24px; height:0; margin-right:7px; vertical-align:middle; }}
.case {{ padding:16px 18px 18px; margin-bottom:14px; break-inside:avoid; }}
.case h4 {{ margin:0 0 6px; font-size:1.02rem; }}
.look {{ float:right; margin-left:14px; color:var(--link); font-size:.92rem; }}
.facts {{ display:flex; flex-wrap:wrap; gap:2px 20px; margin:0 0 12px; font-size:.92rem;
  font-variant-numeric:tabular-nums; }}
.facts span {{ color:var(--muted); }}
.flags {{ margin:0 0 6px; color:var(--alarm); font-weight:600; }}
.panels {{ display:grid; gap:10px; grid-template-columns:repeat(3,1fr); }}
.panels.many {{ grid-template-columns:repeat(4,1fr); }}
.panels.wide {{ grid-template-columns:1fr; }}
.panels.wide img {{ aspect-ratio:auto; }}
.panels img {{ display:block; width:100%; aspect-ratio:1; object-fit:contain; background:#000; border-radius:6px; }}
.panels figcaption {{ margin-top:3px; }}
details {{ margin-top:14px; }}
summary {{ cursor:pointer; font-weight:600; }}
dl {{ display:grid; grid-template-columns:minmax(120px,max-content) 1fr; gap:4px 18px; font-size:.92rem; }}
dt {{ color:var(--muted); }}
dd {{ margin:0; max-width:85ch; }}
@media (max-width:640px) {{
  main, header > div {{ padding:0 14px; }}
  h1 {{ font-size:1.45rem; }}
  .tiles {{ grid-template-columns:1fr 1fr; gap:8px; }}
  .tile {{ padding:10px 12px; }}
  .tile b {{ font-size:1.4rem; }}
  .case {{ padding:12px; }}
  .panels, .panels.many {{ grid-template-columns:1fr 1fr; gap:8px; }}
  th, td {{ padding:7px 9px; }}
  th:first-child {{ min-width:104px; max-width:132px; }}
  dl {{ grid-template-columns:1fr; gap:0; }}
  dd {{ margin-bottom:8px; }}
}}
@media screen and (prefers-color-scheme:dark) {{ figure.chart img {{ filter:invert(1) hue-rotate(180deg); }} }}
@page {{ margin:12mm; }}
@page wide {{ size:landscape; }}
@media print {{
  html {{ font-size:10pt; }}
  body {{ background:#fff; font-size:inherit; }}
  body, .panels img, .bar {{ print-color-adjust:exact; -webkit-print-color-adjust:exact; }}
  main, header > div {{ max-width:none; padding:0; }}
  header, header p {{ background:none; color:inherit; }}
  header {{ padding:0 0 6pt; }}
  nav, .look {{ display:none; }}
  section {{ padding:6pt 0; }}
  h3 {{ margin:14pt 0 6pt; break-after:avoid; }}
  .charts {{ grid-template-columns:repeat(4,1fr); }}
  .panels:not(.wide) {{ max-width:130mm; }}
  summary {{ break-after:avoid; }}
  .tile, figure.chart, tr {{ break-inside:avoid; }}
  .table {{ overflow:visible; border-radius:0; }}
  .wide:is(h3, .table) {{ page:wide; }}
  .table.large {{ width:auto; }}
  .large table {{ width:100%; font-size:min(.85rem, 11rem / var(--columns)); }}
  .wide table {{ font-size:min(.78rem, 17rem / var(--columns)); }}
  .large td, .large th {{ padding:3pt; white-space:normal; overflow-wrap:break-word; hyphens:auto; }}
  .large th:first-child {{ min-width:9em; overflow-wrap:anywhere; }}
  th:first-child {{ position:static; }}
  details::details-content {{ content-visibility:visible; block-size:auto; }}
}}
"""

TEMPLATE = """{% macro show(table) %}
{% set columns = table.columns | length %}
{% set size = "large wide" if columns > 14 else "large" if columns > 8 else "" %}
<h3{% if size %} class="{{ size }}"{% endif %}>{{ table.caption }}</h3>
<div class="table {{ size }}" style="--columns:{{ columns }}" tabindex="0" role="region"
 aria-label="{{ table.caption }}"><table>
<thead><tr>{% for column in table.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{%- for cell in row -%}
{%- if loop.first -%}<th scope="row">{{ cell }}</th>
{%- elif loop.index0 in table.bars -%}<td class="bar" style="--w:{{ cell | share }}">{{ cell }}</td>
{%- else -%}<td>{{ cell }}</td>{%- endif -%}
{%- endfor -%}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<header><div>
<h1>{{ title }}</h1>
{% if lead %}
<p>{{ lead }}</p>
{% endif %}
{% if sections | length > 1 %}
<nav>
{% for section in sections %}
<a href="#section-{{ loop.index }}">{{ section.title }}</a>
{% endfor %}
</nav>
{% endif %}
</div></header>
<main>
{% for section in sections %}
<section id="section-{{ loop.index }}">
{% if sections | length > 1 or section.title != title %}
<h2>{{ section.title }}</h2>
{% endif %}
{% if section.lead %}
<p class="lead">{{ section.lead }}</p>
{% endif %}
{% if section.failures %}
<div class="failures" role="note"><b>Failed</b>
<dl>
{% for name, sentence in section.failures %}
<dt>{{ name }}</dt><dd>{{ sentence | public }}</dd>
{% endfor %}
</dl></div>
{% endif %}
{% if section.tiles %}
<div class="tiles">
{% for tile in section.tiles %}
<div class="tile"><span>{{ tile.name }}</span><b>{{ tile.value }}</b><span>{{ tile.note }}</span></div>
{% endfor %}
</div>
{% endif %}
{% for table in section.summary %}
{{ show(table) }}
{% endfor %}
{% if section.charts %}
<div class="charts">
{% for chart in section.charts %}
<figure class="chart"><img src="{{ chart | src }}" alt="{{ chart.alt }}"><figcaption>{{ chart.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% for table in section.tables %}
{{ show(table) }}
{% endfor %}
{% if section.cases %}
<h3>Cases</h3>
<p class="key">
{% if section.reference %}
<span><i style="border-top:4px solid var(--reference)"></i>{{ section.keys[0] }}</span>
{% endif %}
{% if section.keys[1] %}
<span><i style="border-top:3px solid var(--prediction)"></i>{{ section.keys[1] }}</span>
{% endif %}
<span>{{ section.cases_note }}</span></p>
{% for case in section.cases %}
<article class="case">
{% if case.view %}
<a class="look" href="{{ case.view }}">look through this case</a>
{% endif %}
<h4>{{ case.name }}</h4>
{% if case.flags %}
<p class="flags">{{ case.flags | join("; ") }}</p>
{% endif %}
<p class="facts">
{% for name, value in case.facts %}
<span>{{ name }} <b>{{ value }}</b></span>
{% endfor %}
</p>
{% if case.pictures %}
<div class="panels{{ ' wide' if case.wide else ' many' if case.pictures | length > 6 }}">
{% for picture in case.pictures %}
<figure><img decoding="async" src="{{ picture | src }}" alt="{{ case.name }}: {{ picture.alt }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
</article>
{% endfor %}
{% endif %}
{% set notes = {"How to read the numbers": section.definitions, "Settings and versions": section.details} %}
{% for name, entries in notes.items() %}
{% if entries %}
<details{% if sections | length == 1 %} open{% endif %}><summary>{{ name }}</summary>
<dl>
{% for term, text in entries %}
<dt>{{ term }}</dt><dd>{{ text | public }}</dd>
{% endfor %}
</dl></details>
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
