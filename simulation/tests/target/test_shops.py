"""Shops of other kinds are judged by what their descriptions say, and an oversell of theirs is found."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import copy

import pytest

from simulation.scenario.loading import load_scenario
from simulation.target.foreign.engine import find_engine
from simulation.target.witness import trial
from simulation.tests.drive.test_open_loop import free_port
from simulation.tests.target.shops import token_of
from simulation.tests.target.test_foreign import is_open, judge, states
from simulation.tests.test_run import PATIENT

pytestmark = pytest.mark.slow

SHOPS = Path(__file__).with_name("shops.py")
READS = {"stock_share": 0.1, "order_share": 0.5, "pause_ms": 50, "most": 3}


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, signed by an authority of its own, which is ca.pem."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl(*new, "-subj", "/CN=shop authority", "-keyout", "ca.key", "-out", "ca.pem")
    leaf = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "key.pem", "-out", "cert.pem"]
    openssl(*new, "-subj", "/CN=shop", *leaf, *signed)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@asynccontextmanager
async def shop(*words: str) -> AsyncIterator[int]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, SHOPS, str(port), *words)
    try:
        await is_open(port)
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    ("kind", "word"),
    [("graphql", ""), ("rest", ""), ("text", ""), ("graphql", "oversell"), ("text", "fumble")],
)
async def test_a_shop_of_another_kind_is_judged(
    tmp_path: Path, authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str, word: str
) -> None:
    monkeypatch.setattr(trial, "PATIENCE_S", 0.0)
    (tmp_path / "tokens.csv").write_text("\n".join(map(token_of, range(1, 301))))
    file = copy(SHOPS.with_name(f"shop_{kind}.toml"), tmp_path)
    words, scheme = [word], "http"
    if kind == "rest":
        words, scheme = ["https", *map(str, authority)], "https"
    changes = PATIENT | {"thresholds": [], "population.users": 300, "population.keyed_share": 0.5}
    scenario = load_scenario(
        "spike", changes | {"population.reads": READS}, rate_rps=200, duration_s=1, stock=30
    )
    said: list[str] = []
    async with shop(kind, *words) as port:
        url = f"{scheme}://127.0.0.1:{port}"
        summary = await judge(scenario, tmp_path / "run", find_engine(str(file), None), url, said.append)
    assert summary["outcomes"]["accepted"] == (35 if word == "oversell" else 30)
    wrong = ["stock: remaining is 1 after a purchase of one, of a sale of 3 units; it should be 2"]
    assert summary["misfits"] == (wrong if word == "fumble" else [])
    assert bool([line for line in said if "purchase" in line]) == (word == "fumble")
    found = states(summary)
    broken = [name for name, state in found.items() if state == "broken"]
    if word == "fumble":
        assert (broken, summary["verdict"]) == (["the purchase before the load"], "fail")
    elif word:
        assert "no oversell" in broken
    else:
        assert broken == []
        held = ("accepted is settled", "units are conserved", "no oversell")
        assert {found[name] for name in held} == {"held"}
