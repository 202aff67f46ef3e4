"""Dead letters: records that can't be fulfilled."""

import msgspec


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that can't be fulfilled: its bytes as they arrived, and why."""

    body: bytes
    reason: str
