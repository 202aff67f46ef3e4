"""The soak: the chaos scenario with seed after seed, until a run does not pass or the time is over."""

import time
from itertools import count
from pathlib import Path
from typing import Any

from simulation.campaign.series import describe_run, judge_one
from simulation.run import Say
from simulation.scenario.loading import load_scenario
from simulation.target.services import Services


async def soak(minutes: float, first_seed: int, folder: Path, services: Services, say: Say) -> dict[str, Any]:
    """Run the chaos scenario, seed after seed, for so many minutes.

    Returns the last run's summary. If it does not pass, its record is in `folder`.
    """
    deadline = time.monotonic() + 60 * minutes
    for seed in count(first_seed):
        command = f"flashsim run chaos --seed {seed}"
        summary = await judge_one(load_scenario("chaos", seed=seed), folder, services, command)
        say(f"seed {seed}: {describe_run(summary)}")
        if summary["verdict"] != "pass":
            say(f"replay it with: {command}")
        if summary["verdict"] != "pass" or time.monotonic() >= deadline:
            break
    return summary
