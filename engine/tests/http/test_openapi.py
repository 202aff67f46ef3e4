"""The engine keeps what its OpenAPI document says, whatever is asked: statuses, content types and schemas."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import engine
from engine.settings import Settings
from engine.tests.test_server import serving

DOCUMENT = Path(engine.__file__).parent / "http" / "openapi.json"
EXAMPLES = 25
"""Generated requests an operation and phase; the document's own borders come on top of them."""

# Data that the document allows may be refused for what it can't say: a sale that is over, one that ends
# before it starts, a whole number that is written 1.0.
NOT_CHECKED = "positive_data_acceptance"


async def test_every_answer_is_as_documented(settings_without_bus: Settings, tmp_path: Path) -> None:
    """Borders of every parameter, generated good and bad data, methods that are not there, and chains of
    requests along the document's links."""
    async with serving(settings_without_bus) as server:
        checked = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable, "-m", "schemathesis.cli", "run", str(DOCUMENT), f"--url={server.url}",
                "--phases=coverage,fuzzing,stateful", "--checks=all",
                f"--exclude-checks={NOT_CHECKED}", f"--max-examples={EXAMPLES}", "--generation-deterministic",
                "--continue-on-failure", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    generated = re.search(r"(\d+) generated, \1 passed", checked.stdout)
    assert generated, checked.stdout
    assert int(generated[1]) > 5 * EXAMPLES
    assert "Tested: 8" in checked.stdout
