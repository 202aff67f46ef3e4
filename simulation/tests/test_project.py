"""What the repository promises as a whole: packaging, layering, the shape of the house, deployment."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import msgspec
import pytest
from packaging.markers import Marker

from engine.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    ".ci",
    ".dockerignore",
    ".gitattributes",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "docker-compose.yml",
    "engine",
    "notebooks",
    "pyproject.toml",
    "reports",
    "simulation",
}
REQUIREMENTS = ("engine/requirements.txt", "engine/local/requirements.txt", "simulation/requirements.txt")
MOST_MODULES = 10
"""In one room."""
MOST_LINES = 300
"""In one module."""
# Written in parts, so that this file doesn't name one itself.
REGISTRIES = re.compile(rb"pypi\.%s|python%s\.org|index-%s|find-%s" % (b"org", b"hosted", b"url", b"links"))

# Run in a fresh interpreter: imports the modules named after "--" with the allowed packages alone.
GUARDED_IMPORT = """
import importlib, sys
cut = sys.argv.index("--")
allowed = {*sys.argv[1:cut], *sys.stdlib_module_names}
class Guard:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return self.finder.find_spec(name, path, target) if name.partition(".")[0] in allowed else None
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Guard(finder) for finder in sys.meta_path]
for module in sys.argv[cut + 1:]:
    importlib.import_module(module)
"""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: str) -> dict[str, str]:
    lines = [line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; .+)?", line) for line in lines), "a line that is no plain pin"
    pins = {}
    for pin, _, marker in (line.partition("; ") for line in lines):
        if not marker or Marker(marker).evaluate():
            name, version = pin.split("==")
            pins[normalise(name)] = version
    return pins


def read_extra(extra: str | None) -> set[str]:
    """Normalised names of the distributions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {normalise(re.split(r"[^\w.-]", requirement)[0]) for requirement in wanted}
    return names - {"flashgrid"}


def add_needs(distributions: set[str]) -> set[str]:
    """The distributions with all that they depend on, extras aside."""
    found: set[str] = set()
    while waiting := distributions - found:
        found |= waiting
        wanted = [requirement for name in waiting for requirement in requires(name) or []]
        distributions |= {normalise(re.split(r"[^\w.-]", need)[0]) for need in wanted if ";" not in need}
    return found


def importable(distributions: set[str]) -> set[str]:
    """Top-level module names that the distributions bring."""
    return {
        module
        for module, owners in packages_distributions().items()
        if any(normalise(owner) in distributions for owner in owners)
    }


def modules_of(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "tests" not in parts:
            yield ".".join(parts).removesuffix(".__init__"), path


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


OPS_FILES = ("docker-compose.yml", "engine/ops/kubernetes/engine.yaml", "engine/ops/README.md")


def run_compose(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("docker-compose") is None:
        if os.environ.get("CI"):
            pytest.fail("docker-compose is missing")
        pytest.skip("docker-compose is missing")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.run(
        ["docker-compose", "config", *options],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        check=False,
        text=True,
    )


def test_every_dependency_is_pinned() -> None:
    engine, local = read_pins("engine/requirements.txt"), read_pins("engine/local/requirements.txt")
    everything = read_pins("simulation/requirements.txt")
    assert read_extra(None) <= engine.keys()
    assert add_needs(read_extra("local")) - {"setuptools"} <= engine.keys() | local.keys()
    assert read_extra("local") | read_extra("simulation") | read_extra("dev") <= everything.keys()
    assert engine.items() | local.items() <= everything.items()


def plan_make(root: Path, target: str) -> str:
    """What make would run for a target."""
    planned = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target],
        cwd=root,
        capture_output=True,
        check=True,
        text=True,
    )
    return planned.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that make looks at, an hour old."""
    for name in ("Makefile", "pyproject.toml", *REQUIREMENTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (time.time() - 3_600,) * 2)
    return tmp_path


def set_up(checkout: Path, *stamps: str) -> None:
    (checkout / ".venv").mkdir()
    for age_s, stamp in enumerate(reversed(stamps)):
        (checkout / ".venv" / stamp).touch()
        os.utime(checkout / ".venv" / stamp, (time.time() - 60 - age_s,) * 2)


def test_what_serves_is_installed_without_the_simulation(checkout: Path) -> None:
    serve = plan_make(checkout, "serve")
    assert "-r engine/requirements.txt -r engine/local/requirements.txt" in serve
    assert "simulation/" not in serve
    set_up(checkout, ".engine")
    assert "pip install" not in plan_make(checkout, "serve")
    for target in ("spike", "test"):
        planned = plan_make(checkout, target)
        assert "-r simulation/requirements.txt" in planned
        assert "-r engine/requirements.txt" not in planned


@pytest.mark.parametrize("name", ["pyproject.toml", *REQUIREMENTS])
def test_a_changed_requirement_is_noticed(checkout: Path, name: str) -> None:
    set_up(checkout, ".engine", ".simulation")
    assert "pip install" not in plan_make(checkout, "serve") + plan_make(checkout, "spike")
    (checkout / name).touch()
    assert "-r simulation/requirements.txt" in plan_make(checkout, "spike")
    serve = plan_make(checkout, "serve")
    assert ("-r engine/requirements.txt" in serve) == (name != "simulation/requirements.txt")
    assert "-r simulation/requirements.txt" not in serve


def test_the_engine_names_no_module_that_it_does_not_ship() -> None:
    shipped = importable(set(read_pins("engine/requirements.txt"))) | sys.stdlib_module_names | {"engine"}
    local = importable(read_extra("local"))
    for module, path in modules_of("engine"):
        allowed = shipped | local if module.startswith("engine.local") else shipped
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            foreign = {name for name in names if name.partition(".")[0] not in allowed}
            assert not foreign, f"{module} imports {foreign}"


def test_what_the_engine_reads_at_run_time_is_in_its_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, patterns in data.items()
        for folder in (
            {init.parent for init in (ROOT / "engine").rglob("__init__.py")}
            if package == "*"
            else [ROOT.joinpath(*package.split("."))]
        )
        for pattern in patterns
        for path in folder.glob(pattern)
    }
    wanted = {path for kind in ("lua", "sql", "json") for path in (ROOT / "engine").rglob(f"*.{kind}")}
    assert {path for path in wanted - packaged if "tests" not in path.parts} == set()


@pytest.mark.slow
@pytest.mark.parametrize("with_local", [False, True], ids=["engine", "engine.local"])
def test_the_engine_loads_with_its_own_dependencies_alone(with_local: bool) -> None:
    allowed = importable(set(read_pins("engine/requirements.txt"))) | {"engine"}
    if with_local:
        allowed |= importable(add_needs(read_extra("local")))
    modules = [name for name, _ in modules_of("engine") if name.startswith("engine.local") == with_local]
    loaded = subprocess.run(
        [sys.executable, "-c", GUARDED_IMPORT, *allowed, "--", *modules],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize("package", ["engine", "simulation"])
def test_no_room_is_crowded_and_no_module_is_long(package: str) -> None:
    paths = [path for _, path in modules_of(package)]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in paths
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}
    rooms = Counter(str(path.parent.relative_to(ROOT)) for path in paths if path.name != "__init__.py")
    assert {room: modules for room, modules in rooms.items() if modules > MOST_MODULES} == {}


@pytest.mark.slow
def test_a_clone_as_git_makes_it_on_windows_has_the_same_bytes(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    git = ["git", "-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    clone = [*git, "clone", "--quiet", "--depth=1", f"file://{ROOT}", str(tmp_path / "clone")]
    subprocess.run(clone, check=True)
    for name in ("Makefile", ".ci/run", "engine/gate/reserve.lua", "reports/reference/timeline.csv"):
        show = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, check=True)
        assert (tmp_path / "clone" / name).read_bytes() == show.stdout, name


@pytest.mark.slow
def test_the_compose_file_is_accepted_and_has_the_cluster_in_a_profile() -> None:
    accepted = run_compose(FLASHGRID_ADMIN_TOKEN="a-token-of-sixteen")
    assert accepted.returncode == 0, accepted.stderr
    parts = re.split(r"^  (?=\S)", accepted.stdout.partition("services:\n")[2], flags=re.MULTILINE)
    services = {part.partition(":")[0]: part for part in parts if "image:" in part or "build:" in part}
    single = {"front-door", "relay", "fulfilment", "redis", "rabbitmq", "postgres"}
    assert {name for name, text in services.items() if "profiles:" not in text} == single
    assert {name for name, text in services.items() if "- cluster\n" in text} == services.keys() - single
    assert len(services) == 26


@pytest.mark.slow
def test_the_compose_file_asks_for_an_admin_token() -> None:
    refused = run_compose("--quiet")
    assert refused.returncode != 0
    assert "FLASHGRID_ADMIN_TOKEN" in refused.stderr


@pytest.mark.parametrize("file", OPS_FILES)
def test_files_for_operators_name_settings_that_exist(file: str) -> None:
    known = {PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)}
    named = set(re.findall(rf"{PREFIX}\w+", (ROOT / file).read_text()))
    assert named
    assert {name.removesuffix("_FILE") for name in named} <= known


def test_the_top_level_holds_no_strays() -> None:
    assert {Path(name).parts[0] for name in tracked_files()} <= TOP_LEVEL


def test_no_tracked_file_names_a_registry() -> None:
    assert [name for name in tracked_files() if REGISTRIES.search((ROOT / name).read_bytes())] == []


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"[a-z_]+(?:/[a-z_]+)*/[a-z_]+\.(?:py|lua|sql|toml)\b", text))
    assert len(named) > 30
    places = [ROOT, ROOT / "engine", ROOT / "simulation"]
    assert {name for name in named if not any((place / name).is_file() for place in places)} == set()


def test_the_judge_opens_no_file() -> None:
    calls = re.compile(r"\bopen\(|\.read_[a-z]+\(|\bread_(?:csv|parquet|json)\b|\.to_(?:csv|parquet|json)\(")
    files = (ROOT / "simulation" / "judge").rglob("*.py")
    assert [str(file.relative_to(ROOT)) for file in files if calls.search(file.read_text())] == []
