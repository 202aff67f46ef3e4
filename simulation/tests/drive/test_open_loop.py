"""The loop stays open: nothing that a server does holds back, loses or hides a request."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from simulation.drive.open_loop import OpenLoop
from simulation.drive.progress import SNAPSHOT_S, Tally, add_up, find_outcomes, make_histogram
from simulation.drive.schedule import NEVER, Polls
from simulation.model.address import Address
from simulation.model.outcome import ENDS, OUTCOMES
from simulation.scenario.patience import Patience, Reason
from simulation.scenario.schema import DriverOptions
from simulation.tests.http_server import ACCEPTED, NOT_STARTED, SOLD_OUT, Request, answer, http_server

pytestmark = pytest.mark.slow

MS = 1_000_000
SECOND = round(1 / SNAPSHOT_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def purchase(user: int) -> bytes:
    body = b'{"userId":%d,"productId":1}' % user
    return b"POST /purchase/buy HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def open_loop(
    port: int,
    intended_ms: Sequence[float],
    patience: Patience | None = None,
    pause_ns: Sequence[int] = (),
    **options: Any,
) -> OpenLoop:
    """Return a loop in which request i is that of user i."""
    return OpenLoop(
        [purchase(user) for user in range(len(intended_ms))],
        [round(each * MS) for each in intended_ms],
        [Address("127.0.0.1", port, "", "")],
        DriverOptions(**{"connections": 100, "timeout_ms": 20_000} | options),
        patience,
        pause_ns,
    )


async def run(port: int, intended_ms: list[float], *patient: Any, **options: Any) -> OpenLoop:
    load = open_loop(port, intended_ms, *patient, **options)
    await load.run(time.monotonic_ns())
    assert sorted(load.ended) == list(range(len(intended_ms) + len(load.added))), "each request ends once"
    return load


def check_times(load: OpenLoop) -> None:
    for op, intended in enumerate(load.intended_ns):
        if load.sent_ns[op] != NEVER:
            assert load.sent_ns[op] >= intended, "never early"
            if load.done_ns[op] != NEVER:
                assert load.done_ns[op] >= load.sent_ns[op]


async def accept(request: Request) -> None:
    request.send(ACCEPTED)


async def test_every_request_is_sent_once_and_answered() -> None:
    async with http_server(accept) as server:
        load = await run(server.port, [op / 10 for op in range(500)])
    assert sorted(server.users) == list(range(500))
    assert set(load.status) == {200}
    assert set(load.bodies.values()) == {b'{"status":"ACCEPTED","orderId":"order-1"}'}
    check_times(load)
    assert NEVER not in load.done_ns


async def test_connections_are_open_before_the_first_request_is_due() -> None:
    async def answer_once_all_are_open(request: Request) -> None:
        while server.connections < 100:  # noqa: ASYNC110 - no event tells of a connection without a request
            await asyncio.sleep(0.001)
        request.send(ACCEPTED)

    async with http_server(answer_once_all_are_open) as server:
        load = await run(server.port, [0.0], connections=100)
    assert set(load.status) == {200}
    assert server.connections == 100, "and no more than are allowed"


async def test_no_answer_is_waited_for_before_the_next_request_goes_out() -> None:
    everyone = asyncio.Event()

    async def hold_until_all_are_here(request: Request) -> None:
        if server.held == 50:
            everyone.set()
        await everyone.wait()
        request.send(SOLD_OUT)

    async with http_server(hold_until_all_are_here) as server:
        load = await run(server.port, [op * 2 for op in range(50)])
    assert set(load.status) == {429}
    assert load.bodies == {}, "a refusal's body is of no use"


async def test_a_burst_is_sent_in_order_over_the_connections_there_are() -> None:
    both = asyncio.Event()

    async def hold_two(request: Request) -> None:
        if server.held == 2:
            both.set()
        await both.wait()
        request.send(ACCEPTED)

    async with http_server(hold_two) as server:
        load = await run(server.port, [0.0] * 40, connections=2)
    assert server.most_held == 2
    assert server.connections == 2
    assert list(load.sent_ns) == sorted(load.sent_ns)
    assert list(load.intended_ns) == [0] * 40, "a request that waits keeps its intended start"
    assert set(load.status) == {200}


async def test_every_shopper_may_open_a_connection_of_its_own() -> None:
    async with http_server(accept) as server:
        load = await run(server.port, [op / 2 for op in range(100)], connection_per_request=True)
    assert server.connections == 100
    assert sorted(request.connection for request in server.requests) == list(range(1, 101))
    assert set(load.status) == {200}
    check_times(load)
    assert min(load.sent_ns[op] - load.intended_ns[op] for op in range(100)) > 0, "connecting takes its time"


async def test_shoppers_with_connections_of_their_own_wait_where_no_more_may_be_open() -> None:
    both = asyncio.Event()

    async def hold_two(request: Request) -> None:
        if server.held == 2:
            both.set()
        await both.wait()
        request.send(ACCEPTED)

    async with http_server(hold_two) as server:
        load = await run(server.port, [0.0] * 20, connections=2, connection_per_request=True)
    assert server.most_held == 2
    assert server.connections == 20
    assert set(load.status) == {200}


async def by_the_byte(request: Request) -> None:
    for byte in ACCEPTED:
        request.send(bytes([byte]))
        await asyncio.sleep(0)


async def chunked(request: Request) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = ACCEPTED.partition(b"\r\n\r\n")[2]
    request.send(head + b"%x\r\n" % len(body))
    await asyncio.sleep(0)
    request.send(body + b"\r\n0\r\n\r\n")


async def ended_by_close(request: Request) -> None:
    request.send(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.sleep(0)
    request.send(ACCEPTED.partition(b"\r\n\r\n")[2])
    request.writer.close()


async def asking_to_close(request: Request) -> None:
    request.send(answer(200, ACCEPTED.partition(b"\r\n\r\n")[2], "Connection: close"))


async def closed_without_a_word(request: Request) -> None:
    request.send(ACCEPTED)
    request.writer.close()


async def with_more_than_was_asked_for(request: Request) -> None:
    request.send(ACCEPTED + b"HTTP/1.1 500 Unasked\r\n")


@pytest.mark.parametrize(
    "react",
    [
        by_the_byte,
        chunked,
        ended_by_close,
        asking_to_close,
        closed_without_a_word,
        with_more_than_was_asked_for,
    ],
)
async def test_an_answer_counts_however_it_comes(react: Callable[[Request], Awaitable[None]]) -> None:
    async with http_server(react) as server:
        load = await run(server.port, [op * 20 for op in range(10)])
    assert list(load.status) == [200] * 10
    assert set(load.bodies.values()) == {b'{"status":"ACCEPTED","orderId":"order-1"}'}
    assert sorted(server.users) == list(range(10)), "and no request is sent twice"
    if react not in (by_the_byte, chunked):
        assert len({request.connection for request in server.requests}) == 10, (
            "no request goes where no response will come"
        )


async def reset(request: Request) -> None:
    request.reset()


async def close_in_the_middle(request: Request) -> None:
    request.send(ACCEPTED[:-3])
    request.writer.close()


async def nonsense(request: Request) -> None:
    request.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


@pytest.mark.parametrize("react", [reset, close_in_the_middle, nonsense])
async def test_a_lost_answer_is_unknown_and_the_others_are_not_touched(
    react: Callable[[Request], Awaitable[None]],
) -> None:
    async def lose_every_third(request: Request) -> None:
        await (react if request.user % 3 == 0 else accept)(request)

    async with http_server(lose_every_third) as server:
        load = await run(server.port, [op * 5 for op in range(30)])
    assert NEVER not in load.sent_ns
    for op in range(30):
        lost = op % 3 == 0
        assert (load.done_ns[op] == NEVER) == lost
        assert load.status[op] == (0 if lost else 200)
    assert sorted(server.users) == list(range(30)), "a request that may have been served is not sent again"


async def test_a_server_that_stalls_runs_into_the_timeout_and_its_late_answer_is_not_counted() -> None:
    late: list[Request] = []

    async def stall_the_first_ten(request: Request) -> None:
        if request.user < 10:
            late.append(request)
            return
        if request.user == 39:
            for each in late:
                each.send(ACCEPTED)
        request.send(SOLD_OUT)

    async with http_server(stall_the_first_ten) as server:
        load = await run(server.port, [0.0] * 10 + [2_000.0] * 30, timeout_ms=500)
    assert list(load.done_ns[:10]) == [NEVER] * 10
    assert NEVER not in load.sent_ns
    assert list(load.status) == [0] * 10 + [429] * 30


async def test_a_request_that_waits_for_a_connection_longer_than_the_timeout_is_given_up() -> None:
    never = asyncio.Event()

    async def stall(request: Request) -> None:
        await never.wait()

    async with http_server(stall) as server:
        load = await run(server.port, [0.0] * 50, connections=1, timeout_ms=200)
    assert set(load.done_ns) == {NEVER}
    assert load.sent_ns[0] != NEVER
    assert load.sent_ns[-1] == NEVER
    assert len(server.requests) == sum(sent != NEVER for sent in load.sent_ns)


async def test_a_refused_request_was_never_sent_and_says_when_it_was_refused() -> None:
    load = await run(free_port(), [op * 2 for op in range(50)])
    assert set(load.sent_ns) == {NEVER}
    assert NEVER not in load.done_ns
    assert set(load.status) == {0}


async def test_a_server_that_goes_away_loses_what_it_holds_and_refuses_the_rest() -> None:
    gone: list[asyncio.Task[None]] = []
    never = asyncio.Event()

    async def go_away_at_the_tenth(request: Request) -> None:
        if request.user < 9:
            request.send(ACCEPTED)
            return
        if not gone:
            gone.append(asyncio.create_task(server.stop()))
        await never.wait()

    async with http_server(go_away_at_the_tenth) as server:
        load = await run(
            server.port, [op * 20 for op in range(9)] + [200.0] + [1_000.0 + op for op in range(20)]
        )
        await asyncio.gather(*gone)
    assert list(load.status[:9]) == [200] * 9
    assert load.sent_ns[9] != NEVER
    assert load.done_ns[9] == NEVER
    assert set(load.sent_ns[10:]) == {NEVER}


async def test_a_server_that_comes_back_is_used_again() -> None:
    port = free_port()
    load = open_loop(port, [0, 1_000], connections=9)
    driving = asyncio.create_task(load.run(time.monotonic_ns()))
    while not load.ended:  # noqa: ASYNC110 - no event tells of a single request
        await asyncio.sleep(0.001)
    async with http_server(accept, port):
        await driving
    assert load.sent_ns[0] == NEVER
    assert load.status[1] == 200


async def test_an_unrequested_response_closes_the_connection_and_counts_for_nothing() -> None:
    async def answer_and_complain(request: Request) -> None:
        request.send(ACCEPTED)
        asyncio.get_running_loop().call_later(0.02, request.send, answer(408, b"too slow"))

    async with http_server(answer_and_complain) as server:
        load = await run(server.port, [op * 400 for op in range(5)])
    assert list(load.status) == [200] * 5
    assert len({request.connection for request in server.requests}) == 5


def patient(
    *after: Reason,
    most: int = 3,
    pause_ms: float = 20,
    clients: int = 100,
    never: frozenset[int] = frozenset(),
) -> tuple[Patience, list[int]]:
    """Let all clients but some retry after these outcomes."""
    pauses = [0 if op in never else round(pause_ms * MS) for op in range(clients)]
    return Patience(after=after, most=most), pauses


def retries_of(load: OpenLoop) -> dict[int, list[int]]:
    """Return the retries of each client, in order."""
    found: dict[int, list[int]] = {}
    for number, (first, attempt) in enumerate(load.added):
        found.setdefault(first, []).append(load.planned + number)
        assert attempt == len(found[first])
    return found


async def test_a_client_retries_after_its_pause_until_it_is_content() -> None:
    async def refuse_twice(request: Request) -> None:
        tries = server.users.count(request.user)
        request.send(NOT_STARTED if tries <= 2 else ACCEPTED)

    async with http_server(refuse_twice) as server:
        load = await run(server.port, [op * 2 for op in range(30)], *patient("NOT_STARTED"))
    retries = retries_of(load)
    assert sorted(retries) == list(range(30))
    for first, (second, third) in retries.items():
        assert load.intended_ns[second] == load.done_ns[first] + 20 * MS
        assert load.intended_ns[third] == load.done_ns[second] + 20 * MS
        assert [load.status[op] for op in (first, second, third)] == [403, 403, 200]
        assert load.requests[third] is load.requests[first], "the same bytes, and so the same key"
    check_times(load)


async def test_clients_without_a_reason_or_patience_left_do_not_retry() -> None:
    async def answer_by_user(request: Request) -> None:
        request.send(SOLD_OUT if request.user < 10 else NOT_STARTED)

    some = patient("NOT_STARTED", most=2, never=frozenset(range(20, 30)))
    async with http_server(answer_by_user) as server:
        load = await run(server.port, [op * 2 for op in range(30)], *some)
    retries = retries_of(load)
    assert sorted(retries) == list(range(10, 20)), "SOLD_OUT is final, and some clients never retry"
    assert {len(tries) for tries in retries.values()} == {2}


async def unavailable(request: Request) -> None:
    request.send(answer(503, b'{"code":"OVERLOADED"}'))


async def outcome_unknown(request: Request) -> None:
    request.send(answer(503, b'{"code":"OUTCOME_UNKNOWN"}'))


async def silence(request: Request) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("react", "outcome"),
    [
        (reset, "UNKNOWN"),
        (silence, "UNKNOWN"),
        (outcome_unknown, "UNKNOWN"),
        (unavailable, "UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("minded", ["UNKNOWN", "UNAVAILABLE"])
async def test_clients_retry_after_the_outcomes_that_are_named(
    react: Callable[[Request], Awaitable[None]], outcome: str, minded: Reason
) -> None:
    async with http_server(react) as server:
        load = await run(server.port, [0.0] * 5, *patient(minded, most=2), timeout_ms=1_000)
    assert len(load.added) == (10 if minded == outcome else 0)
    assert len(server.requests) == len(load.requests)
    check_times(load)


async def test_clients_whose_connection_is_refused_retry() -> None:
    load = await run(free_port(), [0.0] * 5, *patient("UNAVAILABLE", most=2))
    assert len(load.added) == 10
    assert set(load.sent_ns) == {NEVER}
    assert NEVER not in load.done_ns


async def test_retries_that_are_due_wait_for_a_connection_in_the_order_of_their_starts() -> None:
    open_doors = asyncio.Event()

    async def hold_the_planned_crowd(request: Request) -> None:
        if request.number < 10:
            request.send(NOT_STARTED)
        elif request.number == 10:
            await open_doors.wait()
            request.send(ACCEPTED)
        else:
            request.send(ACCEPTED)

    async with http_server(hold_the_planned_crowd) as server:
        load = open_loop(
            server.port,
            [0] * 10 + [200 + op / MS for op in range(20)],
            *patient("NOT_STARTED", pause_ms=300),
            connections=1,
        )
        driving = asyncio.create_task(load.run(time.monotonic_ns()))
        while sum(op >= load.planned for op in load.due[0]) < 10:  # noqa: ASYNC110 - no event tells of a single request
            await asyncio.sleep(0.001)
        open_doors.set()
        await driving
    sent = sorted(range(len(load.requests)), key=load.sent_ns.__getitem__)
    assert sent == sorted(sent, key=load.intended_ns.__getitem__)
    assert sent[-10:] == list(range(30, 40))


async def test_an_empty_plan_is_driven_at_once() -> None:
    await run(free_port(), [])


async def test_a_load_that_is_stopped_ends_with_the_requests_in_flight_and_nobody_comes_again() -> None:
    held: list[Request] = []

    async def hold(request: Request) -> None:
        held.append(request)
        if len(held) == 2:
            load.stop()
            held[0].send(NOT_STARTED)
            held[1].send(ACCEPTED)

    async with http_server(hold) as server:
        load = open_loop(
            server.port, [0, 0, 3_600_000, 3_600_000], *patient("NOT_STARTED", pause_ms=1), connections=4
        )
        address = load.doors[0].address
        load.polls = Polls([MS] * 4, 5, lambda order_id, first, _: address.encode_order(order_id, first))
        await load.run(time.monotonic_ns())
    assert sorted(load.ended) == [0, 1]
    assert load.withdrawn == 2
    assert load.added == []


async def test_a_refusal_in_other_words_than_its_status_has_is_unknown() -> None:
    answers = [SOLD_OUT, answer(429, b"status: SOLD_OUT"), answer(429, b'{"status":"ACCEPTED"}')]

    async def refuse(request: Request) -> None:
        request.send(answers[request.user])

    async with http_server(refuse) as server:
        load = await run(server.port, [0] * 3)
    assert [load.outcome_of(op) for op in range(3)] == ["SOLD_OUT", "UNKNOWN", "UNKNOWN"]
    found = find_outcomes(load, np.arange(3))
    assert [OUTCOMES[place] for place in found] == ["SOLD_OUT", "UNKNOWN", "UNKNOWN"]


async def test_the_record_says_why_each_request_ended() -> None:
    answers = {
        0: answer(429, b""),
        1: b"",
        2: None,
        3: b"no HTTP at all\r\n\r\n",
        4: b"hello",
        5: b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\ncut off",
    }

    async def behave(request: Request) -> None:
        said = answers[request.user]
        if said is not None:
            request.send(said)
            request.writer.close()

    async with http_server(behave) as server:
        load = await run(server.port, [0] * 6, timeout_ms=2_000)
    words = [ENDS[end] for end in load.ends]
    assert words == ["answered", "reset", "timeout", "garbage", "garbage", "reset"]

    load = await run(free_port(), [0], timeout_ms=100)
    assert [ENDS[end] for end in load.ends] == ["refused"]

    async def never(request: Request) -> None:
        """Say nothing."""

    async with http_server(never) as server:
        load = await run(server.port, [0, 0], timeout_ms=100, connections=1)
    assert sorted(ENDS[end] for end in load.ends) == ["never sent", "timeout"]


async def test_the_live_percentiles_charge_what_was_not_answered_and_a_snapshot_fits_a_pipe() -> None:
    async def first_half(request: Request) -> None:
        if request.user < 5:
            request.send(SOLD_OUT)

    async with http_server(first_half) as server:
        load = open_loop(server.port, [0] * 10, timeout_ms=300)
        tally = Tally(load)
        await load.run(time.monotonic_ns())
    snapshot = add_up([tally.read()] * 2)
    assert sum(snapshot.outcomes) == 20
    recent = HdrHistogram.decode(snapshot.recent)
    assert recent.get_total_count() == 20
    # Each answer counts with its own time, which is the machine's affair, and silence with the whole timeout.
    took_us = sorted(
        (done if ENDS[end] == "answered" else max(sent, 0) + 300 * MS) // 1_000
        for sent, done, end in zip(load.sent_ns, load.done_ns, load.ends, strict=True)
    )
    for rank, expected in enumerate(took_us, 1):
        found = recent.get_value_at_percentile(100 * (rank - 0.5) / 10)
        assert found == pytest.approx(expected, rel=0.01)
    assert took_us[5] >= 300_000, "five of ten had no answer"
    for _ in range(SECOND):
        last = tally.read()
    assert HdrHistogram.decode(last.recent).get_total_count() == 0, "they ended more than a second ago"
    spread = np.geomspace(1, 600_000_000, 50_000).astype(np.int64)
    assert len(make_histogram(spread).encode()) < 3_500  # of the 4,096 bytes that a pipe takes whole
