"""How every plot looks: size, type and colours. matplotlib lays the plots out and draws them.

A pixel of the page is a point of the figure.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from simulation.report.page import LIGHT
from simulation.report.words import ms, short

FILL: Final = 0.16
"""The opacity of an area under a line."""
DASHED: Final = (0, (3, 2))
WIDE: Final = 860
NARROW: Final = 350
"""Pixels: the width of a plot on a desktop and on a phone."""
MOMENT: Final = "moment"
"""The name of a line that marks a moment."""

# For the whole process: nothing else in it draws.
mpl.rcParams.update(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": LIGHT["muted"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.linewidth": 0.8,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.h_pad": 0.05,
        "figure.constrained_layout.w_pad": 0.04,
        "figure.dpi": 72,
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "grid.color": LIGHT["grid"],
        "legend.borderaxespad": 0.5,
        "legend.borderpad": 0,
        "legend.columnspacing": 1.3,
        "legend.frameon": False,
        "legend.handlelength": 1.1,
        "legend.handletextpad": 0.5,
        "lines.linewidth": 1.8,
        "svg.fonttype": "none",
        "text.color": LIGHT["ink"],
        "xtick.color": LIGHT["muted"],
        "xtick.labelsize": 10,
        "xtick.major.pad": 5,
        "xtick.major.size": 0,
        "ytick.color": LIGHT["muted"],
        "ytick.labelsize": 10,
        "ytick.major.size": 0,
    }
)


class Phase(NamedTuple):
    """A stretch of the load, in seconds from the start of the run."""

    name: str
    start_s: float
    end_s: float


class Course(NamedTuple):
    """What happened when: shaded and named on every axis of time."""

    phases: Sequence[Phase] = ()
    faults: Sequence[Phase] = ()
    """Each name begins with the number of the fault."""
    moments: Sequence[tuple[float, str]] = ()
    """Seconds from the start of the run and what happened then."""


class Canvas:
    """A figure of panels, one under the other, that share their x axis. A key names labelled artists."""

    def __init__(self, panels: Mapping[str, int]) -> None:
        """Make an empty panel for each title, of the given height in pixels."""
        self.heights = panels
        self._course = Course()
        self._names: list[Artist] = []
        self.figure = Figure()
        self.panels: list[Axes] = list(
            self.figure.subplots(
                len(panels), sharex=True, squeeze=False, height_ratios=list(panels.values())
            )[:, 0]
        )
        for axes in self.panels:
            axes.locator_params(axis="y", nbins=4)
            axes.yaxis.set_major_formatter(lambda value, _: short(value))

    def time_axis(self, end_s: float, course: Course, start_s: float = 0.0) -> None:
        """Let the x axis be seconds from the start of the run; shade phases and faults, mark moments.

        A y axis that is not logarithmic begins at 0.
        """
        self._course = course
        for axes in self.panels:
            axes.set_xlim(start_s, end_s)
            if axes.get_yscale() == "linear":
                axes.set_ylim(0, max(axes.dataLim.y1, 1) * (1.3 if course.faults or course.moments else 1.2))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
            for spans, colour in ((course.phases[1::2], "shade"), (course.faults, "fault")):
                for span in spans:
                    axes.axvspan(span.start_s, min(span.end_s, end_s), color=LIGHT[colour], lw=0, zorder=0)

    def log_axis(self, axis: str, below: float, above: float) -> None:
        """Let the "x" or the "y" axis of every panel be logarithmic, in milliseconds.

        It begins at the lowest value drawn over `below`, and ends at the highest times `above`.
        """
        drawn = Bbox.union([axes.dataLim for axes in self.panels])
        low, high = drawn.intervalx if axis == "x" else drawn.intervaly
        low_ms, high_ms = max(low, 1e-3) / below, high * above
        for axes in self.panels:
            axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low_ms, high_ms)})
            scaled = axes.xaxis if axis == "x" else axes.yaxis
            subs = (1.0, 3.0) if high_ms < 1e3 * low_ms else (1.0,)
            scaled.set_major_locator(LogLocator(subs=subs, numticks=24))
            scaled.set_major_formatter(lambda value, _: ms(value))
            scaled.set_minor_locator(NullLocator())

    def nines_axis(self) -> None:
        """Let the x axis be 1/(1−p), logarithmic: each nine of the percentile p is as long."""
        [axes] = self.panels
        most = max(axes.dataLim.x1, 10)
        nines = range(1, int(np.log10(most)) + 1)
        words = [f"{100 - 10 ** (2 - nine):.{max(nine - 2, 0)}f}%" for nine in nines]
        axes.set(xscale="log", xlim=(1, most))
        axes.set_xticks([1, 2, *(10**nine for nine in nines)], ["0", "50%", *words])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x")

    def lay_out(self, width: int) -> None:
        """Fit keys and names into a figure of `width` pixels."""
        height = 34.0
        for axes, (title, panel_height) in zip(self.panels, self.heights.items(), strict=True):
            handles, labels = axes.get_legend_handles_labels()
            for columns in range(max(len(labels), 1), 0, -1):
                legend = axes.legend(
                    handles, labels, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1),
                    title=title, title_fontproperties={"weight": "bold"}, alignment="left",
                )  # fmt: skip
                if legend.get_window_extent().width < width - 60:
                    break
            height += panel_height + float(legend.get_window_extent().height) + 14
        self.figure.set_size_inches(width / 72, height / 72)
        self.figure.set_layout_engine("constrained")
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        self._name_course(width)

    def _name_course(self, width: int) -> None:
        """Name phases, faults and moments at the top of the first panel, each in the first row with room."""
        for artist in self._names:
            artist.remove()
        self._names = []
        top = self.panels[0]
        taken: list[Bbox] = []
        for phase in self._course.phases:
            end = top.transData.transform((phase.end_s, 1))[0]
            self._name(phase.start_s, phase.name, "muted", taken, end)
        for fault in self._course.faults:
            # A phone has room for the number alone.
            words = fault.name if width == WIDE else fault.name.split()[0]
            self._name(fault.start_s, words, "ink", taken)
        for at_s, words in self._course.moments:
            drop = self._name(at_s, words, "ink", taken)
            for axes in self.panels:
                reach = 1 - drop / float(top.bbox.height) if axes is top else 1
                line = axes.axvline(
                    at_s, ymax=reach, color=LIGHT["muted"], lw=0.9, ls=DASHED, zorder=1, gid=MOMENT
                )
                self._names.append(line)

    def _name(
        self, at_s: float, words: str, colour: str, taken: list[Bbox], end: float | None = None
    ) -> float:
        """Write words at a moment, unless they reach beyond `end`; return how far below the top they are."""
        axes = self.panels[0]
        name = axes.annotate(
            words, (at_s, 1), (5, -2), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
            color=LIGHT[colour], size=10, va="top", in_layout=False,
        )  # fmt: skip
        if end is not None and name.get_window_extent().x1 > end:
            name.remove()
            return 0
        if name.get_window_extent().x1 > axes.bbox.x1:
            name.set(ha="right", x=-5)
        drop = 0
        while name.get_window_extent().padded(4, -1).count_overlaps(taken):
            drop += 14  # the height of a label
            name.set(y=-2 - drop)
        taken.append(name.get_window_extent())
        self._names.append(name)
        return drop

    def to_png(self, file: Path) -> None:
        """Write the figure on white, in twice its resolution. Raises OSError."""
        self.lay_out(WIDE)
        output = BytesIO()
        self.figure.savefig(output, dpi=144, facecolor="white", pil_kwargs={"compress_level": 1})
        # A plot has few colours: with a palette it takes a third of the room.
        Image.open(output).convert("RGB").quantize(128).save(file, optimize=True)


def note(axes: Axes, words: str, at: tuple[float, float], left: bool = False) -> None:
    """Write a few words at the right of a point of the data, or at its left."""
    axes.annotate(
        words, at, (-7 if left else 7, 0), textcoords="offset points",
        ha="right" if left else "left", va="center", in_layout=False,
    )  # fmt: skip
