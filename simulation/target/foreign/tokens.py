"""Tokens of the users of an engine that is not ours, read from a file."""

import re
from pathlib import Path
from typing import Final

from simulation.errors import EngineError
from simulation.scenario.traces import read_text

FORMS: Final = "a token on each line, or rows of user,token"
_TOKEN: Final = re.compile(r"[!-+\--:<-~]+")
"""Visible ASCII, and no comma or semicolon, which end a user."""
_USER: Final = re.compile("[0-9]{1,19}")
_HEADS: Final = {"token", "tokens"}


def read_tokens(file: Path) -> dict[int, str]:
    """Return the token of each user.

    In a file with a token on each line the first one is that of user 1, and so on; rows of user,token, or
    user;token, may stand in any order. Either may have a head. Raises EngineError, in one line that names the
    line at fault and no token.
    """
    try:
        lines = read_text(file).rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "is no text"
        raise EngineError(f"tokens: {file}: {said}") from None
    first, *others = re.split("[,;]", lines[0]) if lines else [""]
    first, rows = first.strip('" '), bool(others)
    head = not first.isdecimal() if rows else first.lower() in _HEADS
    tokens: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[head:], 1 + head):
        user, comma, token = (
            line.replace(";", ",").partition(",") if rows else (str(number - head), ",", line)
        )
        user, token = user.strip('" '), token.strip('" ')
        if not (comma and _USER.fullmatch(user) and int(user) and _TOKEN.fullmatch(token)):
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
