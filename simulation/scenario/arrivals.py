"""Arrivals: when each request is meant to start, as a pure function of segments and a seed.

A segment's rate r(t) is in requests a second, t in seconds from the segment's start. Its integral Λ(t) is the
number of requests expected by t. Both spacings place points on the axis of Λ and map them to time by Λ⁻¹:

    poisson   a Poisson process of rate 1, which becomes one of rate r(t) (Çinlar, Introduction to
              Stochastic Processes, chapter 4): independent arrivals, as a crowd of strangers makes them.
    even      the points k + 1/2, counted over the whole curve, so that no request is lost between segments.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

Floats = npt.NDArray[np.float64]
Nanoseconds = npt.NDArray[np.int64]

MAX_RPS = 1e7
MOST_STEPS = 7 * 86_400
"""Most steps of a trace."""
Rate = Annotated[float, Meta(ge=0, le=MAX_RPS)]
Length = Annotated[float, Meta(gt=0, le=7 * 86_400)]
Count = Annotated[float, Meta(ge=0, le=MAX_RPS * 7 * 86_400)]
"""Requests of a step, which lasts a week at most."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="shape"):
    """A part of the arrival curve that starts at `rate_rps` and lasts `seconds`; `name` is its phase.

    Each shape has `expected`: Λ(seconds), the requests that the whole segment is expected to make; and
    `invert`: Λ⁻¹, the seconds from the segment's start at which so many requests are expected.
    """

    name: str = ""
    seconds: Length
    rate_rps: Rate
    spacing: Literal["poisson", "even"] = "poisson"


class Constant(Shape, frozen=True, kw_only=True, tag="constant"):
    """r(t) = rate."""

    def expected(self) -> float:
        """Return Λ = rate · seconds."""
        return self.rate_rps * self.seconds

    def invert(self, count: Floats) -> Floats:
        """Return t = count / rate."""
        return count / self.rate_rps


class _Slope(Shape, frozen=True, kw_only=True):
    to_rps: Rate


class Linear(_Slope, frozen=True, kw_only=True, tag="linear"):
    """r(t) = rate + a·t with a = (to − rate) / seconds."""

    def expected(self) -> float:
        """Return Λ = (rate + to) / 2 · seconds."""
        return (self.rate_rps + self.to_rps) / 2 * self.seconds

    def invert(self, count: Floats) -> Floats:
        """Return t = 2·count / (rate + √(rate² + 2·a·count)), the form that does not cancel near a = 0."""
        slope = (self.to_rps - self.rate_rps) / self.seconds
        root = np.sqrt(np.maximum(self.rate_rps**2 + 2 * slope * count, 0.0))
        with np.errstate(invalid="ignore"):  # 0 / 0 where a curve that rises from nothing starts
            return np.nan_to_num(2 * count / (self.rate_rps + root))


class Decay(_Slope, frozen=True, kw_only=True, tag="decay"):
    """r(t) = rate · e^(−k·t) with k = ln(rate / to) / seconds: it falls by the same share each second."""

    def __post_init__(self) -> None:
        if not 0 < self.to_rps < self.rate_rps:
            raise ValueError("a decay needs 0 < to_rps < rate_rps")

    def expected(self) -> float:
        """Return Λ = (rate − to) / k."""
        return (self.rate_rps - self.to_rps) / self._fading()

    def invert(self, count: Floats) -> Floats:
        """Return t = −ln(1 − k·count / rate) / k."""
        fading = self._fading()
        return -np.log1p(-fading * count / self.rate_rps) / fading

    def _fading(self) -> float:
        return float(np.log(self.rate_rps / self.to_rps)) / self.seconds


class Sine(_Slope, frozen=True, kw_only=True, tag="sine"):
    """r(t) = (rate + to)/2 + (rate − to)/2 · cos(2π·t / period): in each period from rate to `to` and back.

    Without `period_s` the segment is one period.
    """

    period_s: Length | None = None

    def expected(self) -> float:
        """Return Λ(seconds)."""
        return float(self._integral(np.float64(self.seconds)))

    def invert(self, count: Floats) -> Floats:
        """Return t by linear interpolation in a table of Λ, which has no inverse in closed form."""
        seconds = np.linspace(0.0, self.seconds, 65_537)
        return np.interp(count, np.asarray(self._integral(seconds)), seconds)

    def _integral(self, seconds: Floats | np.float64) -> Floats | np.float64:
        """Return Λ(t) = (rate + to)/2 · t + (rate − to)/2 · period/2π · sin(2π·t / period)."""
        turns = 2 * np.pi / (self.period_s or self.seconds)
        half_sum, half_gap = (self.rate_rps + self.to_rps) / 2, (self.rate_rps - self.to_rps) / 2
        return half_sum * seconds + half_gap / turns * np.sin(turns * seconds)


class Trace(Shape, frozen=True, kw_only=True, tag="trace"):
    """r(t) as recorded: the `counts` of equal steps of `seconds`, scaled so that the highest is `rate`."""

    counts: Annotated[list[Count], Meta(min_length=1, max_length=MOST_STEPS)]
    file: str = ""
    """The file that the counts come from (simulation.scenario.traces)."""
    step_s: Length | None = None
    """Length of a step in that file; None: a second."""
    users: list[Annotated[int, Meta(ge=1, le=2**63 - 1)]] = []
    products: list[Annotated[int, Meta(ge=1, le=2**63 - 1)]] = []
    """Who buys what: user and product of each recorded request, the earliest first. Empty: as the population
    says."""

    def __post_init__(self) -> None:
        if not any(self.counts):
            raise ValueError("a trace needs a count above 0")
        if len(self.users) != len(self.products):
            raise ValueError("a trace needs as many users as products")

    def expected(self) -> float:
        """Return Λ = rate · seconds · mean / highest of the counts."""
        return self.rate_rps * self.seconds * sum(self.counts) / len(self.counts) / max(self.counts)

    def invert(self, count: Floats) -> Floats:
        """Return t by linear interpolation: within a step Λ is a line."""
        passed = np.concatenate([[0.0], np.cumsum(self.counts)])
        edges_s = np.linspace(0.0, self.seconds, len(passed))
        return np.interp(count, passed / passed[-1] * self.expected(), edges_s)

    def find_buyers(self, requests: int) -> tuple[Nanoseconds, Nanoseconds]:
        """Return users and products of so many requests, spread over those recorded: of twice as many each is
        there twice."""
        rows = ((np.arange(requests) + 0.5) * len(self.users) / max(requests, 1)).astype(np.int64)
        return np.array(self.users, np.int64)[rows], np.array(self.products, np.int64)[rows]


Segment = Constant | Linear | Sine | Decay | Trace


def expected_requests(segments: Sequence[Segment]) -> float:
    """Return the requests that the whole curve is expected to make."""
    return sum(segment.expected() for segment in segments)


def peak_rps(segments: Sequence[Segment]) -> float:
    """Return the highest rate of the curve, in requests a second."""
    return max(max(segment.rate_rps, getattr(segment, "to_rps", 0.0)) for segment in segments)


def draw_arrivals(segments: Sequence[Segment], seed: np.random.SeedSequence) -> Nanoseconds:
    """Return the intended starts, sorted, in ns from the run's start."""
    return np.concatenate([np.empty(0, np.int64), *draw_segments(segments, seed)])


def draw_segments(segments: Sequence[Segment], seed: np.random.SeedSequence) -> list[Nanoseconds]:
    """Return the intended starts in each segment, sorted, in ns from the run's start.

    Each segment draws from its own stream, so that a change to one segment leaves the others as they are.
    """
    parts: list[Nanoseconds] = []
    start_s, before = 0.0, 0.0
    for segment, stream in zip(segments, seed.spawn(len(segments)), strict=True):
        expected = segment.expected()
        if segment.spacing == "even":
            first = np.ceil(before - 0.5)
            count = np.arange(first, np.ceil(before + expected - 0.5), dtype=np.float64) + 0.5 - before
        else:
            random = np.random.Generator(np.random.PCG64(stream))
            count = np.sort(random.uniform(0.0, expected, random.poisson(expected)))
        # Rounding must not carry an arrival over an edge of its segment.
        seconds = np.clip(segment.invert(count), 0.0, segment.seconds) if len(count) else count
        parts.append(np.rint((start_s + seconds) * 1e9).astype(np.int64))
        start_s += segment.seconds
        before += expected
    return parts
