"""Machines that are network namespaces: what is sent between them can vanish, and nothing is left of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from engine.errors import StackError
from engine.local.machines import Network
from engine.local.process import HERE, Machine, ProcessId, kill_processes, log_of, run, spawn
from engine.local.state import Entry, write_entry
from engine.tests.services import skip_or_fail
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow

PORT = 7_000
SERVER = f"""
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], {PORT}))
while True:
    word, client = server.recvfrom(100)
    print(word.decode(), flush=True)
    server.sendto(word, client)
"""
"""Writes down each word that it hears, and says it as well."""
CLIENT = f"""
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(0.3)
client.sendto(sys.argv[2].encode(), (sys.argv[1], {PORT}))
try:
    print(client.recv(100).decode(), end="")
except TimeoutError:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("network namespaces need root")
    if not shutil.which("ip"):
        skip_or_fail("network namespaces need the program ip (iproute2)")
    folder = tmp_path / "stack"
    folder.mkdir()
    return folder


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[ProcessId]:
    place = tmp_path / "sleeper"
    place.mkdir()
    process = spawn(["sleep", "600"], place)
    yield process
    await kill_processes([process])


@pytest.fixture
async def network(folder: Path, process: ProcessId) -> AsyncIterator[Network]:
    # Other tests remove what is not in use.
    write_entry(folder, "redis", Entry([1], [process]))
    network = Network(folder)
    if note := await network.make():
        pytest.skip(note)  # a container may keep them from its root
    yield network
    await network.remove()
    assert not exists(network.machines)


@pytest.fixture
async def log(network: Network, tmp_path: Path) -> AsyncIterator[Path]:
    """What a server on the first machine hears."""
    place = tmp_path / "server"
    place.mkdir()
    machine = network.machines[0]
    process = spawn([sys.executable, "-c", SERVER, machine.address], place, machine=machine)
    await eventually(partial(hears, HERE, network, "hello"))
    yield log_of(place)
    await kill_processes([process])


async def hears(machine: Machine, network: Network, word: str) -> bool:
    """Say a word to the first machine; return whether it came back."""
    command = [sys.executable, "-c", CLIENT, network.machines[0].address, word]
    return await run(command, Path("/"), machine=machine) == word


def read_words(log: Path) -> set[str]:
    return set(log.read_text().split())


def exists(machines: list[Machine]) -> bool:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, check=True, text=True).stdout
    known = {line.split()[0] for line in listed.splitlines()}
    return bool(known.intersection(machine.namespace or "" for machine in machines))


@pytest.mark.parametrize(
    ("incoming", "outgoing"), [(True, True), (True, False), (False, True)], ids=["both", "in", "out"]
)
async def test_what_machines_send_each_other_vanishes_until_they_are_mended(
    network: Network, log: Path, incoming: bool, outgoing: bool
) -> None:
    _, second, third = network.machines
    for machine in (second, third):
        await eventually(partial(hears, machine, network, "hello"))
    await network.cut(1, incoming=incoming, outgoing=outgoing)
    for machine in (second, third):
        assert not await hears(machine, network, "lost")
    await eventually(partial(hears, HERE, network, "here"))
    await network.mend()
    for machine in (second, third):
        await eventually(partial(hears, machine, network, "again"))
    assert read_words(log) == {"hello", "here", "again"} | (set() if incoming else {"lost"})


async def test_what_a_crash_left_is_removed_unless_it_is_in_use(
    network: Network, process: ProcessId, tmp_path: Path
) -> None:
    machines = dict[str, list[Machine]]()
    try:
        for name in ("used", "left", "gone"):
            place = tmp_path / name
            place.mkdir()
            write_entry(place, "redis", Entry([1], [process]))
            await Network(place).make()
            machines[name] = Network(place).machines
        assert all(map(exists, machines.values()))
        write_entry(tmp_path / "left", "redis", Entry([1], []))
        shutil.rmtree(tmp_path / "gone")
        await network.make()
        assert {name for name in machines if exists(machines[name])} == {"used"}
    finally:
        for name in ("used", "left"):
            await Network(tmp_path / name).remove()


async def test_without_root_all_machines_are_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    network = Network(tmp_path)
    assert "none can be cut off: network namespaces need root" in await network.make()
    assert (network.can_be_cut, network.machines) == (False, [HERE] * 3)
    monkeypatch.undo()
    assert "they were made so" in await network.make()


async def test_machines_that_were_namespaces_are_nothing_else_later(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = network.machines
    await network.make()
    assert network.machines == machines
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    with pytest.raises(StackError, match="are network namespaces: network namespaces need root"):
        await network.make()
