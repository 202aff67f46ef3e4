"""A run's verdict and main numbers in words, for a terminal."""

from collections.abc import Mapping
from typing import Any


def describe(summary: Mapping[str, Any]) -> str:
    """The verdict of a run in words, and its main numbers, in a few lines."""
    load, outcomes, stock, done = (summary[part] for part in ("load", "outcomes", "stock", "fulfilment"))
    lines = [
        f"{summary['verdict'].upper()}: {summary['verdict_in_words']}",
        *([f"  the load is not valid: {load['reason']}"] if not load["valid"] else []),
        *(
            f"  {check['name']} is broken: {check['detail']}"
            for check in [*summary["checks"], *summary["thresholds"]]
            if check["holds"] is False
        ),
        *(f"  the {part} could not be read: {why}" for part, why in summary["unread"].items()),
        f"  load      {load['requests']:,} requests in {summary['duration_s']:g} s,"
        f" {load['offered_rps']:,.0f}/s offered, {load['achieved_rps']:,.0f}/s achieved,"
        f" lag p99 {_ms(load['late_p99_ms'])}",
        "  outcomes  " + ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in outcomes.items()),
    ]
    for word, latency in summary["latency_ms"].items():
        if latency["response"]["p50"] is not None:
            times = ", ".join(f"{name} {_ms(value)}" for name, value in latency["response"].items())
            lines.append(f"  response  {word.replace('_', ' ')}: {times}")
    lines.append(
        f"  stock     {_count(stock['initial'])} units, {_count(stock['sold'])} sold,"
        f" {_count(stock['remaining'])} left, {_count(stock['oversold'])} oversold"
    )
    if (retries := summary["retries"])["requests"]:
        lines.append(
            f"  retries   {retries['requests']:,} by {retries['clients']:,} clients,"
            f" {retries['accepted_later']:,} accepted then; bought again:"
            f" {_count(retries['keyed_bought_again'])} with a key,"
            f" {_count(retries['unkeyed_bought_again'])} without"
        )
    if "bots_units" in (fairness := summary["fairness"]):
        lines.append(
            f"  bots      {fairness['bots_heads']:,} made {fairness['bots_requests']:,} requests and won"
            f" {fairness['bots_units']:,} units; {fairness['people_heads']:,} people made"
            f" {fairness['people_requests']:,} and won {fairness['people_units']:,}"
        )
    drained = "not drained" if done["drained_s"] is None else f"drained in {done['drained_s']:.2f} s"
    lines.append(
        f"  ledger    {_count(done['confirmed'])} confirmed, {_count(done['failed'])} failed,"
        f" {_count(done['rejected'])} rejected, lag p99 {_ms(done['lag_p99_ms'])}, {drained},"
        f" bus: {done['bus']}"
    )
    for restock in summary["restocks"]:
        took_s = restock["sold_out_after_s"]
        lines.append(
            f"  restock   {restock['stock']:,} units of product {restock['product_id']} at"
            f" {restock['at_s']:.2f} s, {_count(restock['sold'])} sold, "
            + ("not sold out" if took_s is None else f"sold out after {took_s:.2f} s")
        )
    if knee := summary["knee"]:
        where = "not reached" if knee["rps"] is None else f"at {knee['rps']:,.0f}/s offered"
        lines.append(
            f"  knee      {where}, plateau p99 {_ms(knee['plateau_p99_ms'])},"
            f" most achieved {knee['achieved_max_rps']:,.0f}/s"
        )
    for fault in summary["faults"]:
        healed = "never recovered" if fault["healed_s"] is None else f"recovered in {fault['healed_s']:.1f} s"
        span = f"{fault['start_s']:.2f} to {fault['end_s']:.2f} s"
        lines.append(f"  fault     {fault['kind']} {fault['on']}, {span}: {healed}")
    return "\n".join(lines)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"
