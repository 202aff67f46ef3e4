"""Three machines on one: network namespaces on a bridge of their own, where that may be, or else loopback.

What they are is decided once for a data folder and kept in <data_dir>/network, because services remember each
other's addresses. Between namespaces packets can be made to vanish, as when a cable is cut.
"""

import hashlib
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import StackError
from engine.local.process import HERE, Machine, run
from engine.local.state import is_in_use

COUNT: Final = 3
_HOST: Final = 254
"""The last number of this machine's own address on a bridge."""
_NOBODY: Final = "02:00:00:00:00:00"
"""A hardware address that none has."""


class Network:
    """The machines of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.resolve()
        self._file = data_dir / "network"
        # A name of an interface has at most 15 characters.
        self._bridge = f"fg-{hashlib.sha256(bytes(self._data_dir)).hexdigest()[:8]}"

    @property
    def can_be_cut(self) -> bool:
        """Whether each machine is a network namespace."""
        return bool(self._subnet)

    @property
    def machines(self) -> list[Machine]:
        """The machines; without namespaces all of them are this one."""
        if not self._subnet:
            return [HERE] * COUNT
        numbers = range(1, COUNT + 1)
        return [Machine(f"{self._subnet}.{number}", _namespace(self._bridge, number)) for number in numbers]

    @property
    def _subnet(self) -> str:
        """The first three parts of the machines' addresses; empty without namespaces."""
        return self._file.read_text().strip() if self._file.exists() else ""

    async def make(self) -> str:
        """Make the machines as they were, and new ones as namespaces where that may be.

        Returns a line for a person if they can't be cut off. Raises StackError if they could, and now can't.
        """
        obstacle = _find_obstacle()
        if not obstacle:
            await _remove_stale()
        if self.can_be_cut:
            if obstacle:
                raise StackError(f"the machines of {self._data_dir} are network namespaces: {obstacle}")
            await self._make_namespaces()
        elif self._file.exists():
            obstacle = "they were made so"
        else:
            random_ = random.SystemRandom()
            subnet = f"10.{random_.randint(64, 127)}.{random_.randint(0, 255)}"
            self._file.write_text("" if obstacle else subnet)
            if not obstacle:
                try:
                    await self._make_namespaces()
                except StackError as error:
                    await self.remove()
                    self._file.write_text("")
                    obstacle = str(error)
        return f"all machines share loopback, and none can be cut off: {obstacle}" if obstacle else ""

    async def remove(self) -> None:
        """Remove the namespaces, as far as they exist."""
        if self.can_be_cut:
            await _remove(self._bridge)

    async def cut(self, number: int, *, incoming: bool = True, outgoing: bool = True) -> None:
        """Let what the others send to a machine, and what it sends to them, vanish. Neither side is told."""
        machine = self.machines[number - 1]
        for other in self.machines:
            if incoming and other != machine:
                await _change_neighbours(other, f"replace {machine.address} lladdr {_NOBODY}")
            if outgoing and other != machine:
                await _change_neighbours(machine, f"replace {other.address} lladdr {_NOBODY}")

    async def mend(self) -> None:
        """End every cut."""
        for machine in self.machines:
            await _change_neighbours(machine, "flush")

    async def _make_namespaces(self) -> None:
        await _remove(self._bridge)
        await _ip(
            f"link add {self._bridge} type bridge",
            # So what a crash leaves can be told from what is in use.
            f'link set {self._bridge} alias "{self._data_dir}" up',
            f"addr add {self._subnet}.{_HOST}/24 dev {self._bridge}",
        )
        for number, machine in enumerate(self.machines, start=1):
            cable = _cable(self._bridge, number)
            await _ip(
                f"netns add {machine.namespace}",
                f"link add {cable} type veth peer name eth0 netns {machine.namespace}",
                f"link set {cable} master {self._bridge} up",
            )
            setting = ("link set lo up", f"addr add {machine.address}/24 dev eth0", "link set eth0 up")
            await _ip(*setting, namespace=machine.namespace)


def _find_obstacle() -> str:
    """Return why there can be no namespaces; nothing if there can."""
    if os.geteuid():
        return "network namespaces need root"
    missing = [program for program in ("ip", "nsenter") if not shutil.which(program)]
    return f"network namespaces need {' and '.join(missing)}" if missing else ""


def _namespace(bridge: str, number: int) -> str:
    return f"{bridge}-{number}"


def _cable(bridge: str, number: int) -> str:
    return f"{bridge}-{number}"


async def _remove_stale() -> None:
    """Remove the machines of folders that are gone, and of those that nobody uses."""
    listed: list[dict[str, Any]] = msgspec.json.decode(await run(["ip", "-json", "link", "show"], Path("/")))
    for link in listed:
        folder = link.get("ifalias")
        if link["ifname"].startswith("fg-") and folder and not is_in_use(Path(folder)):
            await _remove(link["ifname"])


async def _remove(bridge: str) -> None:
    for number in range(1, COUNT + 1):
        for what in (f"link del {_cable(bridge, number)}", f"netns del {_namespace(bridge, number)}"):
            with suppress(StackError):
                await _ip(what)
    with suppress(StackError):
        await _ip(f"link del {bridge}")


async def _change_neighbours(machine: Machine, change: str) -> None:
    """Change what a machine thinks the hardware addresses of others are."""
    await _ip(f"neigh {change} dev eth0 nud permanent", namespace=machine.namespace)


async def _ip(*lines: str, namespace: str | None = None) -> None:
    """Run lines of the program ip. Raises StackError."""
    where = ["-netns", namespace] if namespace else []
    await run(["ip", *where, "-batch", "-"], Path("/"), text="".join(f"{line}\n" for line in lines))
