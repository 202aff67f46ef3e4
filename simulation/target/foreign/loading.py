"""Loading the description of an engine: found by name or path, validated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from simulation.errors import EngineError, suggest
from simulation.scenario.loading import find_errors, locate_errors, read_toml
from simulation.target.foreign.checks import find_faults
from simulation.target.foreign.description import Description

LIBRARY: Final = Path(__file__).with_name("library")


def list_descriptions() -> list[str]:
    """Return the names of the descriptions of the library."""
    return sorted(path.stem for path in LIBRARY.glob("*.toml"))


def load_description(name_or_path: str) -> Description:
    """Return the description of that name, or in that TOML file.

    Raises EngineError, with a line for each key at fault, which names the file and the line.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and len(path.parts) == 1:
        if path.name not in list_descriptions():
            known = list_descriptions()
            meant = suggest(path.name, known)
            raise EngineError(
                f"no engine {path.name!r}{meant}; there are: {', '.join(known)}, or a FILE.toml"
            )
        path = LIBRARY / f"{path.name}.toml"
    try:
        raw, text = read_toml(path)
    except ValueError as error:
        raise EngineError(str(error)) from None
    described = read_description(raw, str(path), text)
    beside = {
        name: str(path.parent / file) for name in ("ca", "tokens") if (file := getattr(described, name))
    }
    return msgspec.structs.replace(described, **beside)


def read_description(raw: Mapping[str, Any], source: str, text: str) -> Description:
    """Return the description in a tree of plain values, which the TOML `text` of a source says.

    Raises EngineError, with a line for each key at fault.
    """
    try:
        described = msgspec.convert(raw, Description)
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise EngineError(locate_errors(find_errors(raw, Description), source, text)) from None
    if faults := list(find_faults(described)):
        raise EngineError(locate_errors(faults, source, text))
    return described
