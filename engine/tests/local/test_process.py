"""Processes by their ids."""

import asyncio
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest

from engine.errors import StackError
from engine.local.process import freeze_processes, identify, kill_processes, run, send_signal
from engine.tests.test_server import eventually


async def test_what_a_process_has_begun_is_frozen_with_it() -> None:
    shell = await asyncio.create_subprocess_exec("sh", "-c", "sleep 60 & sleep 60; true")
    process = psutil.Process(shell.pid)
    await eventually(lambda: len(process.children()) == 2)
    known = identify(shell.pid)
    members = [known]
    freeze_processes(members)
    try:
        assert members[0] == known
        assert {member.pid for member in members[1:]} == {child.pid for child in process.children()}
        for member in members:
            await eventually(partial(is_stopped, member.pid))
        send_signal(members, signal.SIGCONT)
        await eventually(lambda: not is_stopped(shell.pid))
    finally:
        await kill_processes(members)
        await shell.wait()


async def test_a_program_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.local.process._PROGRAM_S", 0.2)
    before = set(psutil.Process().children())
    with pytest.raises(StackError, match=r"sleep does not end in 0\.2 s"):
        await asyncio.wait_for(run(["sleep", "61"], Path("/")), 10)
    assert set(psutil.Process().children()) <= before


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED
