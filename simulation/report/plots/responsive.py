"""A canvas as a part of a page: drawn once, and read in any width.

What matplotlib draws is stretched to the width of the page, and lines keep their thickness. Words and points
stand at shares of that width. Where a phone has less room than a desktop, each has words of its own.
"""

import re
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree as Xml

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

from simulation.report.page import LIGHT
from simulation.report.plots.canvas import MOMENT, NARROW, WIDE, Canvas

_SVG: Final = "{http://www.w3.org/2000/svg}"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"
_ANCHORS: Final = {"left": "start", "right": "end", "center": "middle"}
LARGER: Final = 1.1
"""The words of a page are so much larger than those of a figure (pages/style.html)."""
_BELOW_PX: Final = {"top": 9.0, "center": 3.5}
"""From the place of a text to its baseline."""


class Key(NamedTuple):
    """What a line, an area or a point means."""

    words: str
    shape: str
    """line, dashed, area or dot."""
    colour: str
    opacity: float


class Label(NamedTuple):
    """Words at a place of a panel, in percent from the left and the top, and so many pixels from there."""

    left: float
    top: float
    right_px: float
    down_px: float
    words: str
    anchor: str
    colour: str


class Upright(NamedTuple):
    """A dashed line at a moment, in percent from the left, that begins so far below the top."""

    left: float
    top: float


Mark = Label | Upright


class Dot(NamedTuple):
    """A point of the data, in percent from the left and the top."""

    left: float
    top: float
    radius_px: float
    style: str


class Panel(NamedTuple):
    """One of the panels of a plot."""

    title: str
    height_px: int
    keys: Sequence[Key]
    marks: Sequence[tuple[Mark, str]]
    """Each with its class in pages/style.html: wide-only, narrow, or none for both."""
    dots: Sequence[Dot]
    box: str
    lines: str
    """What is stretched: SVG elements, and the box around them."""


class Plot(NamedTuple):
    """A plot as pages/parts.html writes it."""

    gutter_px: int
    """At the left, for the words of the y axis."""
    panels: Sequence[Panel]


def make_plot(canvas: Canvas) -> Plot:
    """Return the plot of a canvas, for a page that defines --ink, --blue and the other colours."""
    canvas.lay_out(NARROW)
    phone = [list(_list_marks(axes)) for axes in canvas.panels]
    canvas.lay_out(WIDE)
    root = _render(canvas.figure)
    panels = []
    for number, (axes, (title, height)) in enumerate(zip(canvas.panels, canvas.heights.items(), strict=True)):
        [group] = (each for each in root.iter() if each.get("id") == f"axes_{number + 1}")
        box = axes.bbox
        top = canvas.figure.bbox.height - box.y1
        dots = list(_take_dots(group, box.x0, top, box.width, box.height))
        marks = list(_list_marks(axes))
        shown = [(mark, "" if mark in phone[number] else "wide-only") for mark in marks]
        shown += [(mark, "narrow") for mark in phone[number] if mark not in marks]
        keys = [_describe(*each) for each in zip(*axes.get_legend_handles_labels(), strict=True)]
        view = f"{box.x0:.1f} {top:.1f} {box.width:.1f} {box.height:.1f}"
        panels.append(Panel(title, height, keys, shown, dots, view, _write(group)))
    return Plot(round(LARGER * canvas.panels[0].bbox.x0), panels)


def to_svg(figure: Figure) -> str:
    """Return a figure without words as an SVG element, for a page that defines the colours."""
    return _write(_render(figure))


def _list_marks(axes: Axes) -> Iterator[Mark]:
    """Return what stands beside and on the lines of a panel that is laid out: words, and moments."""
    for text in axes.texts:
        if isinstance(text, Annotation):
            place = axes.transData if text.xycoords == "data" else text.xycoords
            right, up = text.xyann
            yield _label(axes, text, place.transform(text.xy), (right, -up))  # type: ignore[union-attr]
    for line in axes.lines:
        if line.get_gid() == MOMENT:
            at_s, reach = np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[1]
            yield Upright(_locate(axes, axes.transData.transform((at_s, 1)))[0], _percent(1 - reach))
    box = axes.bbox
    for scaled in (axes.xaxis, axes.yaxis):
        for tick in scaled.get_major_ticks():
            at, text = tick.get_loc(), tick.label1
            if scaled is axes.xaxis:
                spot, beside = (axes.transData.transform((at, axes.get_ylim()[0]))[0], box.y0), (0, 8)
            else:
                spot, beside = (box.x0, axes.transData.transform((axes.get_xlim()[0], at))[1]), (-7, 0)
            inside = box.padded(0.5).contains(*spot)
            if inside and text.get_visible() and text.get_text():
                yield _label(axes, text, spot, beside)


def _label(axes: Axes, text: Text, spot: Any, beside: tuple[float, float]) -> Label:
    below = _BELOW_PX.get(text.get_verticalalignment(), 3.5)
    return Label(
        *_locate(axes, spot), beside[0], beside[1] + below, text.get_text(),
        _ANCHORS[text.get_horizontalalignment()], _paint(to_hex(text.get_color())),
    )  # fmt: skip


def _locate(axes: Axes, spot: Any) -> tuple[float, float]:
    left, up = axes.transAxes.inverted().transform(spot)
    return _percent(left), _percent(1 - up)


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def _describe(artist: Any, words: str) -> Key:
    if isinstance(artist, Line2D):
        dashed = artist.get_linestyle() not in ("-", "None")
        shape = "dot" if artist.get_linestyle() == "None" else "dashed" if dashed else "line"
        return Key(words, shape, _paint(to_hex(artist.get_color())), 1)
    if isinstance(artist, Patch) and not artist.get_fill():
        return Key(words, "line", _paint(to_hex(artist.get_edgecolor())), 1)
    colour: Any = artist.get_facecolor()
    colour = colour[0] if isinstance(artist, Collection) else colour
    return Key(words, "area", _paint(to_hex(colour)), round(float(colour[3]), 2))


def _render(figure: Figure) -> Xml.Element:
    """Return what matplotlib draws of a figure as SVG, without words and frames of its own."""
    output = StringIO()
    with mpl.rc_context({"svg.hashsalt": "flashgrid"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(output, format="svg", transparent=True, metadata=nothing)
    root = Xml.fromstring(output.getvalue())  # noqa: S314 - our own text
    paths = {f"#{each.get('id')}": each for each in root.iter(f"{_SVG}path") if each.get("id")}
    for parent in list(root.iter()):
        for child in list(parent):
            name = child.get("id", "").rpartition("_")[0]
            if name in ("text", "legend") or child.tag == f"{_SVG}defs":
                parent.remove(child)
            elif child.tag == f"{_SVG}use":
                # An area is drawn by reference, at a place; so is each point of a line.
                child.tag = f"{_SVG}path"
                child.set("d", paths[child.attrib.pop(_LINK)].get("d", ""))
                child.set("at", f"{child.attrib.pop('x', 0)} {child.attrib.pop('y', 0)}")
                child.set("transform", f"translate({child.get('at')})")
    return root


def _take_dots(group: Xml.Element, left: float, top: float, width: float, height: float) -> Iterator[Dot]:
    """Take the points of lines out of a panel, which would become ovals, and return them."""
    for part in group.iter():
        if part.get("id", "").startswith("line2d"):
            for points in list(part):
                for point in [each for each in points if each.get("at")]:
                    points.remove(point)
                    radius = float(point.get("d", "").split()[2])
                    x, y = map(float, point.get("at", "").split())
                    place = _percent((x - left) / width), _percent((y - top) / height)
                    if radius:  # a mark of an axis has none
                        yield Dot(*place, radius, _paint(point.get("style", "")))


def _write(element: Xml.Element) -> str:
    """Return an element as text, without names, and as fine as a screen."""
    for each in element.iter():
        each.tag = each.tag.removeprefix(_SVG)
        for name in ("id", "at", "clip-path"):
            each.attrib.pop(name, None)
    svg = Xml.tostring(element, encoding="unicode")
    # matplotlib can't be told: a tenth of a pixel is finer than any screen.
    return _paint(re.sub(r"(\.\d)\d+", r"\1", svg))


def _paint(svg: str) -> str:
    """Return it in the colours of the page."""
    for name, value in LIGHT.items():
        svg = svg.replace(value, f"var(--{name})")
    return svg
