"""The sentences under a table that say what its numbers show: which rows are separable, tests,
verdicts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pointsweep.reporting.table import Table, TableCell
from pointsweep.statistics.all_pairs import Family, Pair
from pointsweep.statistics.paired_objects import ModelTest
from pointsweep.statistics.seeds import LEVEL, Summary, Verdict
from pointsweep.utils.numbers import decimals, percent

MOST_PAIRS = 6  # named in a sentence


def object_notes(table: Table) -> Iterator[str]:
    """Yield what single models show object by object, and what one seed's number carries."""
    intervals = []
    for cell in table.cells:
        if cell.interval == "objects":
            name = table.cell_name(cell)
            intervals.append(f"{name} {percent(cell.low)} to {percent(cell.high)}")

    if intervals:
        yield (
            "one seed, 95 % interval over the test objects (Wilson), which knows nothing of other"
            f" seeds: {', '.join(intervals)}"
        )

    for tests, column in zip(table.models, table.columns, strict=False):
        if not tests:
            continue

        name = "exact McNemar"
        if any(test.objects for test in tests):
            name = "exact signs of objects' net gains"

        yield (
            f"{column}, models that differ object by object ({name}, mid-p, Holm): {models(tests)}"
        )


def models(tests: Sequence[ModelTest]) -> str:
    """ "full against adapter 2 of 3 seeds, adapter against prompt 0 of 3 seeds (too few objects
    differ for a test in 1)".
    """
    tests_of: dict[tuple[str, str], list[ModelTest]] = defaultdict(list)
    for test in tests:
        tests_of[test.first, test.second].append(test)

    sentences = []
    for (first, second), tests_of_pair in tests_of.items():
        num_different = 0
        num_untested = 0
        for test in tests_of_pair:
            if test.p is None:
                num_untested += 1

            if test.adjusted is not None and test.adjusted < 1 - LEVEL:
                num_different += 1

        num_tests = len(tests_of_pair)
        seeds = "seed" if num_tests == 1 else "seeds"
        sentence = f"{first} against {second} {num_different} of {num_tests} {seeds}"

        if num_untested:
            sentence += f" (too few objects differ for a test in {num_untested})"

        sentences.append(sentence)

    return ", ".join(sentences)


def verdict_notes(table: Table) -> Iterator[str]:
    """Return what the published values were judged by, and each cell that has one: ours, theirs,
    difference, interval, margin, verdict.
    """
    yield from no_verdict_notes(table)
    judged = [(cell, cell.verdict) for cell in table.cells if cell.verdict is not None]

    if not judged:
        return

    caveat = ""
    if table.protocol != "best_test":
        caveat = "; papers choose the epoch on the test set, this table does not"

    yield (
        "against the paper's numbers: reproduced, the 90 % interval of the difference lies inside"
        " the margin; not reproduced, outside it; the margin is the 95 % interval of the paper's"
        f" number as one run on the test objects{caveat}"
    )
    for kind in ("reproduced", "not", "undecided"):
        for cell, verdict in judged:
            if verdict.kind == kind:
                yield f"{table.cell_name(cell)}: {against_the_paper(cell, verdict)}"


def against_the_paper(cell: TableCell, verdict: Verdict) -> str:
    """ "71.2 vs 90.0: -18.8 (90 % -26.6 to -10.9), margin 3.0: not reproduced"."""
    assert cell.published is not None
    mean, published = percent(cell.mean), cell.published.value
    over = "90 %"

    if verdict.basis == "objects" and cell.n == 1:
        over = "90 % over test objects, one result:"
    elif verdict.basis == "objects":
        over = "90 % over test objects, the same with every seed:"

    interval = f"{over} {points(verdict.low)} to {points(verdict.high)}"
    name = "not reproduced" if verdict.kind == "not" else verdict.kind
    return (
        f"{mean} vs {published}: {points(verdict.difference)} ({interval}), margin"
        f" {percent(verdict.margin)}: {name}"
    )


def no_verdict_notes(table: Table) -> Iterator[str]:
    """The cells whose trials are no attempt at the paper's number, by the reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for cell in table.cells:
        if cell.unjudged:
            by_reason[cell.unjudged].append(table.cell_name(cell))

    num_filled = sum(bool(cell.values) for cell in table.cells)
    for reason, names in by_reason.items():
        is_everywhere = len(by_reason) == 1 and len(names) == num_filled
        cells = "all cells" if is_everywhere else ", ".join(names)
        yield f"no verdict on the paper's numbers: {cells}: {reason}"


def spread(share: Summary) -> str:
    """The interval behind a mean, " (+1.2 to +5.0)", or why there is none."""
    if share.low is None or share.high is None:
        return " (one seed: no interval)"
    if not share.sd:
        return " (the same with every seed: no spread to judge by)"

    return f" ({percent(share.low, signed=True)} to {percent(share.high, signed=True)})"


def comparison_notes(table: Table) -> Iterator[str]:
    """Yield which rows and columns the seeds separate: a legend, then a paragraph for each
    column.
    """
    num_tests = 0
    for family in table.comparisons:
        num_tests += sum(pair.low is not None for pair in family.pairs)

    if num_tests:
        yield (
            "compared by Tukey's test of all pairs, paired by seed; the intervals and p of all"
            f" comparisons of the table ({num_tests}) hold at once, 5 % in all; what is not"
            " separable may differ all the same"
        )

    for family in table.comparisons:
        line = comparison(family)
        if line:
            yield line


def comparison(family: Family) -> str:
    """One family in words.

    "vit: dgcnn is best. Below it: pointnet -22.1 (-30.3 to -13.9, p .004). Not separable from it:
    point_nn. Detectable: 8.3 points (90 % power)."
    """
    if len(family.arms) < 2:
        return ""
    if all(pair.reason == "one seed in common" for pair in family.pairs):
        return f"{family.title}: one seed shows no order."

    top = family.arms[0]
    with_top = [pair for pair in family.pairs if pair.first == top]
    below, not_separable = [], []

    for pair in with_top:
        if pair.low is not None and pair.resolved:
            below.append(f"{pair.second} {_reversed(pair)}")
        elif pair.low is not None:
            not_separable.append(pair.second)

    claim = "is best" if len(below) == len(with_top) else "has the best mean"
    sentences = [f"{family.title}: {top} {claim}."]
    if below:
        sentences.append(f"Below it: {', '.join(below)}.")

    if not_separable:
        sentences.append(f"Not separable from it: {', '.join(not_separable)}.")

    sentences += _other_pairs(family)
    sentences += _without_test(family)
    if family.detectable is not None:
        # Of few seeds the formula can ask for more than an accuracy has.
        least = "more than 100" if family.detectable > 1 else percent(family.detectable)
        sentences.append(f"Detectable: {least} points (90 % power).")

    return " ".join(sentences)


def _other_pairs(family: Family) -> Iterator[str]:
    """Yield the sentence of the resolved pairs without the first arm, if there are any."""
    top = family.arms[0]
    others = [pair for pair in family.pairs if pair.resolved and pair.first != top]

    if not others:
        return

    sentences = []
    for pair in others[:MOST_PAIRS]:
        sentences.append(f"{pair.second} below {pair.first} {_reversed(pair)}")

    more = ""
    if len(others) > MOST_PAIRS:
        more = f" and {len(others) - MOST_PAIRS} more pairs (table.json)"

    yield f"Also: {', '.join(sentences)}{more}."


def _without_test(family: Family) -> Iterator[str]:
    """The pairs that carry no test, by the reason, and the arms about which nothing is claimed."""
    for arm in family.set_aside:
        verb = "collapsed" if arm.value < arm.usual else "stands far above its others"
        yield (
            f"{arm.arm}: seed {arm.seed} {verb} ({percent(arm.value)} against"
            f" {percent(arm.usual)}), so no test about it is made."
        )

    by_reason: dict[str, list[Pair]] = defaultdict(list)
    for pair in family.pairs:
        if pair.reason and pair.reason != "set aside":
            by_reason[pair.reason].append(pair)

    for reason, pairs in by_reason.items():
        more = ""
        if len(pairs) > MOST_PAIRS:
            more = f" and {len(pairs) - MOST_PAIRS} more pairs"

        names = "; ".join(_untested(pair) for pair in pairs[:MOST_PAIRS])
        yield f"{names}{more}: {WITHOUT_TEST[reason]}."


WITHOUT_TEST = {
    "no seed in common": "no seed in common, not compared",
    "one seed in common": "one seed in common, no test",
    "the same difference with every seed": "the same with every seed, no spread to judge by",
    "no spread to judge by": "no spread to judge by",
}


def _untested(pair: Pair) -> str:
    if pair.mean is None:
        return f"{pair.first} and {pair.second}"
    return f"{pair.second} {points(-pair.mean)} against {pair.first}"


def _reversed(pair: Pair) -> str:
    """ "-22.1 (-30.3 to -13.9, p .004)": the second of a pair less the first."""
    assert pair.mean is not None
    assert pair.low is not None
    assert pair.high is not None
    assert pair.p is not None

    mean, low, high = points(-pair.mean), points(-pair.high), points(-pair.low)

    return f"{mean} ({low} to {high}, {p_short(pair.p)})"


def points(value: float) -> str:
    """A difference in points with its sign: more decimals where one would show zero or lose the
    sign.
    """
    for digits in (1, 2, 3):
        shown = decimals(value, digits, shift=2)
        if shown.strip("0.") or not value:
            break

    return shown if shown.startswith("-") else f"+{shown}"


def p_short(p: float) -> str:
    """ "p .002", "p below .001": as psychology prints it, with a digit more where the third would
    hide on which side of 5 % it is.
    """
    if p < 0.001:
        return "p below .001"

    digits = 4 if 0.0495 <= p < 0.0505 else 3
    return f"p {decimals(p, digits).removeprefix('0')}"


def survivor_note(table: Table) -> Iterator[str]:
    """Return the note that seeds which failed are missing from means and tests, and whom that
    favours.
    """
    failed = []
    for cell in table.cells:
        if cell.failures:
            failed.append(
                f"{table.cell_name(cell)} {len(cell.failures)} of {cell.expected}"
            )

    if failed:
        yield (
            "failed seeds are in no mean and no test, which favours what survived of a row whose"
            f" runs fail: {', '.join(failed)}"
        )
