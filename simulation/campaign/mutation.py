"""Mutations: deliberate bugs, each a file of mutations/, and copies of the engine that have them."""

import shutil
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

import engine
from simulation.errors import MutationError
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario

FOLDER: Final = Path(__file__).with_name("mutations")
PACKAGE: Final = Path(engine.__file__).parent
SMALL: Final[dict[str, Any]] = {
    "arrivals.0.seconds": 6,
    "arrivals.0.rate_rps": 1_000,
    "sales.0.stock": 4_000,
    "drain_s": 10,
}
"""Changes that make the scenario single-fault small."""


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of the engine's source that is replaced."""

    file: str
    """Its path inside the package."""
    find: Annotated[str, Meta(min_length=1)]
    """It must be there exactly once."""
    replace: str


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A deliberate bug, and the run that should find it."""

    name: str
    text: str
    """What the engine does wrong, in plain words."""
    breaks: Annotated[list[str], Meta(min_length=1)]
    """The checks of which at least one must find it, by their names."""
    edits: Annotated[list[Edit], Meta(min_length=1)]
    scenario: str = "single-fault"
    changes: dict[str, Any] = {}
    """Dotted keys of the scenario and their values, as `flashsim run --set` takes them."""

    def load_scenario(self) -> Scenario:
        """Return the scenario with its changes. Raises ScenarioError."""
        return load_scenario(self.scenario, SMALL | self.changes)


def list_mutations() -> list[str]:
    """List the names of all mutations."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_mutation(name: str, folder: Path = FOLDER) -> Mutation:
    """Return the mutation of that name. Raises MutationError, in one line."""
    path = folder / f"{name}.toml"
    try:
        return msgspec.convert({"name": name} | tomllib.loads(path.read_text(encoding="utf-8")), Mutation)
    except FileNotFoundError:
        raise MutationError(f"no mutation {name!r}; there are: {', '.join(list_mutations())}") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise MutationError(f"{path}: {error}") from None


def copy_engine(folder: Path, source: Path = PACKAGE) -> None:
    """Copy the package, without its tests, to `folder`/engine."""
    shutil.copytree(source, folder / "engine", ignore=shutil.ignore_patterns("tests", "__pycache__"))


def mutate(mutation: Mutation, folder: Path) -> None:
    """Make the edits in the copy of the package at `folder`/engine.

    Raises MutationError, in one line, if a piece is not there exactly once.
    """
    for number, edit in enumerate(mutation.edits):
        place = f"{mutation.name}: edits.{number}"
        path = folder / "engine" / edit.file
        if not path.is_file():
            raise MutationError(f"{place}.file: the engine has no {edit.file}")
        source = path.read_text(encoding="utf-8")
        if (found := source.count(edit.find)) != 1:
            raise MutationError(
                f"{place}.find: must be in {edit.file} once, is there {found} times: {edit.find}"
            )
        path.write_text(source.replace(edit.find, edit.replace), encoding="utf-8")
