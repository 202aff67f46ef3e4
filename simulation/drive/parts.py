"""A plan dealt to processes: the files that they read, and those that they write when they have sent it."""

import gc
import resource
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.drive.open_loop import OpenLoop
from simulation.drive.pacer import IS_EXACT
from simulation.drive.plan import Plan
from simulation.drive.progress import find_outcomes
from simulation.drive.schedule import Polls
from simulation.errors import DriverError
from simulation.model.address import Address
from simulation.model.history import BUY, DTYPES, ORDER, STOCK, make_history
from simulation.model.outcome import result_of
from simulation.scenario.patience import Patience
from simulation.scenario.reads import Reads
from simulation.scenario.schema import DriverOptions

SPARSE: Final = {"order_id": np.str_, "order_status": np.str_} | dict.fromkeys(
    ("initial", "remaining", "sold"), np.int64
)
"""The columns of a history that few of its requests have, as they are written down."""
WORDS: Final = [*DTYPES["outcome"].categories]

Loop = TypeVar("Loop", bound=OpenLoop)


class Job(msgspec.Struct, frozen=True):
    """What one process sends; `plan` and `result` are .npz files."""

    plan: str
    result: str
    addresses: list[Address]
    """Of each front door."""
    options: DriverOptions
    patience: Patience | None = None
    reads: Reads | None = None
    exact: bool = IS_EXACT
    """Whether its starts are exact (simulation.drive.pacer)."""
    client: str = "own"
    """What sends it in a process of Locust: "own", or "fasthttp", Locust's client."""


def deal(
    plan: Plan, addresses: list[Address], options: DriverOptions, folder: Path, exact: bool = IS_EXACT
) -> list[Job]:
    """Deal the plan to processes, in turn, so that each gets the whole curve at a share of its rate."""
    count = min(options.processes, max(len(plan), 1))
    jobs = []
    for number in range(count):
        ops = slice(number, None, count)
        plan_file, result_file = (str(folder / f"{kind}-{number}.npz") for kind in ("plan", "result"))
        np.savez(
            plan_file,
            intended_ns=plan.intended_ns[ops],
            kind=plan.kind[ops],
            user_id=plan.user_id[ops],
            product_id=plan.product_id[ops],
            key=np.array([key or "" for key in plan.key[ops]], np.str_),
            token=np.array([""] * len(plan.key[ops]) if plan.token is None else plan.token[ops], np.str_),
            pause_ns=np.empty(0) if plan.pause_ns is None else plan.pause_ns[ops],
            poll_ns=np.empty(0) if plan.poll_ns is None else plan.poll_ns[ops],
        )
        jobs.append(Job(plan_file, result_file, addresses, options, plan.patience, plan.reads, exact))
    return jobs


def prepare_loop(kind: type[Loop], job: Job, plan_file: str | IO[bytes]) -> Loop:
    """Return a loop of this kind that sends the part of a job, and make the process ready to run it.

    Raises DriverError where the machine does not allow as many connections.
    """
    _allow_files(job.options.connections)
    with np.load(plan_file) as plan:
        kinds, intended_ns, pause_ns, poll_ns, users, products, keys, tokens = (
            plan[name].tolist()
            for name in (
                "kind",
                "intended_ns",
                "pause_ns",
                "poll_ns",
                "user_id",
                "product_id",
                "key",
                "token",
            )
        )
    addresses = job.addresses

    def encode(op: int, door: int) -> bytes:
        address = addresses[door]
        if kinds[op] == STOCK:
            return address.encode_stock(products[op])
        return address.encode_buy(users[op], products[op], keys[op], tokens[op])

    def encode_look(order_id: str, first: int, door: int) -> bytes:
        return addresses[door].encode_order(order_id, users[first], tokens[first])

    requests = [encode(op, op % len(addresses)) for op in range(len(kinds))]
    polls = Polls(poll_ns, job.reads.most, encode_look) if job.reads else None
    looks = {op: products[op] for op, number in enumerate(kinds) if number == STOCK}
    again = encode if len(addresses) > 1 else None
    loop = kind(requests, intended_ns, addresses, job.options, job.patience, pause_ns, looks, polls, again)
    # A collection of garbage would stop the pacer for longer the larger the plan is.
    gc.collect()
    gc.freeze()
    gc.disable()
    return loop


def _allow_files(connections: int) -> None:
    needed = connections + 100  # a process has some more files open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    except ValueError:
        raise DriverError(
            f"{connections} connections need {needed} open files; the limit (ulimit -Hn) is {hard}"
        ) from None


def save_result(loop: OpenLoop, file: str | IO[bytes], unsure_ns: int = 0) -> None:
    """Write what became of every request that was made: of the planned ones, and behind them of those that
    were added; the clock of their times may be wrong by `unsure_ns`.

    `first` is the place in the plan of the request itself or of the one that it follows. What few requests
    have (`order_id` and what was read) is beside the places of those requests: `order_id_at` and so on.
    """
    ops = np.sort(np.array(loop.ended, np.int64))
    tries = [*((op, 0) for op in range(loop.planned)), *loop.added]
    first, attempt = np.array(tries, np.int64).reshape(-1, 2)[ops].T
    status, kind = (np.frombuffer(*of)[ops] for of in ((loop.status, np.int16), (loop.kind, np.uint8)))
    sent_ns = np.frombuffer(loop.sent_ns, np.int64)[ops]
    outcome = np.empty(len(ops), np.int8)
    outcome[kind == BUY] = find_outcomes(loop, ops[kind == BUY])
    parts: dict[str, dict[int, Any]] = {name: {} for name in SPARSE}
    contract = loop.contract
    told = np.isin(status, [*contract.accepting])
    for place in np.flatnonzero(told | (kind != BUY)).tolist():
        op = int(ops[place])
        answer, head = (int(status[place]), loop.bodies.get(op, b"")), loop.heads.get(op, b"")
        if kind[place] == BUY:
            name, order_id = contract.classify(*answer, head)
            if order_id is not None:
                parts["order_id"][place] = order_id
        elif kind[place] == ORDER:
            order_id = parts["order_id"][place] = loop.order_ids[op]
            name, word = contract.classify_order(*answer, order_id, head)
            if word is not None:
                parts["order_status"][place] = word
        else:
            name, stock = contract.classify_stock(*answer, loop.looks[op], head)
            if stock is not None:
                shown = msgspec.structs.asdict(stock)
                for each in [each for each, count in shown.items() if count is not None]:
                    parts[each][place] = shown[each]
        # As with a purchase: what was never sent was certainly not answered.
        outcome[place] = WORDS.index(name if sent_ns[place] >= 0 else "UNAVAILABLE")
    columns: dict[str, Any] = {f"{name}_at": np.array([*part], np.int64) for name, part in parts.items()}
    columns |= {name: np.array([*parts[name].values()], dtype) for name, dtype in SPARSE.items()}
    np.savez(
        file,
        first=first,
        attempt=attempt,
        intended_ns=np.array(loop.intended_ns, np.int64)[ops],
        sent_ns=sent_ns,
        done_ns=np.frombuffer(loop.done_ns, np.int64)[ops],
        status=status,
        kind=kind,
        outcome=outcome,
        end=np.frombuffer(loop.ends, np.int8)[ops],
        unsure_ns=np.full(len(ops), unsure_ns),
        door=(first + attempt) % len(loop.doors),
        **columns,
    )


def merge_results(plan: Plan, jobs: list[Job]) -> pd.DataFrame:
    """Return the history of a plan that was dealt to jobs, which are done."""
    results = [_read_result(number, jobs) for number in range(len(jobs))]
    saw = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    first, outcome = saw["first_op"], pd.Categorical.from_codes(saw["outcome"], dtype=DTYPES["outcome"])
    kind = pd.Categorical.from_codes(saw["kind"], dtype=DTYPES["kind"])
    # Requests that were added are numbered after the planned ones, in the order of their intended starts.
    op = first.copy()
    added = np.flatnonzero(saw["attempt"])
    op[added[np.argsort(saw["intended_ns"][added], kind="stable")]] = len(plan) + np.arange(len(added))
    return make_history(
        saw
        | {
            "op": op,
            "user_id": plan.user_id[first],
            "product_id": plan.product_id[first],
            "key": np.where(saw["kind"] == BUY, np.array(plan.key, object)[first], None),
            "kind": kind,
            "outcome": outcome,
            "end": pd.Categorical.from_codes(saw["end"], dtype=DTYPES["end"]),
            "result": outcome.map(result_of),
        }
    )


def _read_result(number: int, jobs: list[Job]) -> dict[str, npt.NDArray[Any]]:
    """Return columns of the history from what the process with a job wrote."""
    with np.load(jobs[number].result) as saw:
        columns = dict(saw)
    first_op = number + len(jobs) * columns.pop("first")
    for name in SPARSE:
        values = np.full(len(first_op), None, object)
        values[columns.pop(f"{name}_at")] = columns[name].astype(object)
        columns[name] = values
    return columns | {"first_op": first_op, "driver": np.full(len(first_op), number, np.int16)}
