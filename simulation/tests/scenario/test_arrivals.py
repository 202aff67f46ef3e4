"""The arrival curve is the one that was asked for, and the same seed draws the same arrivals."""

import gzip
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulation.errors import ScenarioError
from simulation.scenario.arrivals import (
    MOST_STEPS,
    Constant,
    Decay,
    Floats,
    Linear,
    Nanoseconds,
    Segment,
    Sine,
    Trace,
    draw_arrivals,
    expected_requests,
    peak_rps,
)
from simulation.scenario.loading import read_scenario, scale_scenario
from simulation.scenario.traces import FORMS, read_trace
from simulation.tests.scenario.test_scenario import minimal

rates = st.floats(0.5, 500)
lengths = st.floats(0.5, 20)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    seconds, low, high = draw(lengths), draw(rates), draw(rates)
    spacing: Literal["poisson", "even"] = draw(st.sampled_from(["poisson", "even"]))
    shape = draw(st.sampled_from([Constant, Linear, Sine, Decay, Trace]))
    if shape is Constant:
        return Constant(seconds=seconds, rate_rps=low, spacing=spacing)
    if shape is Linear:
        rise = draw(st.sampled_from([low, 0.0]))
        return Linear(seconds=seconds, rate_rps=rise, to_rps=high, spacing=spacing)
    if shape is Sine:
        period = draw(st.none() | st.floats(0.5, 30))
        return Sine(seconds=seconds, rate_rps=low, to_rps=high, period_s=period, spacing=spacing)
    if shape is Trace:
        size = draw(st.sampled_from([1, 2, 5, 8]))
        counts = draw(st.lists(st.floats(1, 10), min_size=size, max_size=size))
        return Trace(seconds=seconds, rate_rps=high, counts=counts, spacing=spacing)
    return Decay(seconds=seconds, rate_rps=low + high, to_rps=low, spacing=spacing)


def draw(curve: list[Segment], seed: int = 1) -> Nanoseconds:
    return draw_arrivals(curve, np.random.SeedSequence(seed))


def rate_at(segment: Segment, seconds: Floats) -> Floats:
    """The rates as the scenario's author thinks of them."""
    share = seconds / segment.seconds
    match segment:
        case Linear():
            return segment.rate_rps + share * (segment.to_rps - segment.rate_rps)
        case Decay():
            return segment.rate_rps * (segment.to_rps / segment.rate_rps) ** share
        case Sine():
            wave = (1 - np.cos(2 * np.pi * seconds / (segment.period_s or segment.seconds))) / 2
            return segment.rate_rps + wave * (segment.to_rps - segment.rate_rps)
        case Trace():
            steps = np.minimum((share * len(segment.counts)).astype(int), len(segment.counts) - 1)
            counts: Floats = np.array(segment.counts)[steps]
            return counts / max(segment.counts) * segment.rate_rps
        case _:
            return np.full_like(seconds, segment.rate_rps)


@given(segments())
def test_the_curve_has_the_rate_that_was_asked_for(segment: Segment) -> None:
    seconds = np.linspace(0, segment.seconds, 20_001)
    rate = rate_at(segment, (seconds[1:] + seconds[:-1]) / 2)
    steps = rate * np.diff(seconds)
    requests = np.concatenate([[0.0], np.cumsum(steps)])
    assert segment.expected() == pytest.approx(requests[-1], rel=1e-5)
    places = np.arange(0, 20_001, 1_000)
    assert segment.invert(requests[places]) == pytest.approx(seconds[places], abs=segment.seconds * 1e-3)
    assert peak_rps([segment]) >= rate.max() - 1e-6


@given(st.lists(segments(), min_size=1, max_size=4), st.integers(0, 2**63 - 1))
def test_arrivals_are_sorted_inside_the_curve_and_drawn_again_from_the_same_seed(
    curve: list[Segment], seed: int
) -> None:
    arrivals = draw(curve, seed)
    assert arrivals.dtype == np.int64
    assert np.all(np.diff(arrivals) >= 0)
    assert np.all(arrivals >= 0)
    assert np.all(arrivals <= sum(segment.seconds for segment in curve) * 1e9 + 1)
    assert np.array_equal(arrivals, draw(curve, seed))


@given(st.lists(segments(), min_size=1, max_size=4), st.integers(0, 2**32))
def test_as_many_arrive_as_are_expected(curve: list[Segment], seed: int) -> None:
    expected = expected_requests(curve)
    poisson = sum(segment.expected() for segment in curve if segment.spacing == "poisson")
    # Even segments are exact but for the rounding at their ends; six standard deviations for the others.
    assert abs(len(draw(curve, seed)) - expected) <= len(curve) + 6 * poisson**0.5 + 10 * (poisson > 0)


def test_even_arrivals_lie_in_the_middle_of_their_intervals() -> None:
    arrivals = draw([Constant(seconds=2, rate_rps=2, spacing="even")])
    assert arrivals.tolist() == [250_000_000, 750_000_000, 1_250_000_000, 1_750_000_000]


def test_no_even_arrival_is_lost_between_segments() -> None:
    curve: list[Segment] = [Constant(seconds=0.3, rate_rps=1, spacing="even") for _ in range(10)]
    assert len(draw(curve)) == 3


def test_poisson_gaps_are_as_spread_as_they_are_long() -> None:
    gaps = np.diff(draw([Constant(seconds=100, rate_rps=1_000)])) / 1e9
    assert gaps.mean() == pytest.approx(0.001, rel=0.05)
    assert gaps.std() == pytest.approx(0.001, rel=0.05)


def test_a_change_to_one_segment_leaves_the_others_as_they_are() -> None:
    base, tail = Constant(seconds=1, rate_rps=100), Linear(seconds=1, rate_rps=100, to_rps=10)
    one = draw([base, Constant(seconds=1, rate_rps=100), tail])
    other = draw([base, Constant(seconds=1, rate_rps=999), tail])
    second = 1_000_000_000
    assert np.array_equal(one[one < second], other[other < second])
    assert np.array_equal(one[one > 2 * second], other[other > 2 * second])
    assert len(one) != len(other)


def test_segments_don_t_repeat_each_other() -> None:
    base = Constant(seconds=1, rate_rps=100)
    arrivals = draw([base, base])
    first, second = arrivals[arrivals < 10**9], arrivals[arrivals >= 10**9] - 10**9
    assert not np.array_equal(first, second)


def test_different_seeds_draw_different_arrivals() -> None:
    curve: list[Segment] = [Constant(seconds=1, rate_rps=100)]
    assert not np.array_equal(draw(curve, 1), draw(curve, 2))


def test_a_segment_in_which_nobody_comes_is_only_time() -> None:
    quiet = Constant(seconds=3, rate_rps=0)
    assert draw([quiet, Constant(seconds=1, rate_rps=10)]).min() >= 3_000_000_000
    assert len(draw([quiet])) == 0


@given(segments(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_scaled_segment_keeps_its_shape(segment: Segment, rate: float, time: float) -> None:
    assume(min(segment.expected(), segment.expected() * rate * time) > 1.01)
    before = read_scenario(minimal(arrivals=[msgspec.to_builtins(segment)]))
    scaled = scale_scenario(before, rate, time).arrivals
    assert expected_requests(scaled) == pytest.approx(segment.expected() * rate * time)
    assert peak_rps(scaled) == pytest.approx(peak_rps([segment]) * rate)
    assert scaled[0].seconds == pytest.approx(segment.seconds * time)


def test_the_peak_is_the_highest_rate_of_all_segments() -> None:
    assert peak_rps([Constant(seconds=1, rate_rps=5), Linear(seconds=1, rate_rps=1, to_rps=7)]) == 7


@pytest.mark.parametrize(("rate", "to"), [(10, 10), (10, 20), (10, 0)])
def test_a_decay_falls_to_a_rate_above_nothing(rate: float, to: float) -> None:
    with pytest.raises(ValueError, match="to_rps"):
        Decay(seconds=1, rate_rps=rate, to_rps=to)


def test_a_trace_is_played_as_it_was_recorded() -> None:
    trace = Trace(seconds=4, rate_rps=3, counts=[1, 0, 3, 2], spacing="even")
    seconds = draw([trace]) / 1e9
    assert np.histogram(seconds, np.arange(5))[0].tolist() == [1, 0, 3, 2]
    assert peak_rps([trace]) == 3


def test_a_silent_trace_is_none() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Trace(seconds=1, rate_rps=1, counts=[0.0])


LOG = (
    '10.0.0.1 - - [29/Nov/2026:08:00:01 +0000] "POST /purchase/buy HTTP/1.1" 200 71\n'
    '10.0.0.2 - anna [29/Nov/2026:08:00:01 +0000] "POST /purchase/buy HTTP/1.1" 429 40\n'
    '::1 - - [29/Nov/2026:09:00:04 +0100] "POST /purchase/buy HTTP/1.1" 429 40 "https://shop/" "M"\n'
)
OTHER_LOGS = (
    '2001:db8::7 - - [29/Nov/2026:13:30:01 +0530] "POST /buy HTTP/1.1" 200 7 "-" "M \\"[x]\\" \u2028\x0c"\n'
    'fe80::1%eth0 - o neill [29/Nov/2026:04:30:01 -0330] "-" 408 0 "-" "-"\n'
    'shop.example:443 10.0.0.2 - - [30/Nov/2026:00:00:04 +1600] "POST /buy HTTP/2.0" 429 40 "" "[M]" 0.003\n'
)


@pytest.mark.parametrize(
    ("text", "counts", "step_s"),
    [
        ("2026-11-29T08:00:00Z\n2026-11-29T09:00:00.25+01:00\n2026-11-29T08:00:00.29Z\n", [1, 0, 2], 0.1),
        ("1795939200\n1795939200.05\n1795939200.31\n", [2, 0, 0, 1], 0.1),
        ("1795939200000\n1795939200050\n1795939200310\n", [2, 0, 0, 1], 0.1),
        ("time\n0.3\n0\n0.05\n", [2, 0, 0, 1], 0.1),
        ("time,user,product\n0.0,7,1\n0.2,8,1\n", [1, 0, 1], 0.1),
        ("2026-11-29 08:00:00,7,1\n2026-11-29 08:00:00.2,8,1\n", [1, 0, 1], 0.1),
        ("time;user;product\n0.0;u-7;1\n\n0.2;u-8;1\n", [1, 0, 1], 0.1),
        (LOG, [2, 0, 0, 1], 1.0),
        (OTHER_LOGS, [2, 0, 0, 1], 1.0),
        (LOG.replace("\n", "\n\n"), [2, 0, 0, 1], 1.0),
    ],
)
def test_times_rows_and_logs_are_counted(
    tmp_path: Path, text: str, counts: list[float], step_s: float
) -> None:
    file = tmp_path / "crowd.log"
    file.write_text(text, encoding="utf-8")
    assert read_trace(file)[:2] == (counts, step_s)
    packed = gzip.compress(text.encode())
    file.write_bytes(packed)
    assert read_trace(file)[:2] == (counts, step_s)
    file.write_bytes(packed[:-9])
    with pytest.raises(ScenarioError, match=r"crowd\.log: is no whole gzip file"):
        read_trace(file)


def test_times_of_years_are_counted_in_longer_steps(tmp_path: Path) -> None:
    file = tmp_path / "crowd.csv"
    file.write_text("2020-01-01\n2026-01-01\n")
    counts, step_s, *_ = read_trace(file)
    assert (sum(counts), len(counts) <= MOST_STEPS) == (2, True)
    assert step_s * (len(counts) - 1) == pytest.approx(2_192 * 86_400, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "counts", "step_s"),
    [
        ("1\n0\n2.5\n", [1, 0, 2.5], 1),
        ("requests\r\n1\r\n2\r\n\r\n", [1, 2], 1),
        ('\ufeff"count"\n"7"\n', [7], 0.5),
        ("20000000\n5\n", [20_000_000, 5], 86_400),
        ("1.200000000000000000e+01\n5.000000000000000000e-01\n", [12, 0.5], 1),
        ("1e3\n+5\n1_000\n", [1_000, 5, 1_000], 1),
        ("requests\n5e8\n 7 \n", [5e8, 7], 86_400),
        ("requests\n999999999\n12000000\n", [999_999_999, 12_000_000], 86_400),
    ],
)
def test_counts_are_read_with_a_header_or_without(
    tmp_path: Path, text: str, counts: list[float], step_s: float
) -> None:
    file = tmp_path / "crowd.csv"
    for encoding in ("utf-8", "utf-16"):
        file.write_text(text.removeprefix("\ufeff") if encoding == "utf-16" else text, encoding=encoding)
        assert read_trace(file, step_s) == (counts, step_s, (), ())


@pytest.mark.parametrize(
    ("text", "users", "products"),
    [
        ("user,time,product\n8,0.2,1\n7,0.0,2\n", [7, 8], [2, 1]),
        (
            'Item ID;Note;User-Id;Timestamp\n2;"a;b";7;2026-11-29T08:00:00,5\n1;;8;2026-11-29T08:00:00.7\n',
            [7, 8],
            [2, 1],
        ),
        ("0.2\tu-8\t1\n0.0\tu-7\t2\n0.3\tu-8\t1\n", [1, 2, 2], [2, 1, 1]),
        ("0.2,0,1\n0.0,7,2\n", [1, 2], [2, 1]),
        ('"1795939200","9","1"\n1795939100,"8",2\n', [8, 9], [2, 1]),
    ],
)
def test_rows_say_who_buys_what_in_any_order_of_columns(
    tmp_path: Path, text: str, users: list[int], products: list[int]
) -> None:
    file = tmp_path / "crowd.csv"
    file.write_text(text)
    assert read_trace(file, on_sale=[1, 2])[2:] == (users, products)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 0: ends without a count above 0"),
        ("requests\n0\n0\n", "line 3: ends without a count above 0"),
        ("1\n\n3\n", "line 2: must be a count, got ''"),
        ("1\n2,5\n", "line 2: must be a count, got '2,5'"),
        ("t,count\n1,2\n", f"line 1: must be {FORMS}, got 't,count'"),
        (
            "time,product,email\n1,2,x\n",
            "line 1: must name the columns time, user and product, got 'time,product,email'",
        ),
        (
            "wann;wer;was\n1;2;1\n",
            "line 1: must name the columns time, user and product, got 'wann;wer;was'",
        ),
        ("user,time,product\n", "line 1: ends without a row of user, time and product"),
        (
            "user,time,product\n7,0.1,1\n0.2,7,1,5\n",
            "line 3: must be a row of user, time and product, got '0.2,7,1,5'",
        ),
        ("0.1,7,1\n0.2,7,3\n", "line 2: product 3 is not on sale; there are 1, 2"),
        ("0.1,7,shoe\n", "line 1: the product must be the number of one on sale, got 'shoe'"),
        ("count\nmany\n", "line 2: must be a count, got 'many'"),
        ("1\n-1\n", "line 2: must be a count from 0 to 10,000,000, got -1"),
        ("20000000\n", "line 1: must be a count from 0 to 10,000,000, got 20000000"),
        ("1\nnan\n", "line 2: must be a count from 0 to 10,000,000, got nan"),
        ("2026-11-29T08:00:00Z\nsoon\n", "line 2: must be a time, got 'soon'"),
        (
            "2026-11-29T08:00:00Z,7,1\n2026-11-29T08:00:00Z,7\n",
            "line 2: must be a row of time, user and product, got '2026-11-29T08:00:00Z,7'",
        ),
        (LOG + "GET / HTTP/1.1\n", "line 4: must be a line of an access log, got 'GET / HTTP/1.1'"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "crowd.csv"
    file.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_trace(file, on_sale=[2, 1])
    assert str(caught.value) == f"{file}: {said}"


def test_a_trace_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"gone\.csv: No such file"):
        read_trace(tmp_path / "gone.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match=r"bytes\.csv: is no text"):
        read_trace(tmp_path / "bytes.csv")
