"""The command `flashsim`: what it answers, by what exit code, and that a signal stops all that it started."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from click.testing import CliRunner, Result

from engine.settings import PREFIX, Settings
from simulation.cli.commands import main
from simulation.cli.shared import repeat_command
from simulation.target.engine_process import start_engine
from simulation.target.services import Services

FLASHSIM = (sys.executable, "-c", "from simulation.cli import main; main()")
SMALL = ("--rate=2000", "--duration=1", "--stock=100")
# What this machine has time for, while it runs the tests, says nothing about the engine.
PATIENT = (
    "--set=driver.late_p99_ms=60000",
    "--set=driver.timeout_ms=60000",
    "--set=driver.connections=200",
    "--set=driver.connections_may_run_out=true",
)
STOPPED_S = 60


def flashsim(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments], catch_exceptions=False)


def urls_of(settings: Settings) -> list[str]:
    return [
        f"--redis-url={settings.redis_url}",
        f"--amqp-url={settings.amqp_url}",
        f"--postgres-url={settings.postgres_url}",
    ]


def plain_environment(**additions: str) -> dict[str, str]:
    """A shell's without settings of an engine."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | additions


async def run_flashsim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """flashsim as a process of its own."""
    command = [*FLASHSIM, *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, cwd=cwd, env=plain_environment(), capture_output=True, text=True, check=False
    )


def runs(process: psutil.Process) -> bool:
    """Whether it lives: a dead child of a dead parent may wait a moment for the system to bury it."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_it_lists_the_scenarios_with_their_texts() -> None:
    result = flashsim("list")
    assert result.exit_code == 0
    assert "spike" in result.stdout
    assert "A crowd that waited" in result.stdout


def test_the_help_has_every_command_in_one_of_four_groups() -> None:
    said = flashsim("--help").stdout
    titles = ["Run a scenario", "Look at what was recorded", "Prove that the engine is correct", "Measure"]
    assert [line.rstrip(":") for line in said.splitlines() if line.rstrip(":") in titles] == titles
    for name, command in main.commands.items():
        assert f"  {name} " in said
        assert f"{command.get_short_help_str(90)}\n" in said, f"the help of {name} is cut short"


def test_a_scenario_is_shown_as_it_would_be_run() -> None:
    shown = flashsim(
        "show", "spike", "--seed=4", "--rate=100", "--stock=7", "--set=population.users=5"
    ).stdout
    assert " requests in 30 s for 7 units, seed 4" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "flood"], "no scenario 'flood'; there are: "),
        (["rnu"], "No such command 'rnu' (did you mean 'run'?)"),
        (["run", "--set", "sales.0.stock"], "must be key=value"),
        (["run", "--set", "sales.0.stok=1"], "sales.0.stok: there is no such key"),
        (["run", "--stock", "-1"], "sales.0.stock"),
        (["run", "--rate", "0"], "rate: must be greater than 0"),
        (["run", "--workers", "0"], "engine.workers"),
        (["run", "--workers", "2", "--target", "http://127.0.0.1:9"], "--workers"),
        (["run", "--redis-url", "redis://127.0.0.1:9"], "give all their URLs"),
        (["run", "--redis-url", "http://127.0.0.1:9"], "must begin with redis://"),
        (["run", "--target", "127.0.0.1:8080"], "must look like http://host:port"),
        (["run", "--target", "http://127.0.0.1:9"], "can't be reached"),
        (["mutants", "unheard-of"], "no mutation 'unheard-of'; there are: "),
        (["matrix", "--only", "kill:nginx"], "there is no 'kill:nginx'; there are kill:front-door, "),
        (["matrix", "--pairs", "--only", "kill+wips"], "there is no 'kill+wips'; there are kill+kill, "),
        (["matrix", "--seed", "2"], "--seed is for --pairs"),
        *(
            (["run", "--target", url], f"{url}: must look like http://host:port")
            for url in ("http://[::1", "http://h:99999", "http://h:1/?a=1", "http://a b:1")
        ),
        (["run", f"--set=seed={'9' * 5_000}"], "--set seed: a number has thousands of digits"),
        (["run", f"--set=seed={'[' * 3_000}"], "--set seed: a number has thousands of digits"),
        (["run", f"--set={'a.' * 3_000}a=1"], "a: there is no such key"),
        (["run", "--set=text=\udcff"], "--set text: its value is no text in UTF-8"),
        (["capacity", "nowhere", "--crowd", "nan"], "--crowd': nan is not a number"),
        (["interleave", "--only", "no-such"], "there is no 'no-such'; there are "),
        (["export", "nowhere", "--format=json", "--out=."], "'.' is a directory"),
        (["soak", "--minutes", "inf"], "--minutes': inf is not a number"),
        (["verify", "nowhere"], "nowhere: is not the folder of a run"),
        (["report", "nowhere"], "nowhere: is not the folder of a run"),
    ],
)
def test_an_error_of_use_is_one_clear_line_and_exit_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = flashsim(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_the_command_that_repeats_a_run_keeps_what_is_zero() -> None:
    with main.commands["interleave"].make_context("interleave", ["--minutes=0", "--seed=0", "--only=a"]):
        assert repeat_command() == "flashsim interleave --minutes 0.0 --seed 0 --only a"


def test_a_bad_setting_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLASHGRID_REDIS", "redis://127.0.0.1:9")
    result = flashsim("run", "--target", "http://127.0.0.1:9")
    assert (result.exit_code, "FLASHGRID_REDIS" in result.stderr) == (2, True)


async def test_a_run_against_a_target(settings: Settings, tmp_path: Path) -> None:
    services = Services(
        redis_url=settings.redis_url or "",
        postgres_url=settings.postgres_url or "",
        amqp_url=settings.amqp_url,
    )
    engine_settings = {"admin_token": "open-sesame-please", "gate_shards": 3}
    async with start_engine(services, engine_settings, tmp_path / "engine.log") as engine:
        target = ("run", f"--target={engine.url}", *SMALL, *PATIENT)
        token = "--admin-token=open-sesame-please"

        refused = await run_flashsim(*target, cwd=tmp_path)
        assert (refused.returncode, "--admin-token" in refused.stderr) == (2, True)

        # Twice, since a target outlives a run, and remembers its Idempotency-Keys.
        for name in ("first", "second"):
            known = (
                token,
                "--set=topology.shards=3",
                "--set=population.keyed_share=0.5",
                *urls_of(settings),
            )
            other = f"--target={engine.url}/"  # another front door, as far as a run can tell
            result = await run_flashsim(*target, other, *known, f"--out={name}", cwd=tmp_path)
            assert (result.returncode, "PASS: " in result.stdout) == (0, True), result.stdout + result.stderr
            assert f"{name}/report.html" in result.stdout

        blind = await run_flashsim(*target, token, "--out=blind", cwd=tmp_path)
        assert (blind.returncode, "UNKNOWN: " in blind.stdout) == (2, True)
        assert "services are not known" in blind.stdout

    summary = msgspec.json.decode((tmp_path / "first" / "summary.json").read_bytes())
    assert len(summary["front_doors"]) == 2
    recorded = (tmp_path / "first" / "run.json").read_text()
    assert "open-sesame-please" not in recorded
    assert "postgresql://" not in recorded

    order = flashsim("explain", str(tmp_path / "first"), "0").stdout
    assert ("order CONFIRMED" in order, "  reserved  1 unit of sale " in order) == (True, True), order
    verified = flashsim("verify", str(tmp_path / "first"))
    assert (verified.exit_code, "PASS: " in verified.stdout) == (0, True)
    report = tmp_path / "first" / "report.html"
    report.unlink()
    assert flashsim("report", str(tmp_path / "first")).exit_code == 0
    assert report.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_all_that_it_started(
    number: signal.Signals, stack_dir: Path, tmp_path: Path
) -> None:
    scratch = stack_dir / number.name
    scratch.mkdir()
    with subprocess.Popen(
        [*FLASHSIM, "run", "--duration=300", "--rate=200"],
        cwd=tmp_path,
        env=plain_environment(TMPDIR=str(scratch)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        seen = next((line for line in process.stdout if "accepted 1" in line), None)
        started = psutil.Process(process.pid).children(recursive=True)
        try:
            assert seen, "it ended before it was stopped"
            assert {"redis-server", "postgres", "beam.smp"} <= {child.name() for child in started}
            process.send_signal(number)
            said = process.stdout.read()
            assert process.wait(STOPPED_S) == 2
            left = [child for child in started if runs(child)]
        finally:
            for child in filter(runs, started):
                child.kill()
    assert left == []
    assert "interrupted: there is no verdict" in said
    assert list(scratch.iterdir()) == []
    assert list(tmp_path.glob("reports/*")) == []
