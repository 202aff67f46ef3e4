"""The manifest of a run's folder: the SHA-256 digest of every file that a verdict rests on, or that tells it.

It shows which file was changed later, by hand or by accident. It is no signature: a forger who also rewrites
the manifest is only caught by the rules and by `find_contradictions`.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from simulation.judge.verdict import Check, make_check
from simulation.record.facts import read_part, write_json

MANIFEST: Final = "manifest.json"
RECORD: Final = ("run.json", "history.parquet", "timeline.csv", "faults.json", "fuzz.json")
UNTOUCHED: Final = "record is untouched"
"""The check that the record is as the run wrote it."""
PRODUCTS: Final = ("summary.json", "report.html")
"""Files that are made from the record and may be made again."""


def list_record(folder: Path) -> list[str]:
    """List the files of the record that exist, by their paths in the run's folder."""
    found = [name for name in RECORD if (folder / name).exists()]
    return found + sorted(f"final/{file.name}" for file in (folder / "final").glob("*") if file.is_file())


def seal(folder: Path, names: Sequence[str]) -> None:
    """Write the digests of these files into the manifest of the run's folder, beside those it has."""
    digests = (read_manifest(folder) or {}) | {name: _digest(folder / name) for name in names}
    write_json(dict(sorted(digests.items())), folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Return digests by path; None without a manifest, as in records from before there were any.

    Raises RunError if the file is not a manifest.
    """
    return read_part(folder, MANIFEST, dict[str, str])


def judge_record(folder: Path) -> list[Check]:
    """Return the check that the record is as the run wrote it; none without a manifest."""
    digests = read_manifest(folder)
    if digests is None:
        return []
    sealed = [name for name in digests if name not in PRODUCTS]
    changes = [f"{name} is missing" for name in sealed if not (folder / name).exists()]
    changes += _find_changes(folder, digests, sealed)
    changes += [f"{name} was added" for name in list_record(folder) if name not in digests]
    return [
        make_check(
            UNTOUCHED,
            len(changes),
            ", ".join(changes) or f"{len(sealed)} files are as they were written",
            "Every file of the record has the SHA-256 digest that was taken when the run wrote it.",
            chances=len(sealed),
        )
    ]


def find_contradictions(folder: Path, judged: dict[str, Any]) -> list[str]:
    """Tell where the files made from the record disagree with it, in words.

    `judged` is the summary as the record gives it now. A file that does not exist contradicts nothing. Raises
    RunError if summary.json is not JSON.
    """
    found = find_changes(folder, PRODUCTS)
    written = read_part(folder, "summary.json", dict[str, Any]) or {}
    said, true = _flatten(written), _flatten(judged)
    return found + [
        f"summary.json says {where} {said[where]!r}, the record {true[where]!r}"
        for where in said
        if where in true and _differ(where, said[where], true[where])
    ]


def find_changes(folder: Path, names: Sequence[str]) -> list[str]:
    """Tell in words which of these files were changed since the manifest got their digests, if it did."""
    digests = read_manifest(folder) or {}
    return _find_changes(folder, digests, [name for name in names if name in digests])


def _find_changes(folder: Path, digests: dict[str, str], names: Sequence[str]) -> list[str]:
    return [
        f"{name} was changed"
        for name in names
        if (folder / name).exists() and _digest(folder / name) != digests[name]
    ]


def _digest(file: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flatten(part: Any, where: str = "") -> dict[str, Any]:
    """Return the leaves of a summary by their dotted paths; members of a list go by their names."""
    if isinstance(part, list):
        named = [each.get("name", i) if isinstance(each, dict) else i for i, each in enumerate(part)]
        part = dict(zip(named, part, strict=True))
    if not isinstance(part, dict):
        return {where: part}
    found: dict[str, Any] = {where: ...}
    for name, each in part.items():
        found |= _flatten(each, f"{where}.{name}" if where else name)
    return found


def _differ(where: str, said: Any, true: Any) -> bool:
    """Return whether two leaves differ in a number or the verdict; words may differ between versions."""
    if isinstance(said, float | int) and isinstance(true, float | int):
        return not math.isclose(said, true, rel_tol=1e-6, abs_tol=1e-9)
    return (where == "verdict" or said is None or true is None) and said != true
