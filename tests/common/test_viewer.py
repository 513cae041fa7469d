"""The page on which a case can be scrolled through: what is in it, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest
from browser import chromium, needs_chromium
from PIL import Image

from common import viewer
from common.page import CaseView, Section, Table, write_html_report
from common.viewer import write_view

SHAPE = (40, 50, 30)
# stored as LPS, 2 x 1 x 1.5 mm: RAS is both flipped back
AFFINE = np.array([[-2.0, 0, 0, 39], [0, -1.0, 0, 24], [0, 0, 1.5, -20], [0, 0, 0, 1]])
LESION = (slice(4, 8), slice(10, 16), slice(20, 23))  # in RAS: x 32 to 35, y 34 to 39, z 20 to 22
ONE = {1: "lesion"}


def volumes(scores=None, reference=True, shape=SHAPE):
    """Image, affine, prediction, reference and scores of a head that fills the volume."""
    image = np.full(shape, 50, dtype=np.float32)
    image[LESION] = 100
    mask = np.zeros(shape, dtype=np.int32)
    mask[LESION] = 1
    return image, AFFINE, mask, np.roll(mask, 1, axis=1) if reference else None, scores


def content_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1])


def values_of(content, number):
    """The voxels of a layer, undone as the page does it: compressed differences of neighbors, x fastest."""
    packed = content["layers"][number]["data"]
    steps = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8)
    return np.cumsum(steps, dtype=np.uint8).reshape(content["shape"], order="F")


@pytest.fixture
def page(tmp_path):
    return tmp_path / "views" / "case.html"


def test_a_view_has_the_volumes_in_ras_with_millimeters(page):
    scores = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_view(page, "case", volumes(scores), ONE)
    content = content_of(page)
    assert [layer["name"] for layer in content["layers"]] == ["scan", "map", "reference", "prediction"]
    assert (content["shape"], content["spacing"]) == ([40, 50, 30], [2, 1, 1.5])
    found = np.argwhere(values_of(content, 3))
    assert (found.min(axis=0).tolist(), found.max(axis=0).tolist()) == ([32, 34, 20], [35, 39, 22])
    # the last voxel of a stored axis is the first in RAS: x from 39 - 2 * 39, y from 24 - 49
    assert content["affine"] == [[2, 0, 0, -39], [0, 1, 0, -25], [0, 0, 1.5, -20]]
    layer = content["layers"][1]
    shown = layer["low"] + values_of(content, 1) * layer["step"]
    np.testing.assert_allclose(shown, scores[::-1, ::-1], atol=0.5 / 31 + 1e-6)
    assert content["start"] == [32, 33, 20]  # the first of the slices with most of both masks


def test_what_is_dark_around_the_head_is_left_out(page):
    image, *others = volumes()
    padded = [np.pad(v, 20) if isinstance(v, np.ndarray) and v.ndim == 3 else v for v in (image, *others)]
    write_view(page, "case", tuple(padded), ONE)
    # a margin of 4 mm stays: two voxels, four, and three of 1.5 mm
    assert content_of(page)["shape"] == [44, 58, 36]


def test_a_large_volume_is_halved_and_keeps_its_smallest_lesion(page, monkeypatch):
    monkeypatch.setattr(viewer, "MOST_VOXELS", 16_000)
    image, affine, mask, *_ = volumes()
    mask[:] = 0
    mask[17, 21, 11] = 1
    write_view(page, "case", (image, affine, mask, None, None), ONE)
    content = content_of(page)
    # 60 000 voxels, by the smallest edge: y by 2 (30 000 left), z by 2 (15 000)
    assert (content["shape"], content["spacing"]) == ([40, 25, 15], [2, 2, 3])
    assert np.argwhere(values_of(content, 1)).tolist() == [[39 - 17, (49 - 21) // 2, 11 // 2]]
    # the middle of the first block is half a voxel further
    assert content["affine"] == [[2, 0, 0, -39], [0, 2, 0, -24.5], [0, 0, 3, -19.25]]


def test_a_noisy_scan_gets_fewer_shades_instead_of_a_large_file(page, monkeypatch):
    image, *others = volumes()
    image[:] = np.random.default_rng(0).uniform(1, 100, SHAPE)
    monkeypatch.setattr(viewer, "MOST_CHARACTERS", 60_000)
    write_view(page, "case", (image, *others), ONE)
    (scan, *_), shades = content_of(page)["layers"], values_of(content_of(page), 0).max()
    assert shades == scan["steps"] < 255
    np.testing.assert_allclose(scan["steps"] * scan["step"], 100, rtol=0.01)


def test_several_labels_have_a_color_and_a_name_each(page):
    image, affine, mask, *_ = volumes()
    mask[0, 0, 0] = 400  # a value that one byte cannot hold
    write_view(page, "case", (image, affine, mask, None, None), {1: "GM", 400: "far <&>"})
    content = content_of(page)
    assert content["layers"][1]["names"] == ["GM", "far <&>"]
    assert len(set(content["layers"][1]["colors"])) == 2
    assert values_of(content, 1)[-1, -1, 0] == 2
    assert "far &lt;&amp;&gt;" in page.read_text(encoding="utf-8")


def test_masks_of_several_methods_are_layers_with_a_color_each(page):
    image, affine, mask, reference, _ = volumes()
    much = np.ones_like(mask)
    write_view(page, "case", (image, affine, {"a <b>": much, "c": mask}, reference, None), ONE)
    content = content_of(page)
    assert [layer["name"] for layer in content["layers"]] == ["scan", "reference", "a <b>", "c"]
    assert len({layer["colors"][0] for layer in content["layers"][1:]}) == 3
    assert [layer["opacity"] for layer in content["layers"][1:]] == [1, 1, 1]
    assert (values_of(content, 2).sum(), values_of(content, 3).sum()) == (much.sum(), mask.sum())
    assert content["start"] == [32, 33, 20]  # the reference's, whatever a method finds
    assert "a &lt;b&gt;: lesion" in page.read_text(encoding="utf-8")
    tissues = {"a": mask + 1, "c": much}
    write_view(page, "case", (image, affine, tissues, None, None), {1: "GM", 2: "WM"})
    layers = content_of(page)["layers"]
    assert [layer["opacity"] for layer in layers[1:]] == [0.5, 0]  # areas hide each other: one at a time


def test_text_is_escaped_and_equal_input_gives_equal_bytes(page):
    options = {"facts": [("<u>", "</script>")], "links": [("<i>", 'a"b.html')]}
    write_view(page, "<script>x</script>", volumes(), {1: "</script><b>"}, **options)
    text, data = page.read_text(encoding="utf-8"), page.read_bytes()
    assert text.count("<script") == text.count("</script>") == 2
    assert not re.search(r"<u>|<i>|<b></|a\"b", text)
    write_view(page, "<script>x</script>", volumes(), {1: "</script><b>"}, **options)
    assert page.read_bytes() == data


# in a browser

INK = "(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;" + (
    "for (let i = 0; i < d.length; i += 4) if (%s) n++; return n; })(document.querySelectorAll('canvas')[%d])"
)
DRAWN = "d[i] > 60"
ORANGE = "d[i] > 180 && d[i + 1] > 110 && d[i + 1] < 200 && d[i + 2] < 60"
SLICES = "[...document.querySelectorAll('canvas')].map(c => +c.dataset.slice)"
SHOWN = "document.getElementById('here').textContent"


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path) as browser:
        yield browser


@needs_chromium
def test_planes_are_drawn_and_keys_and_wheel_move_them(page, browser):
    image, affine, mask, _, scores = volumes(np.full(SHAPE, 0.25, np.float32))
    write_view(page, "case", (image, affine, mask, mask, scores), ONE)
    browser.requested()
    browser.open(page)
    browser.wait("document.querySelector('canvas').dataset.slice")
    z, y, x = browser.run(f"return {SLICES}")
    assert [x, y, z] == [32, 34, 20]
    for number in range(3):
        assert browser.run(f"return {INK % (DRAWN, number)}") > 10_000
        assert browser.run(f"return {INK % (ORANGE, number)}") > 50
    assert "map 0.258 · reference lesion · prediction lesion" in browser.run(f"return {SHOWN}")

    browser.press("ArrowUp")
    browser.wait(f"{SLICES}[0] === {z + 1}")
    browser.press("ArrowRight")  # to the coronal plane
    browser.press("ArrowUp")
    browser.wait(f"{SLICES}[1] === {y + 1}")
    left, top = browser.run(
        "const b = document.querySelectorAll('canvas')[2].getBoundingClientRect();return [b.x, b.y]"
    )
    browser.turn_wheel(int(left) + 30, int(top) + 30, 120)
    browser.wait(f"{SLICES}[2] === {x - 1}")
    assert browser.run(f"return {SLICES}") == [z + 1, y + 1, x - 1]

    browser.press("3")  # map, reference, prediction; the lesion is in the axial slice still
    browser.wait(f"{INK % (ORANGE, 0)} === 0")
    browser.press("3")
    browser.wait(f"{INK % (ORANGE, 0)} > 50")
    browser.press("m")
    browser.wait(f"{INK % (ORANGE, 0)} === 0")
    assert browser.errors() == []
    assert browser.requested() == {page.as_uri()}


@needs_chromium
def test_contrast_and_opacity_change_what_is_seen(page, browser):
    write_view(page, "case", volumes(), ONE)
    browser.open(page)
    browser.wait("document.querySelector('canvas').dataset.slice")
    set_to = "const e = document.querySelectorAll('input[type=range]')[arguments[0]]; e.value = arguments[1];" + (
        "e.dispatchEvent(new Event('input'))"
    )
    before = browser.run(f"return {INK % (ORANGE, 0)}")
    browser.run(set_to, 3, 0)  # prediction
    browser.wait(f"{INK % (ORANGE, 0)} < {before / 10}")
    browser.run(set_to, 0, 60)  # black: what is 50 of 100 becomes dark
    bright = browser.run(f"return {INK % (DRAWN, 0)}")
    browser.wait(f"{INK % (DRAWN, 0)} < {bright / 2} || {INK % (DRAWN, 0)} < 20000")
    browser.press("o")
    assert browser.run("return document.getElementById('outlines').checked") is False


@needs_chromium
def test_a_code_that_is_not_of_the_page_does_not_run(page, browser):
    write_view(page, "case", volumes(), ONE)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title = 'other'</script></body>"), encoding="utf-8")
    browser.open(page)
    browser.wait("document.querySelector('canvas').dataset.slice")
    assert browser.run("return document.title") == "case"
    assert any("Content Security Policy" in line for line in browser.errors())


@needs_chromium
def test_no_column_is_lost_on_paper_and_dark_is_dark(tmp_path, browser):
    columns = [f"column {number}" for number in range(18)]
    rows = [["sub-001_ses-01_FLAIR", "touches the border; many tiny components", *["123.456"] * 16]]
    section = Section("page", tables=[Table("wide", columns, rows)], cases=[CaseView("a", [])])
    file = write_html_report(tmp_path / "page.html", "page", [section])
    browser.open(file)
    browser.ask("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"media": "print"})
    paper = round((297 - 24) / 25.4 * 96)  # landscape, less the margins
    browser.ask("POST", "/window/rect", width=paper, height=800)
    inside = "const t = document.querySelector('.table'); return [t.scrollWidth <= t.clientWidth + 1, t.clientWidth]"
    fits, width = browser.run(inside)
    assert fits
    assert width <= paper
    browser.ask("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"media": ""})
    browser.dark()
    browser.screenshot(tmp_path / "dark.png")
    shown = np.asarray(Image.open(tmp_path / "dark.png").convert("L"))
    assert np.median(shown) < 60
