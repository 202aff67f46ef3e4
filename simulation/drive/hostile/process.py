"""The process of the hostile clients: receives a Job, plays them all, and writes a ClientReport."""

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop

from simulation.drive.child import Parent, run_child
from simulation.drive.hostile.client import Job, play_all
from simulation.model.hostile import ClientReport


def work(parent: Parent) -> None:
    """Do one job."""
    job = msgspec.json.decode(parent.hear(), type=Job)
    report = uvloop.run(_play(job, parent))
    Path(job.result).write_bytes(msgspec.json.encode(report))


async def _play(job: Job, parent: Parent) -> ClientReport:
    # The parent says nothing more; when it is gone, its end of file ends the process.
    asyncio.get_running_loop().add_reader(sys.stdin, parent.hear, 0)
    return await play_all(job)


if __name__ == "__main__":
    run_child(work)
