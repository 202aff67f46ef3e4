"""Tokens of the users of an engine that is not ours, read from a file."""

import re
from pathlib import Path
from typing import Final

from simulation.errors import EngineError
from simulation.scenario.traces import read_text

FORMS: Final = "a token on each line, or rows of user,token"
_TOKEN: Final = re.compile(r"[!-+\--~]+")
"""Visible ASCII, and no comma, which ends a user."""


def read_tokens(file: Path) -> dict[int, str]:
    """Return the token of each user.

    In a file with a token on each line the first one is that of user 1, and so on; rows of user,token may
    stand in any order, below a head or without one. Raises EngineError, in one line that names the line at
    fault and no token.
    """
    try:
        lines = read_text(file).rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "is no text"
        raise EngineError(f"tokens: {file}: {said}") from None
    rows = bool(lines) and "," in lines[0]
    head = rows and not lines[0].partition(",")[0].strip('" ').isdecimal()
    tokens: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[head:], 1 + head):
        user, comma, token = line.partition(",") if rows else (str(number), ",", line)
        user, token = user.strip('" '), token.strip('" ')
        if not (comma and user.isdecimal() and int(user) and _TOKEN.fullmatch(token)):
            raise EngineError(f"tokens: {file}: line {number}: is no token; there must be {FORMS}")
        if int(user) in tokens:
            raise EngineError(f"tokens: {file}: line {number}: user {user} has a token already")
        if token in seen:
            raise EngineError(f"tokens: {file}: line {number}: is the token of line {seen[token]}")
        tokens[int(user)] = token
        seen[token] = number
    if not tokens:
        raise EngineError(f"tokens: {file}: is empty; there must be {FORMS}")
    return tokens
