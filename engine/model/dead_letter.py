"""Dead letters: records that can't be fulfilled."""

import msgspec


class Poison(msgspec.Struct, frozen=True):
    """A record that can't be fulfilled: its bytes as they came, and why."""

    body: bytes
    reason: str
