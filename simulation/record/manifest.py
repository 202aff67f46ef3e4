"""The manifest of a run's folder: the SHA-256 digest of every file that a verdict rests on, or that tells it.

It ties the files together, so that it shows which one was changed later, by hand or by accident. It is no
signature: who rewrites it as well is only caught by the rules, and by `find_contradictions`.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from simulation.errors import RunError
from simulation.judge.verdict import Check

MANIFEST: Final = "manifest.json"
RECORD: Final = ("run.json", "history.parquet", "timeline.csv", "faults.json", "fuzz.json")
FINAL: Final = "final"
"""The folder of the record whose every file counts."""
PRODUCTS: Final = ("summary.json", "report.html")
"""What is made of the record, and may be made again."""


def list_record(folder: Path) -> list[str]:
    """The files of the record that are there, by their paths in the run's folder."""
    found = [name for name in RECORD if (folder / name).exists()]
    return found + sorted(f"{FINAL}/{file.name}" for file in (folder / FINAL).glob("*") if file.is_file())


def seal(folder: Path, names: Sequence[str]) -> None:
    """Writes the digests of these files of the run's folder into its manifest, beside those it has."""
    digests = (read_manifest(folder) or {}) | {name: digest(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Digests by path; None where there is none, as in runs recorded before there were manifests.

    Raises RunError if it is none.
    """
    try:
        digests = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / MANIFEST}: is not a manifest: {error}") from None
    if not isinstance(digests, dict):
        raise RunError(f"{folder / MANIFEST}: is not a manifest")
    return digests


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def find_changes(folder: Path, digests: dict[str, str]) -> list[str]:
    """What is no longer as it was written, in words; a file of the record that was added later counts too."""
    found = []
    for name, written in digests.items():
        file = folder / name
        if not file.exists():
            found.append(f"{name} is missing")
        elif digest(file) != written:
            found.append(f"{name} was changed")
    return found + [f"{name} was added" for name in list_record(folder) if name not in digests]


def judge_record(folder: Path) -> Check | None:
    """The rule that the record is as the run wrote it; None where no manifest tells."""
    digests = read_manifest(folder)
    if digests is None:
        return None
    changes = find_changes(folder, {name: each for name, each in digests.items() if name not in PRODUCTS})
    return Check(
        name="record is untouched",
        holds=not changes,
        violations=len(changes),
        detail=", ".join(changes) or f"{len(digests.keys() - set(PRODUCTS))} files are as they were written",
        meaning="Every file of the record has the SHA-256 digest that was taken when the run wrote it.",
    )


def find_contradictions(folder: Path, judged: dict[str, Any]) -> list[str]:
    """What the files made of the record say otherwise than the record does, in words.

    `judged` is the summary as the record gives it now. A file that is not there contradicts nothing.
    """
    digests = read_manifest(folder) or {}
    made = [name for name in PRODUCTS if name in digests and (folder / name).exists()]
    found = [f"{name} was changed" for name in made if digest(folder / name) != digests[name]]
    try:
        written = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        return found
    except (OSError, ValueError) as error:
        return [*found, f"summary.json can't be read: {error}"]
    return found + [
        f"summary.json says {where} {said!r}, the record {true!r}"
        for where, said, true in _differences(written, judged, "")
    ]


def _differences(written: Any, judged: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """The numbers and verdicts of two summaries that differ; what only one of them has is of another version,
    and so may be the words."""
    if isinstance(written, dict) and isinstance(judged, dict):
        for name in written.keys() & judged.keys():
            yield from _differences(written[name], judged[name], f"{where}.{name}" if where else name)
    elif isinstance(written, list) and isinstance(judged, list):
        yield from _differences(_by_name(written), _by_name(judged), where)
    elif isinstance(written, float | int) and isinstance(judged, float | int):
        if not math.isclose(written, judged, rel_tol=1e-6, abs_tol=1e-9):
            yield where, written, judged
    elif (where == "verdict" or written is None or judged is None) and written != judged:
        yield where, written, judged


def _by_name(parts: list[Any]) -> dict[str, Any]:
    return {
        str(part.get("name", number) if isinstance(part, dict) else number): part
        for number, part in enumerate(parts)
    }
