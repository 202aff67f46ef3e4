"""Numbers, faults and runs in words, for pages and terminals. Loads nothing heavy."""

import shlex
from collections.abc import Mapping
from typing import Any, Final

FAULTS: Final = {
    "kill": "killed and started again",
    "stop": "paused and resumed",
    "restart": "shut down in order and started again",
    "latency": "every byte delayed",
    "cut": "connections reset and refused",
    "freeze": "bytes held back",
    "drop_replies": "some answers dropped",
    "bandwidth": "throughput limited to a trickle",
    "drop_connections": "every connection closed",
    "out_of_memory": "writes refused for want of memory",
    "disk_full": "writes refused for want of disk",
    "read_only": "every write refused",
    "no_connections": "every connection slot taken",
    "flush": "all data deleted",
    "wipe": "killed and started again without its files",
    "rollback": "killed and started again with older files",
    "failover": "killed and replaced by a stale replica",
    "partition": "cut off from the other machines",
    "partition_in": "cut off from what other machines send",
    "partition_out": "not heard by the other machines",
    "switchover": "primary handed over in order",
    "command": "a command of one's own",
}
"""What each kind of fault (simulation.scenario.fault) does to its component."""
FLASHGRID: Final = "flashgrid"
ROLES: Final = "its ledger is the orders that its witness shows"
"""What a word means of an engine that is not ours."""
OUTCOMES: Final = {
    "accepted": "accepted",
    "sold_out": "sold out",
    "rejected": "refused otherwise",
    "error": "unavailable",
    "unknown": "unknown",
}
"""What a page calls the outcomes of a summary."""


def count(value: float | None) -> str:
    """Return a whole number with thousands separators, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def ms(value: float | None) -> str:
    """Return milliseconds with three digits in the unit that suits them, or a dash."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1e3:.3g} µs"
    return f"{value:.3g} ms" if value < 1e3 else f"{value / 1e3:.3g} s"


def seconds(value: float | None) -> str:
    """Return seconds with three digits in the unit that suits them, or a dash."""
    return ms(None if value is None else value * 1e3)


def figure(value: float, unit: str) -> str:
    """Return a metric's value in its unit (simulation.scenario.condition)."""
    if unit in ("ms", "s"):
        return ms(value) if unit == "ms" else seconds(value)
    digits = f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{digits} {unit}".rstrip()


def short(value: float) -> str:
    """Return 12,500 as 12.5k, for axes."""
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"


def percent(change: float) -> str:
    """Return a change in percent; from tenfold on as a factor, which reads better."""
    return f"{change:+.1f}%" if change < 900 else f"×{1 + change / 100:,.0f}"


def name_questions(check: Mapping[str, Any], folder: str = "RUN") -> list[str]:
    """Return the commands that tell more of what breaks a rule; none where it names nothing to ask about."""
    named = [each.partition(" ") for each in check.get("named", ())]
    return [
        shlex.join(["flashsim", "explain", folder, kind, one])
        for kind, _, one in named
        if kind in ("order", "op", "user")
    ]


def describe_reads(kind: str, reads: Mapping[str, Any]) -> str:
    """Return how many reads of a kind there were, and how they ended."""
    seen = (
        f" of {count(reads['orders'])}, {count(reads['final'])} seen to their end" if kind == "order" else ""
    )
    ended = ("not_found", "unavailable", "invalid", "unknown")
    others = "".join(f", {count(reads[word])} {word.replace('_', ' ')}" for word in ended if reads[word])
    return f"{kind}: {count(reads['requests'])}{seen}{others}"


def describe(summary: Mapping[str, Any], folder: str = "RUN") -> str:
    """Return the verdict of a run, in that folder, and its main numbers, in a few lines for a terminal."""
    load, stock, ledger = (summary[part] for part in ("load", "stock", "fulfilment"))
    foreign = summary.get("engine", FLASHGRID) != FLASHGRID
    lines = [
        f"{summary['verdict'].upper()}: {summary['verdict_in_words']}",
        *([f"  engine    {summary['engine']}; {ROLES}"] if foreign else []),
        *(f"  the description may not fit this engine: {words}" for words in summary.get("misfits", ())),
        *([f"  the load is not valid: {load['reason']}"] if not load["valid"] else []),
        *(
            line
            for check in [*summary["checks"], *summary["thresholds"]]
            if check["state"] in ("broken", "not judged")
            for line in (
                f"  {check['name']} is {check['state']}: {check['detail']}",
                *(f"    ask: {command}" for command in name_questions(check, folder)[:1]),
            )
        ),
        *(f"  the {part} could not be read: {why}" for part, why in summary["unread"].items()),
        f"  load      {count(load['requests'])} requests in {summary['duration_s']:g} s,"
        f" {count(load['offered_rps'])}/s offered, {count(load['achieved_rps'])}/s achieved,"
        f" lag p99 {ms(load['late_p99_ms'])}",
        "  outcomes  "
        + ", ".join(f"{count(number)} {OUTCOMES[word]}" for word, number in summary["outcomes"].items()),
    ]
    for word, latency in summary["latency_ms"].items():
        if latency["response"]["p50"] is not None:
            times = ", ".join(
                f"{name} {ms(value)}{'†' * (f'{word}.response.{name}' in summary['marks'])}"
                for name, value in latency["response"].items()
            )
            lines.append(f"  response  {OUTCOMES[word]}: {times}")
    if summary["marks"]:
        lines.append(f"  in doubt  † {'; '.join(dict.fromkeys(summary['marks'].values()))}")
    if (machine := summary["meanwhile"])["disturbed"]:
        lines.append(
            f"  machine   {machine['stolen_percent']:.1f}% of the processor time was stolen,"
            f" at most {machine['stolen_most_percent']:.0f}%: no time here is the engine's alone"
        )
    lines.append(
        f"  stock     {count(stock['initial'])} units, {count(stock['sold'])} sold,"
        f" {count(stock['remaining'])} left, {count(stock['oversold'])} oversold"
    )
    if (retries := summary["retries"])["requests"]:
        lines.append(
            f"  retries   {count(retries['requests'])} by {count(retries['clients'])} clients,"
            f" {count(retries['accepted_later'])} accepted then; bought again:"
            f" {count(retries['keyed_bought_again'])} with a key,"
            f" {count(retries['unkeyed_bought_again'])} without"
        )
    for kind, reads in summary.get("reads", {}).items():
        times = ", ".join(f"{name} {ms(value)}" for name, value in reads["latency_ms"]["response"].items())
        lines.append(f"  reads     {describe_reads(kind, reads)}: {times}")
    if "bots_units" in (fairness := summary["fairness"]):
        lines.append(
            f"  bots      {count(fairness['bots_heads'])} made {count(fairness['bots_requests'])} requests"
            f" and won {count(fairness['bots_units'])} units; {count(fairness['people_heads'])} people made"
            f" {count(fairness['people_requests'])} and won {count(fairness['people_units'])}"
        )
    drained = "not drained" if ledger["drained_s"] is None else f"drained in {ledger['drained_s']:.2f} s"
    lines.append(
        f"  ledger    {count(ledger['confirmed'])} confirmed, {count(ledger['failed'])} failed,"
        f" {count(ledger['rejected'])} rejected, delay p99 {ms(ledger['lag_p99_ms'])}, {drained},"
        + (f" bus: {ledger['bus']}" if ledger["bus"] != "none" else " no bus")
    )
    for restock in summary["restocks"]:
        took_s = restock["sold_out_after_s"]
        lines.append(
            f"  restock   {count(restock['stock'])} units of product {restock['product_id']} at"
            f" {restock['at_s']:.2f} s, {count(restock['sold'])} sold, "
            + ("not sold out" if took_s is None else f"sold out after {took_s:.2f} s")
        )
    if knee := summary["knee"]:
        where = "not reached" if knee["rps"] is None else f"at {count(knee['rps'])}/s offered"
        lines.append(
            f"  knee      {where}, plateau p99 {ms(knee['plateau_p99_ms'])},"
            f" most achieved {count(knee['achieved_max_rps'])}/s"
        )
    for fault in summary["faults"]:
        back = "never recovered" if fault["healed_s"] is None else f"recovered in {fault['healed_s']:.1f} s"
        span = f"{fault['start_s']:.2f} to {fault['end_s']:.2f} s"
        failed = f"; its command failed: {fault['failed']}" if fault.get("failed") else ""
        hit = f" ({', '.join(fault['hit'])})" if fault.get("hit") else ""
        lines.append(f"  fault     {fault['kind']} {fault['on']}{hit}, {span}: {back}{failed}")
    return "\n".join(lines)
