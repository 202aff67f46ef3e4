"""The process of the hostile clients: hears a Job, plays them all, and writes a ClientReport."""

import asyncio
import gc
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from simulation.drive.child import Parent, run_child
from simulation.drive.hostile.client import Job, play_all
from simulation.model.hostile import ClientReport

POLL_S: Final = 0.2


def work(parent: Parent) -> None:
    """Do one job."""
    job = msgspec.json.decode(parent.listen(), type=Job)
    gc.freeze()
    report = uvloop.run(_play(job, parent))
    Path(job.result).write_bytes(msgspec.json.encode(report))


async def _play(job: Job, parent: Parent) -> ClientReport:
    playing = asyncio.create_task(play_all(job))
    while not playing.done():
        await asyncio.wait({playing}, timeout=POLL_S)
        parent.poll()
    return await playing


if __name__ == "__main__":
    run_child(work)
