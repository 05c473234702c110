"""The sentences under a table that say what its numbers show: the order of the rows, tests, verdicts. Only from here on percent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pointsweep.reporting.table import Table
from pointsweep.statistics.paired_objects import ModelTest
from pointsweep.statistics.seeds import LEVEL, Difference, Summary
from pointsweep.utils.numbers import percent

LEGEND = (
    "order by mean; in brackets how far the row before is ahead, paired by seed, with its 95 % t-interval; "
    "> the seeds tell the two apart (paired t-test at 5 %, by Holm's correction over the column), ~ they do not"
)


def object_notes(table: Table) -> Iterator[str]:
    """What single models show object by object, and what one seed's number carries."""
    alone = [cell for cell in table.cells if cell.interval == "objects"]
    if alone:
        shown = ", ".join(f"{table.place(cell)} {percent(cell.low)} to {percent(cell.high)}" for cell in alone)
        yield f"one seed, 95 % interval over the test objects (Wilson), which knows nothing of other seeds: {shown}"
    for tests, column in zip(table.models, table.columns, strict=False):
        if tests:
            name = "exact signs of objects' net gains" if any(test.objects for test in tests) else "exact McNemar"
            yield f"{column}, models that differ object by object ({name}, mid-p, Holm): {models(tests)}"


def models(tests: Sequence[ModelTest]) -> str:
    """ "full against adapter 2 of 3 seeds, adapter against prompt 0 of 3 seeds (too few objects differ for a test in 1)"."""
    parts = []
    pairs: dict[tuple[str, str], list[ModelTest]] = {}
    for test in tests:
        pairs.setdefault((test.first, test.second), []).append(test)
    for pair, mine in pairs.items():
        differ = sum(test.adjusted is not None and test.adjusted < 1 - LEVEL for test in mine)
        untold = sum(test.p is None for test in mine)
        seeds = f"{differ} of {len(mine)} seed{'s' * (len(mine) > 1)}"
        parts.append(f"{' against '.join(pair)} {seeds}" + (f" (too few objects differ for a test in {untold})" if untold else ""))
    return ", ".join(parts)


def verdict_notes(table: Table) -> Iterator[str]:
    """What the published values were judged by, and the cells of each verdict."""
    yield from no_verdict_notes(table)
    judged = [(cell, cell.verdict) for cell in table.cells if cell.verdict is not None]
    if not judged:
        return
    margins = sorted({percent(found.margin) for _, found in judged})
    away = "" if table.protocol == "best_test" else "; papers choose the epoch on the test set, this table does not"
    yield (
        "verdicts on the paper's numbers: reproduced, the 90 % interval of the difference lies inside the margin; not, outside it; "
        f"margin ± {' to '.join(dict.fromkeys((margins[0], margins[-1])))}, the 95 % interval of one run on the test objects{away}"
    )
    for kind, title in (("reproduced", "reproduced"), ("not", "not reproduced"), ("undecided", "undecided")):
        mine = [(table.place(cell), found.reason) for cell, found in judged if found.kind == kind]
        if mine:
            yield f"{title}: {', '.join(place if kind == 'reproduced' else f'{place} ({reason})' for place, reason in mine)}"


def no_verdict_notes(table: Table) -> Iterator[str]:
    """The cells whose trials are no attempt at the paper's number, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for cell in table.cells:
        if cell.unjudged:
            by_reason.setdefault(cell.unjudged, []).append(table.place(cell))
    shown = sum(len(places) for places in by_reason.values())
    for reason, places in by_reason.items():
        everywhere = shown == len(places) and shown == sum(bool(cell.values) for cell in table.cells)
        yield f"no verdict on the paper's numbers: {'all cells' if everywhere else ', '.join(places)}: {reason}"


def spread(share: Summary) -> str:
    """The interval behind a mean, " (+1.2 to +5.0)", or why there is none."""
    if share.low is None or share.high is None:
        return " (one seed: no interval)"
    if not share.sd:
        return " (the same with every seed: no spread to judge by)"
    return f" ({percent(share.low, signed=True)} to {percent(share.high, signed=True)})"


def order(steps: Sequence[tuple[str, Difference | None]], column: str) -> str:
    """The rows from best to worst: "vit: adapter > prompt (+3.1, +1.2 to +5.0) ~ full (+0.4, -1.0 to +1.8)"."""
    differences = [step for _, step in steps[:-1]]
    if not differences:
        return ""
    if all(step is None or step.low is None for step in differences):
        return f"{column}: one seed shows no order"
    most = max(step.n for step in differences if step is not None)
    parts = [_step(step, following, most) for step, (following, _) in zip(differences, steps[1:], strict=True)]
    return f"{column}: {steps[0][0]}{''.join(parts)}"


def _step(step: Difference | None, following: str, most: int) -> str:
    """One arrow of the order; `most` is the number of seeds that the best covered pair shares."""
    if step is None:
        return f" ? {following} (no seed in common)"
    ahead = percent(step.mean, signed=True)
    if step.low is None or step.high is None:
        return f" ? {following} ({ahead}, one seed in common: no interval)"
    if step.constant:
        return f" ~ {following} ({f'{ahead} with' if step.mean else 'equal with'} every seed: no spread to judge by)"
    # Paired over the common seeds alone, the difference can point against the order of the means.
    sign = ("<" if step.high < 0 else ">") if step.resolved else "~"
    fewer = f", {step.n} seeds" if step.n < most else ""
    return f" {sign} {following} ({ahead}, {percent(step.low, signed=True)} to {percent(step.high, signed=True)}{fewer})"
