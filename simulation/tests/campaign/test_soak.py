"""The pages of a soak link the runs that are kept, and those alone."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from simulation.campaign.suite import Soak, SoakRun
from simulation.report.page import write_tables

RUN = SoakRun(
    seed=101, folder="seed-101", verdict="pass", verdict_in_words="All rules hold.", faults=["kill redis"],
    accepted=10, refused=1, unknown=0, sold=10, oversold=0, healed_s=0.9, drained_s=0.03,
)  # fmt: skip


def test_a_run_that_is_not_kept_has_no_link(tmp_path: Path) -> None:
    dropped = msgspec.structs.replace(RUN, seed=102, folder="")
    soak = Soak(
        command="flashsim soak", started_at=datetime(2026, 1, 2, tzinfo=UTC), commit="abc",
        machine={"cpu": "a processor", "cores": 2}, runs=[RUN, dropped],
    )  # fmt: skip
    write_tables("soak", soak, tmp_path, good=2, total=2)
    for page, kept in (("soak.html", 'href="seed-101/report.html"'), ("soak.md", "(seed-101/report.html)")):
        text = (tmp_path / page).read_text()
        assert kept in text
        assert text.count("report.html") == 1
        assert "102" in text
