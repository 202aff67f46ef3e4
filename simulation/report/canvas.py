"""How every plot looks: size, type, palette, phases. A drawing knows nothing of colours but their names.

One pixel of the page is one point of the figure. SVG colours become CSS variables, so that the page's light
and dark themes apply to the plots as well.
"""

import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

# Okabe and Ito's colour-blind safe palette, darkened until text in it reads on white.
LIGHT: Final = {
    "ink": "#1c2126",
    "muted": "#5d6771",
    "grid": "#d8dde2",
    "shade": "#eff2f4",
    "fault": "#f9dfd3",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "orange": "#b85c00",
    "green": "#00805d",
    "pink": "#a8417e",
    "sky": "#3a8fbf",
    "olive": "#7d7400",
    "heat1": "#d5e8f3",
    "heat2": "#a6cfe6",
    "heat3": "#70b3d6",
    "heat4": "#3891c2",
    "heat5": "#10669a",
    "heat6": "#073c60",
}
DARK: Final = {
    "ink": "#e6e9ec",
    "muted": "#98a3ad",
    "grid": "#343c44",
    "shade": "#1e242a",
    "fault": "#472a20",
    "paper": "#14181c",
    "blue": "#56b4e9",
    "orange": "#e69f00",
    "green": "#2fc296",
    "pink": "#e08fbd",
    "sky": "#8fcdf0",
    "olive": "#d9cf45",
    "heat1": "#1b3445",
    "heat2": "#1d4f6e",
    "heat3": "#23739e",
    "heat4": "#419fcf",
    "heat5": "#8ccbee",
    "heat6": "#e6f5ff",
}
HEAT: Final = ("heat1", "heat2", "heat3", "heat4", "heat5", "heat6")
"""From few to many: away from the paper, in either theme."""
SERIES: Final = ("blue", "orange", "green", "pink", "olive", "sky", "ink", "muted")

_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "axes.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "path.simplify": True,
}
_LEFT, _RIGHT, _BOTTOM, _KEY_ROW = 46, 16, 30, 20
LOW_PANEL: Final = 180
"""A panel lower than so many pixels has room for powers of ten alone."""


class Phase(NamedTuple):
    """A stretch of the load, in seconds from the run's start."""

    name: str
    start_s: float
    end_s: float


class Course(NamedTuple):
    """What happened when: shaded and named on every axis of time."""

    phases: Sequence[Phase] = ()
    faults: Sequence[Phase] = ()
    sold_out_s: float | None = None
    restocks: Sequence[tuple[float, str]] = ()
    """Moments at which a product was opened again, and their names."""


class Entry(NamedTuple):
    """A word of a panel's key, in the colour of what it names."""

    word: str
    colour: str


class Canvas:
    """A figure of panels, one under the other, that share their x axis."""

    def __init__(self, wide: bool, heights: Sequence[int], key_rows: int = 1) -> None:
        """`heights` of the panels in pixels for the wide form; the narrow one gives the key a row more."""
        self.wide = wide
        self.width = 860 if wide else 350
        self.size = 11.5 if wide else 10.5
        above = _KEY_ROW * (key_rows if wide else key_rows + 1) + 14
        total = sum(heights) + above * len(heights) + 14 * (len(heights) - 1) + _BOTTOM
        with mpl.rc_context(_STYLE):
            self.figure = Figure(figsize=(self.width / 72, total / 72), dpi=72)
            FigureCanvasAgg(self.figure)
            self.panels: list[Axes] = []
            self._labels: list[tuple[int, float, float]] = []
            top = 0.0
            for height in heights:
                top += above
                box = (_LEFT, total - top - height, self.width - _LEFT - _RIGHT, height)
                scaled = (box[0] / self.width, box[1] / total, box[2] / self.width, box[3] / total)
                self.panels.append(self._panel(scaled))
                top += height + 14

    def _panel(self, box: tuple[float, float, float, float]) -> Axes:
        axes = self.figure.add_axes(box, sharex=self.panels[0] if self.panels else None)
        axes.patch.set_alpha(0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LIGHT["muted"])
        axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=LIGHT["muted"], labelsize=self.size - 1, pad=5)
        axes.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        return axes

    def key(self, panel: int, title: str, entries: Sequence[Entry] = ()) -> None:
        """Name a panel and, in their colours, what it shows; words that don't fit go to the next row."""
        axes = self.panels[panel]
        words = [(title, "ink", "bold"), *((entry.word, entry.colour, "normal") for entry in entries)]
        box = axes.get_window_extent()
        rows: list[list[tuple[float, str, str, str]]] = [[]]
        x = 4.0
        for word, colour, weight in words:
            width = self._text_width(word, weight)
            if rows[-1] and x + width > self.width - 4:
                rows.append([])
                x = 4.0
            rows[-1].append((x, word, colour, weight))
            x += width + 14
        for number, row in enumerate(rows):
            y = box.y1 + 14 + _KEY_ROW * (len(rows) - 1 - number)
            for x, word, colour, weight in row:
                self.figure.text(
                    x / self.width,
                    y / self.figure.bbox.height,
                    word,
                    color=LIGHT[colour],
                    fontsize=self.size,
                    fontweight=weight,
                    va="bottom",
                )

    def scale(self, panel: int, least: str, most: str) -> None:
        """The steps of the heat colours at the right of a panel's key, with what the ends stand for."""
        box = self.panels[panel].get_window_extent()
        height = float(self.figure.bbox.height)
        x, y, step = self.width - _RIGHT - self._text_width(most), box.y1 + 14, 13
        self.figure.text(
            x / self.width, y / height, most, color=LIGHT["muted"], fontsize=self.size, va="bottom"
        )
        x -= 6
        for colour in reversed(HEAT):
            x -= step
            corner, size = (x / self.width, (y + 2) / height), (step / self.width, 11 / height)
            self.figure.add_artist(
                Rectangle(corner, *size, color=LIGHT[colour], lw=0, transform=self.figure.transFigure)
            )
        self.figure.text(
            (x - 6) / self.width, y / height, least,
            color=LIGHT["muted"], fontsize=self.size, va="bottom", ha="right",
        )  # fmt: skip

    def _label(self, at_s: float, text: str, colour: str) -> float:
        """A few words at a moment in the top panel, in the first row where neither they nor a line at that
        moment meet others; returns how far up the panel their row reaches, from 0 to 1."""
        size = self.size - 1.5
        axes = self.panels[0]
        low, high = axes.get_xlim()
        width = self._text_width(text, size=size)
        room = self.width - _LEFT - _RIGHT
        left = (at_s - low) / (high - low) * room + 5
        if left + width > room:
            left -= width + 10
        right = left + width + 8
        taken = {row for row, start, end in self._labels if start < right and left - 7 < end}
        row = next(row for row in range(len(taken) + 1) if row not in taken)
        self._labels.append((row, left, right))
        axes.annotate(
            text,
            (left / room, 1),
            (0, -2 - 14 * row),
            xycoords="axes fraction",
            textcoords="offset points",
            color=LIGHT[colour],
            fontsize=size,
            va="top",
        )
        return 1 - 14 * row / float(axes.bbox.height)

    def _text_width(self, word: str, weight: str = "normal", size: float | None = None) -> float:
        text = self.figure.text(0, 0, word, fontsize=size or self.size, fontweight=weight)
        width = float(text.get_window_extent().width)
        text.remove()
        return width

    def time_axis(
        self,
        end_s: float,
        phases: Sequence[Phase],
        faults: Sequence[Phase] = (),
        sold_out_s: float | None = None,
        restocks: Sequence[tuple[float, str]] = (),
    ) -> None:
        """Seconds from the run's start on the shared x axis; phases and faults lightly shaded and named, and
        the moments when everything was sold and when there was more as lines through every panel."""
        moments = [*restocks]
        if sold_out_s is not None:
            moments.insert(0, (sold_out_s, f"sold out, {sold_out_s:.2f} s"))
        bottom = self.panels[-1]
        for axes in self.panels:
            axes.set_xlim(0, end_s)
            axes.tick_params(labelbottom=axes is bottom)
            for number, phase in enumerate(phases):
                if number % 2:
                    axes.axvspan(phase.start_s, min(phase.end_s, end_s), color=LIGHT["shade"], lw=0, zorder=0)
            for fault in faults:
                axes.axvspan(fault.start_s, min(fault.end_s, end_s), color=LIGHT["fault"], lw=0, zorder=0.5)
        bottom.xaxis.set_major_locator(MaxNLocator(8 if self.wide else 4, integer=end_s > 8))
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        pixels = (self.width - _LEFT - _RIGHT) / end_s
        for phase in phases:
            room = (phase.end_s - phase.start_s) * pixels
            if self._text_width(phase.name, size=self.size - 1.5) + 10 <= room:
                self._label(phase.start_s, phase.name, "muted")
        for fault in faults:
            self._label(fault.start_s, fault.name, "ink")
        for at_s, text in moments:
            top = self._label(at_s, text, "ink")
            for axes in self.panels:
                high = top if axes is self.panels[0] else 1
                axes.axvline(at_s, ymax=high, color=LIGHT["muted"], lw=0.9, dashes=(3, 2), zorder=1)

    def log_axis(self, axis: str, low_ms: float, high_ms: float) -> None:
        """A logarithmic axis of milliseconds in every panel, labelled at 1, 2, 5, 10 and so on, or at powers
        of ten."""
        for axes in self.panels:
            if axis == "x":
                axes.set_xscale("log")
                axes.set_xlim(low_ms, high_ms)
            else:
                axes.set_yscale("log")
                axes.set_ylim(low_ms, high_ms)
            scaled = axes.xaxis if axis == "x" else axes.yaxis
            low_panel = float(axes.bbox.height) < LOW_PANEL
            few = high_ms / low_ms < (1e3 if self.wide or axis == "y" else 50) and not low_panel
            scaled.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=24))
            scaled.set_major_formatter(FuncFormatter(lambda value, _: milliseconds(value)))
            scaled.set_minor_locator(NullLocator())
            scaled.set_minor_formatter(NullFormatter())

    def nines_axis(self, most: float) -> None:
        """An x axis of 1/(1−p), logarithmic: every nine of the percentile p takes the same room."""
        axes = self.panels[0]
        axes.set_xscale("log")
        axes.set_xlim(1, most)
        places = [10.0**nines for nines in range(int(np.log10(most)) + 1)]
        words = ["0", "90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%", "99.99999%"]
        axes.set_xticks([1.0, 2.0, *places[1:]], ["0", "50%", *words[1 : len(places)]])
        axes.xaxis.set_minor_locator(NullLocator())

    def note(self, panel: int, text: str, at: tuple[float, float], colour: str, where: str) -> None:
        """A few words beside a point of the data: left, right or below."""
        shift = {"right": (7, 0), "left": (-7, 0), "below": (6, -12)}[where]
        self.panels[panel].annotate(
            text,
            at,
            shift,
            textcoords="offset points",
            color=LIGHT[colour],
            fontsize=self.size - 0.5,
            ha="right" if where == "left" else "left",
            va="center",
        )

    def to_svg(self, name: str) -> str:
        """The figure as an SVG element for a page that defines --ink, --blue and the other colours."""
        output = StringIO()
        with mpl.rc_context(_STYLE | {"svg.hashsalt": f"{name}-{self.width}"}):
            self.figure.savefig(
                output, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
            )
        svg = output.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
        svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
        # Names of parts repeat from figure to figure on one page, and nothing refers to them.
        svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
        # A tenth of a pixel is finer than any screen, and halves the page.
        svg = re.sub(r' d="[^"]*"', lambda path: _round_path(path[0]), svg)
        svg = re.sub(r"\s+", " ", svg)
        for colour, value in LIGHT.items():
            svg = svg.replace(value, f"var(--{colour})")
        return svg

    def to_png(self, file: Path) -> None:
        """The figure on white, in twice its resolution."""
        output = BytesIO()
        with mpl.rc_context(_STYLE):
            self.figure.savefig(output, dpi=144, facecolor="white", pil_kwargs={"compress_level": 1})
        # A plot has few colours: with a palette it takes a third of the room.
        Image.open(output).convert("RGB").quantize(128).save(file, optimize=True)


def _round_path(path: str) -> str:
    path = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([MLQCz])\s*", r"\1", path)


def short(value: float) -> str:
    """12,500 as 12.5k: for axes."""
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"


def milliseconds(value: float) -> str:
    """A duration in three digits, in the unit that suits it."""
    if value < 1:
        return f"{value * 1e3:.3g} µs"
    return f"{value:.3g} ms" if value < 1e3 else f"{value / 1e3:.3g} s"
