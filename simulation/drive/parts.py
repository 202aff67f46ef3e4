"""A plan dealt to processes: the files that they read, and those that they write when they have sent it."""

import gc
import resource
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.drive.open_loop import Address, OpenLoop
from simulation.drive.pacer import IS_EXACT
from simulation.drive.plan import Integers, Plan
from simulation.drive.progress import find_outcomes
from simulation.errors import DriverError
from simulation.model.history import DTYPES, make_history
from simulation.model.outcome import OUTCOMES, classify, result_of
from simulation.scenario.patience import Patience
from simulation.scenario.schema import DriverOptions

Loop = TypeVar("Loop", bound=OpenLoop)


class Job(msgspec.Struct, frozen=True):
    """What one process sends; `plan` and `result` are .npz files."""

    plan: str
    result: str
    address: Address
    options: DriverOptions
    patience: Patience | None = None
    exact: bool = IS_EXACT
    """Whether its starts are exact (simulation.drive.pacer)."""


def deal(
    plan: Plan, address: Address, options: DriverOptions, folder: Path, exact: bool = IS_EXACT
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
            user_id=plan.user_id[ops],
            product_id=plan.product_id[ops],
            key=np.array([key or "" for key in plan.key[ops]], np.str_),
            pause_ns=np.empty(0) if plan.pause_ns is None else plan.pause_ns[ops],
        )
        jobs.append(Job(plan_file, result_file, address, options, plan.patience, exact))
    return jobs


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
    needed = connections + 100  # a process has some more files open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    except ValueError:
        raise DriverError(
            f"{connections} connections need {needed} open files; the limit (ulimit -Hn) is {hard}"
        ) from None


def save_result(loop: OpenLoop, file: str | IO[bytes], unsure_ns: int = 0) -> None:
    """Write what became of every request that was made: of the planned ones, and behind them of the retries;
    the clock of their times may be wrong by `unsure_ns`.

    `first` is the place in the plan of the request itself or of the one that it repeats; `order_id` is of the
    accepted requests alone.
    """
    ops = np.sort(np.array(loop.ended, np.int64))
    tries = [*((op, 0) for op in range(loop.planned)), *loop.retries]
    first, attempt = np.array(tries, np.int64).reshape(-1, 2)[ops].T
    status = np.frombuffer(loop.status, np.int16)[ops]
    outcome = find_outcomes(loop, ops)
    order_ids = []
    for place in np.flatnonzero(status == 200).tolist():
        name, order_id = classify(200, loop.bodies[int(ops[place])])
        outcome[place] = OUTCOMES.index(name)
        if order_id is not None:
            order_ids.append(order_id)
    np.savez(
        file,
        first=first,
        attempt=attempt,
        intended_ns=np.array(loop.intended_ns, np.int64)[ops],
        sent_ns=np.frombuffer(loop.sent_ns, np.int64)[ops],
        done_ns=np.frombuffer(loop.done_ns, np.int64)[ops],
        status=status,
        outcome=outcome,
        end=np.frombuffer(loop.ends, np.int8)[ops],
        unsure_ns=np.full(len(ops), unsure_ns),
        order_id=np.array(order_ids, np.str_),
    )


def merge_results(plan: Plan, jobs: list[Job]) -> pd.DataFrame:
    """Return the history of a plan that was dealt to jobs, which are done."""
    results = [_read_result(number, jobs) for number in range(len(jobs))]
    saw = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    first, outcome = saw["first_op"], pd.Categorical.from_codes(saw["outcome"], dtype=DTYPES["outcome"])
    # Retries are numbered after the planned requests, in the order of their intended starts.
    op = first.copy()
    retries = np.flatnonzero(saw["attempt"])
    op[retries[np.argsort(saw["intended_ns"][retries], kind="stable")]] = len(plan) + np.arange(len(retries))
    return make_history(
        saw
        | {
            "op": op,
            "user_id": plan.user_id[first],
            "product_id": plan.product_id[first],
            "key": [plan.key[number] for number in first.tolist()],
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
    order_id = np.full(len(first_op), None, object)
    order_id[columns["outcome"] == OUTCOMES.index("ACCEPTED")] = columns["order_id"].astype(object)
    driver = np.full(len(first_op), number, np.int16)
    return columns | {"first_op": first_op, "driver": driver, "order_id": order_id}
