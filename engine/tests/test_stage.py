"""A stage's process prepares itself for a crowd."""

import resource
import subprocess
import sys

LOWERED = """
import resource
from engine.stage import raise_file_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_the_front_door_may_hold_as_many_connections_as_the_hard_limit_of_open_files_allows() -> None:
    done = subprocess.run([sys.executable, "-c", LOWERED], capture_output=True, text=True, check=True)
    said, found = map(int, done.stdout.split())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert said == found
    assert found == (1_000_000 if hard == resource.RLIM_INFINITY else min(hard, 1_000_000))
