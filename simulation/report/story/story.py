"""What a story is, and how it reads in a terminal."""

from textwrap import fill

import msgspec

from simulation.report.page import MARKS, STATES


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""

    what: str
    words: str
    at_s: float | None = None
    """Seconds from the run's start; None where the record has no time for it."""
    after_s: float | None = None
    """What came before it, by another clock or where it has no time: it stands after this."""

    @property
    def place_s(self) -> float:
        """Where the step stands among the others."""
        known = [moment for moment in (self.at_s, self.after_s) if moment is not None]
        return max(known, default=float("inf"))


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that looked at it."""

    rule: str
    state: str
    """Of the rule, in the whole run."""
    breaches: list[str] = []
    """How this very thing breaks it."""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, in the order in which it happened, and the rules that looked at it."""

    title: str
    steps: list[Step]
    looks: list[Look] = []
    more: list[str] = []
    """What else can be asked of the same run."""


def sort_steps(steps: list[Step]) -> list[Step]:
    """Return the steps in the order in which they happened; steps of one moment keep their order."""
    return sorted(map(_simplify, steps), key=lambda step: step.place_s)


def _simplify(step: Step) -> Step:
    """Return the step with Python's own floats in place of numpy's, which JSON can't take."""
    at_s, after_s = (None if moment is None else float(moment) for moment in (step.at_s, step.after_s))
    return msgspec.structs.replace(step, at_s=at_s, after_s=after_s)


def write_story(story: Story) -> str:
    """Return a story as text for a terminal."""
    width = max((len(step.what) for step in story.steps), default=0)
    lines = [story.title, ""]
    for step in story.steps:
        when = "" if step.at_s is None else f"{step.at_s:.4f} s"
        lines.append(f"{when:>12}  {step.what:{width}}  {step.words}".rstrip())
    if story.looks:
        lines += ["", "rules that looked at it", *_write_looks(story.looks)]
    if story.more:
        lines += ["", "ask also", *(f"  {each}" for each in story.more)]
    return "\n".join(lines)


def _write_looks(looks: list[Look]) -> list[str]:
    """Return a line for each rule that is broken, and one for each other state."""
    lines = [
        f"  {MARKS['fail']} {look.rule}: "
        + (f"broken by it: {'; '.join(look.breaches)}" if look.breaches else "broken, but not by it")
        for look in looks
        if look.state == "broken"
    ]
    for state, mark in STATES.items():
        if state != "broken" and (rules := [look.rule for look in looks if look.state == state]):
            words = f"  {MARKS[mark]} {state}: {', '.join(rules)}"
            lines.append(fill(words, 110, subsequent_indent=" " * 4))
    return lines
