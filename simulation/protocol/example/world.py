"""One example's world: the processes, the stores, and all that may happen to them, one thing at a time."""

from collections import Counter
from typing import Final

from engine.model.purchase import Outcome
from simulation.model.formats import name_key
from simulation.protocol.example.running import NOTICED_MS, THREAD_STEPS, Running
from simulation.protocol.stores.bus import Channel

_DRAIN_ROUNDS: Final = 150
_STRANGERS: Final = 10
"""The first user who buys nothing before the end."""
_TRIES: Final = 3
"""A front door whose connection is gone finds that out by its first purchase."""


class World(Running):
    """Everything of one example."""

    def crash(self, number: int) -> None:
        """Kill a process; another one starts in its place."""
        number %= len(self.processes)
        process = self.processes[number]
        self._say(f"{process.name} dies")
        self.losses.note_absence(process)
        process.crash()
        self._idle.clear()
        if process is self.asleep:
            self.asleep = None
        self.processes[number] = self._start(type(process))

    # What happens to the stores.

    def take_copy(self) -> None:
        """Keep a copy of Redis' memory."""
        self._say("Redis' memory is copied")
        self.losses.take_copy()

    def lose_memory(self, which: int | None) -> None:
        """Put a server in place of Redis that holds one of the copies, or nothing."""
        self._idle.clear()
        self._say(f"Redis goes back to {self.losses.go_back(which, self.processes)}")
        for purchase in self.purchases:
            purchase.is_doubtful |= self.losses.is_doubtful

    def restart_redis(self) -> None:
        """Put a server in place of Redis that holds the same."""
        self._say("Redis restarts")
        self.memory.go_back(self.memory.take_copy())

    def lose_channel(self, which: int) -> None:
        """Have the broker take a consumer for gone."""
        channels: list[Channel] = self.bus.channels
        if channels:
            self._say("a consumer's channel is lost")
            self.bus.notice(channels[which % len(channels)])

    @property
    def holds_lock(self) -> bool:
        """Whether a keeper rebuilds the gate."""
        return self.database.lock_holder is not None

    def lose_lock(self) -> None:
        """Have PostgreSQL lose the session of the keeper that rebuilds."""
        if self.database.lock_holder is not None:
            self._say("PostgreSQL loses the session that holds the lock")
            self.database.lock_holder.terminate()

    def arrive(self) -> None:
        """Have a message arrive of which its publisher knows nothing any more."""
        if self.bus.late:
            self._say("a message arrives late")
            self.bus.arrive()

    # The end.

    def settle_down(self) -> None:
        """Let everything that is under way end, without another fault."""
        self.asleep = None
        self._stalled.clear()
        for channel in [each for each in self.bus.channels if each.is_abandoned]:
            self.bus.notice(channel)
        while self.bus.late:
            self.bus.arrive()
        before, self.steps = self.steps, Counter()
        self.come_to_rest(_DRAIN_ROUNDS)
        self.drain_steps, self.steps = self.steps.total(), before

    def come_to_rest(self, rounds: int) -> None:
        """Let everything go on in turn that does not stand still, until nothing is under way."""
        for number in range(rounds):
            for process in self.processes:
                for task in dict.fromkeys(step.task for step in self._list_steps(process)):
                    step = next((each for each in self._list_steps(process) if each.task is task), None)
                    if step and not self._is_idle(process, step):
                        self.run(process, step, THREAD_STEPS)
            if not self.find_unrest():
                self.losses.note_agreement()
                break
            # A fulfilment leaves the bus after a while, which its keeper may wait for before it asks.
            ms = 6_000 if number % 2 or self._stalled or self.asleep else NOTICED_MS - 1
            if self.may_pass(ms):
                self.pass_time(ms)

    def find_unrest(self) -> str:
        """Return what is under way yet, or in what gate and ledger disagree; nothing if all is settled."""
        if any(each.done is None and each.front_door.alive for each in self.purchases):
            return "a purchase has no answer"
        if self.bus.list_bodies() or self.losses.list_entries():
            return "purchases are under way"
        if not self.losses.is_open:
            return "the gate is closed"
        if pending := self.losses.list_pending():
            return f"orders are pending: {pending}"
        for product_id, sale_id, left in self.database.read("find_left"):
            at_gate = self.memory.call("HMGET", name_key(0, f"sale:{product_id}"), "sale_id", "remaining")
            if at_gate != [b"%d" % sale_id, b"%d" % left]:
                return f"sale {sale_id} has {left} units left in the ledger, and the gate has {at_gate}"
        return ""

    @property
    def was_rebuilt(self) -> bool:
        """Whether a keeper has rebuilt the gate."""
        [[latest]] = self.database.read("read_generation")
        return bool(latest > self.generation)

    def find_silent_doors(self) -> list[str]:
        """Return the front doors that, at rest, do not sell what is left, or do not say that nothing is."""
        before, self.steps = self.steps, Counter()
        # A server that is new is asked first, and what front doors repeat ends.
        self.let_ask()
        self.pass_time(6_000)
        self.come_to_rest(_DRAIN_ROUNDS)
        found = [f"nothing is stranded: {unrest}"] if (unrest := self.find_unrest()) else self._try_doors()
        self.drain_steps += self.steps.total()
        self.steps = before
        return found

    def _try_doors(self) -> list[str]:
        sales = {row["product_id"]: row for row in self.database.read("read_sales")}.values()
        free = [row for row in sales if (row["user_limit"] or row["quantity"]) >= row["quantity"]]
        sale = max(free, key=lambda row: row["stock"] - row["sold"], default=None)
        if sale is None:
            return []
        left, found = sale["stock"] - sale["sold"], list[str]()
        for number in range(2):
            wanted = Outcome.ACCEPTED if left >= sale["quantity"] else Outcome.SOLD_OUT
            told = self._ask_as_stranger(number, sale["product_id"])
            if told is not wanted:
                found.append(f"an open gate sells: {self.processes[number].name} says {told}, not {wanted}")
            if told is Outcome.ACCEPTED:
                left -= sale["quantity"]
        return found

    def _ask_as_stranger(self, number: int, product_id: int) -> Outcome | None:
        """Return what a user is told who has bought nothing."""
        for _ in range(_TRIES):
            self.buy(number, product_id, [(_STRANGERS + number, None)])
            purchase = self.purchases.pop()
            for _ in range(THREAD_STEPS):
                for step in self._let_each(self.processes[number]):
                    if purchase.done is None:
                        self.run(self.processes[number], step, 1)
            if purchase.outcome is not Outcome.GATE_UNAVAILABLE:
                break
            # A door that has not heard of the server yet may hold all of them up, once.
            self.pass_time(NOTICED_MS)
        return purchase.outcome

    def end(self) -> None:
        """End every process."""
        for process in self.processes:
            process.crash()
