"""A plan dealt to processes: the files that they read, and those that they write when they have sent it."""

import gc
import resource
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.drive.open_loop import Address, OpenLoop
from simulation.drive.plan import Integers, Plan
from simulation.drive.progress import find_outcomes
from simulation.errors import DriverError
from simulation.model.history import DTYPES, make_history
from simulation.model.outcome import OUTCOMES, RESULTS, classify, result_of
from simulation.scenario.patience import Patience
from simulation.scenario.schema import DriverOptions

SPARE_FILES: Final = 100
"""Open files of a process beside its connections."""

Loop = TypeVar("Loop", bound=OpenLoop)


class Job(msgspec.Struct, frozen=True):
    """What one process sends; `plan` and `result` are .npz files."""

    plan: str
    result: str
    address: Address
    options: DriverOptions
    patience: Patience | None = None


class Part(NamedTuple):
    """The requests of a plan that one process sends, by number."""

    ops: Integers
    job: Job


def deal(plan: Plan, address: Address, options: DriverOptions, folder: Path) -> list[Part]:
    """Deal the plan to processes, in turn, so that each gets the whole curve at a share of its rate."""
    count = min(options.processes, max(len(plan), 1))
    parts = []
    for number in range(count):
        ops = np.arange(number, len(plan), count)
        plan_file, result_file = (str(folder / f"{kind}-{number}.npz") for kind in ("plan", "result"))
        np.savez(
            plan_file,
            intended_ns=plan.intended_ns[ops],
            user_id=plan.user_id[ops],
            product_id=plan.product_id[ops],
            key=np.array([plan.key[op] or "" for op in ops.tolist()], np.str_),
            pause_ns=np.empty(0) if plan.pause_ns is None else plan.pause_ns[ops],
        )
        parts.append(Part(ops, Job(plan_file, result_file, address, options, plan.patience)))
    return parts


def prepare_loop(kind: type[Loop], job: Job, plan_file: str | IO[bytes]) -> Loop:
    """Return a loop of this kind that sends the part of a job, and make the process ready to run it.

    Raises DriverError where the machine does not allow as many connections.
    """
    _allow_files(job.options.connections)
    with np.load(plan_file) as plan:
        requests = _encode_requests(job.address, plan["user_id"], plan["product_id"], plan["key"])
        intended_ns, pause_ns = plan["intended_ns"].tolist(), plan["pause_ns"].tolist()
    loop = kind(requests, intended_ns, job.address, job.options, job.patience, pause_ns)
    # A collection of garbage would stop the pacer for longer the larger the plan is.
    gc.collect()
    gc.freeze()
    gc.disable()
    return loop


def _encode_requests(
    address: Address, user_id: Integers, product_id: Integers, key: npt.NDArray[np.str_]
) -> list[bytes]:
    """Return the purchases as HTTP/1.1 requests; an empty key is none."""
    start = f"POST {address.path} HTTP/1.1\r\nHost: {address.authority}\r\nContent-Type: application/json\r\n"
    requests = []
    for user, product, idempotency in zip(user_id.tolist(), product_id.tolist(), key.tolist(), strict=True):
        body = f'{{"userId":{user},"productId":{product}}}'
        header = f"Idempotency-Key: {idempotency}\r\n" if idempotency else ""
        requests.append(f"{start}{header}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return requests


def _allow_files(connections: int) -> None:
    needed = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    except ValueError:
        raise DriverError(
            f"{connections} connections need {needed} open files; the limit (ulimit -Hn) is {hard}"
        ) from None


def save_result(loop: OpenLoop, file: str | IO[bytes]) -> None:
    """Write what became of every request that was made: of the planned ones, and behind them of the retries.

    `first` is the place in the plan of the request itself or of the one that it repeats.
    """
    ops = np.sort(np.array(loop.ended, np.int64))
    tries = [*((op, 0) for op in range(loop.planned)), *loop.retries]
    first, attempt = np.array(tries, np.int64).reshape(-1, 2)[ops].T
    status = np.frombuffer(loop.status, np.int16)[ops]
    outcome = find_outcomes(loop, ops)
    accepted, order_id = [], []
    for place in np.flatnonzero(status == 200).tolist():
        name, order = classify(200, loop.bodies[int(ops[place])])
        outcome[place] = OUTCOMES.index(name)
        if order is not None:
            accepted.append(place)
            order_id.append(order)
    np.savez(
        file,
        first=first,
        attempt=attempt,
        intended_ns=np.array(loop.intended_ns, np.int64)[ops],
        sent_ns=np.frombuffer(loop.sent_ns, np.int64)[ops],
        done_ns=np.frombuffer(loop.done_ns, np.int64)[ops],
        status=status,
        outcome=outcome,
        accepted=np.array(accepted, np.int64),
        order_id=np.array(order_id, np.str_),
    )


def merge_results(plan: Plan, parts: list[Part]) -> pd.DataFrame:
    """Return the history of a plan whose parts have been sent."""
    results = [_read_result(number, part) for number, part in enumerate(parts)]
    saw = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    first, outcome = saw["first_op"], saw["outcome"]
    # Retries are numbered after the planned requests, in the order of their intended starts.
    op = first.copy()
    retries = np.flatnonzero(saw["attempt"])
    op[retries[np.argsort(saw["intended_ns"][retries], kind="stable")]] = len(plan) + np.arange(len(retries))
    result_codes = np.array([RESULTS.index(result_of(name)) for name in OUTCOMES], np.int8)
    return make_history(
        saw
        | {
            "op": op,
            "user_id": plan.user_id[first],
            "product_id": plan.product_id[first],
            "key": [plan.key[number] for number in first.tolist()],
            "outcome": pd.Categorical.from_codes(outcome, dtype=DTYPES["outcome"]),
            "result": pd.Categorical.from_codes(result_codes[outcome], dtype=DTYPES["result"]),
        }
    )


def _read_result(number: int, part: Part) -> dict[str, npt.NDArray[Any]]:
    """Return columns of the history from what a process wrote."""
    with np.load(part.job.result) as saw:
        columns = dict(saw)
    columns["first_op"] = part.ops[columns.pop("first")]
    columns["driver"] = np.full(len(columns["first_op"]), number, np.int16)
    order_id = np.full(len(columns["first_op"]), None, object)
    order_id[columns.pop("accepted")] = columns["order_id"].astype(object)
    return columns | {"order_id": order_id}
