"""JUnit's XML, as build servers read it: a test case for each rule and each threshold of a run."""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final
from xml.etree import ElementTree as Xml

from simulation.judge.figures import Run

_RESULTS = {"broken": "failure", "not judged": "error", "not exercised": "skipped"}
"""The element by which JUnit says that a test did not pass, by the state of a check."""
_NO_XML: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]"  # and U+FFFE and U+FFFF
    rb"|&#(?:55(?:29[6-9]|[3-9]\d\d)|56\d{3}|57(?:[0-2]\d\d|3[0-3]\d|34[0-3]));"  # half of a surrogate pair
)
"""What XML can't hold in any form; the order ids of another engine may have it."""


def write_junit(runs: Sequence[Run]) -> bytes:
    """Return runs as JUnit: a suite for each. A run whose load was not as planned has a case that says so."""
    root = Xml.Element("testsuites", name="flashsim")
    for run in runs:
        root.append(_make_suite(run))
    Xml.indent(root)
    output = BytesIO()
    Xml.ElementTree(root).write(output, encoding="utf-8", xml_declaration=True)
    return _NO_XML.sub(b"?", output.getvalue()) + b"\n"


def _make_suite(run: Run) -> Xml.Element:
    summary = run.summary
    cases = [
        *(_make_case(check, f"{summary['scenario']}.rules") for check in summary["checks"]),
        *(_make_case(check, f"{summary['scenario']}.thresholds") for check in summary["thresholds"]),
    ]
    if not summary["load"]["valid"]:
        late = {"name": "the load is as planned", "state": "not judged", "detail": summary["load"]["reason"]}
        cases.append(_make_case(late, f"{summary['scenario']}.load"))
    found = [case.find(word) is not None for word in _RESULTS.values() for case in cases]
    counts = [sum(found[place : place + len(cases)]) for place in range(0, len(found), len(cases))]
    suite = Xml.Element(
        "testsuite",
        name=run.name,
        tests=str(len(cases)),
        failures=str(counts[0]),
        errors=str(counts[1]),
        skipped=str(counts[2]),
        time=f"{summary['duration_s']:g}",
        timestamp=summary["started_at"].removesuffix("Z"),
    )
    properties = Xml.SubElement(suite, "properties")
    for name in ("scenario", "seed", "commit", "command", "verdict"):
        Xml.SubElement(properties, "property", name=name, value=str(summary[name]))
    suite.extend(cases)
    return suite


def _make_case(check: Mapping[str, Any], group: str) -> Xml.Element:
    case = Xml.Element("testcase", classname=group, name=check["name"], time="0")
    if (word := _RESULTS.get(check["state"])) is not None:
        result = Xml.SubElement(case, word, message=check["detail"])
        if word != "skipped":
            result.set("type", check["state"])
            result.text = "\n".join(filter(None, [check.get("meaning"), *check.get("named", ())]))
    else:
        Xml.SubElement(case, "system-out").text = check["detail"]
    return case
