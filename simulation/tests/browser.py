"""Pages, as a browser shows them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def open_page(page: Path, scratch: Path) -> str:
    """The document that headless Chromium makes of the page, in the width of a phone.

    The page may load nothing: fails if it tries, or if its console shows an error.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium")
        pytest.skip("no Chromium")
    # What the page tries to get in spite of the policy ends up in the log.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    meta = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">'
    text = page.read_text().replace("<head>", meta, 1)
    guarded = scratch / f"guarded-{page.name}"
    guarded.write_text(text)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr",
        f"--user-data-dir={scratch / 'profile'}", "--window-size=390,844",
    ]  # fmt: skip
    done = subprocess.run(
        [browser, *options, "--dump-dom", guarded.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "Content Security Policy" not in done.stderr
    assert ":CONSOLE" not in done.stderr
    return done.stdout
