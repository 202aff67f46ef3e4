"""A process of the open-loop driver: sends its part of the plan and writes down what became of it.

It reads a Job, says "ready", reads the start (time.monotonic_ns), and then says a Snapshot several times a
second. A further line stops the load.
"""

import asyncio
import time
from typing import Final

import msgspec
import uvloop

from simulation.drive.child import Parent, run_child
from simulation.drive.open_loop import OpenLoop
from simulation.drive.parts import Job, prepare_loop, save_result
from simulation.drive.progress import SNAPSHOT_S, Tally

COUNT_S: Final = 0.02
"""How often what has ended is counted. Nothing is sent meanwhile, so the pacer waits for a thousand requests
to be counted, not for those of a whole snapshot."""


def work(parent: Parent) -> None:
    """Do one job."""
    job = msgspec.json.decode(parent.hear(), type=Job)
    loop = prepare_loop(OpenLoop, job, job.plan)
    parent.say(b"ready")
    uvloop.run(_send(loop, int(parent.hear()), job.exact, parent))
    save_result(loop, job.result)


async def _send(loop: OpenLoop, t0_ns: int, exact: bool, parent: Parent) -> None:
    tally = Tally(loop)
    sending = asyncio.create_task(loop.run(t0_ns, exact))
    say_at = 0.0
    while not sending.done():
        await asyncio.wait({sending}, timeout=COUNT_S)
        if parent.hear(wait_s=0):
            loop.stop()
        tally.count()
        if time.monotonic() >= say_at or sending.done():
            parent.say(msgspec.json.encode(tally.read()))
            say_at = time.monotonic() + SNAPSHOT_S
    await sending


if __name__ == "__main__":
    run_child(work)
