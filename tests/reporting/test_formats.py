"""What a table looks like in every format: text written by hand, escaping, what LaTeX accepts, exact values in CSV and JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
import textwrap
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pointsweep.reporting.cell_text import count, unit
from pointsweep.reporting.footnotes import comparison, p_short, points
from pointsweep.reporting.formats.registry import FORMATS, load, render
from pointsweep.reporting.formats.text import WIDTH, text
from pointsweep.reporting.html.page import page
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Published
from pointsweep.statistics.all_pairs import ExcludedArm, Family, Pair
from pointsweep.utils.console import width, wrapped
from pointsweep.utils.numbers import percent

NASTY = r"a_b & 100% | <b>*x*</b> $y$ #1 {z} \back ~t^ `c` [q] 'p' " + '"r"'


def cell(row: int, column: int, mean: float | None = 0.812, sd: float | None = 0.004, **changes: object) -> TableCell:
    keys = tuple((seed, f"{row}{column}{seed}") for seed in range(3))
    values = tuple((seed, mean) for seed in range(3)) if mean is not None else ()
    made = TableCell(row, column, mean, sd, len(values), 3, None, None, values, keys)
    return replace(made, **changes)


def table(**changes: object) -> Table:
    cells = (
        cell(
            0,
            0,
            parameters={"trainable": 9, "trainable_without_head": 306_560, "total": 9},
            published=Published(91.9, 0.8, "Paper"),
        ),
        cell(0, 1, marks=("synthetic data",)),
        cell(1, 0, 0.0567, None, n=1, values=((0, 0.0567),)),
        cell(1, 1, None, None, excluded="why not", keys=(), expected=0),
    )
    base = Table("t", "Title", "test/accuracy", "last", ("method",), (("any2point",), ("lora",)), ("minilm", "vit"), cells)
    return replace(base, **changes)


def nasty() -> Table:
    return table(
        title=NASTY,
        row_headers=(NASTY,),
        rows=((NASTY,), ("[1] x",)),
        columns=(NASTY, "vit"),
        notes=(NASTY, "1. x", "+ y", "two\nlines"),
    )


# By hand: labels left, numbers right, four spaces before each column's first number, two within a column.
TEXT = """\
Title
test/accuracy in %, protocol: last epoch, mean ± sd over 3 seeds; params: trainable, without the head

             minilm                                      vit
method          accuracy  params  paper  paper params       accuracy  params  paper  paper params
-------------------------------------------------------------------------------------------------
any2point     81.2 ± 0.4  0.307M   91.9          0.8M    81.2 ± 0.4*
lora         5.7 (n=1/3)                                           —

* synthetic data
— lora / vit: why not
not finished: lora / minilm, seed 1, 2
paper: Paper
"""


def test_the_text_equals_what_was_written_by_hand():
    assert render(table(), "text") == TEXT


def test_columns_that_do_not_fit_on_a_terminal_are_printed_below():
    wide = table(columns=tuple("abcdef"), cells=tuple(cell(i, j) for i in range(2) for j in range(6)), rows=(("x" * 40,), ("y",)))
    lines = text(wide, 118).splitlines()
    assert max(map(len, lines)) <= 118
    heads = [line.split() for line in lines if re.fullmatch(r"\s+[a-f](\s+[a-f])*", line)]
    assert [name for head in heads for name in head] == list("abcdef")
    assert len(heads) > 1
    assert sum(line.startswith("y ") for line in lines) == len(heads), "every part repeats the rows"


def test_a_long_column_name_stays_above_its_numbers():
    long = table(columns=("a column with a name longer than its numbers: really", "vit"))
    top, second, _, row, *_ = render(long, "text").splitlines()[3:]
    assert top.index("vit") == top.index("really") + len("really") + 4
    assert row.rindex("±") > top.index("vit")
    assert second.index("accuracy") + len("accuracy") == row.index("0.4") + len("0.4")


@pytest.mark.parametrize(
    ("value", "signed", "shown"),
    [
        (0.8125, False, "81.2"),
        (1.0, False, "100.0"),
        (-0.0004, True, "+0.0"),
        (0.031, True, "+3.1"),
        (-0.01, True, "-1.0"),
        (None, True, ""),
        (0.1235, False, "12.4"),  # 247 of 2,000: half to even
        (0.1225, False, "12.2"),
        (0.1 + 0.0235, False, "12.4"),  # the same in floats that are not quite that
    ],
)
def test_fractions_become_percent(value, signed, shown):
    assert percent(value, signed) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (12_345, "12.3k"), (306_560, "0.307M"), (948_312, "0.948M"), (22_100_000, "22.1M")],
)
def test_parameter_counts(number, shown):
    assert count(number) == shown


@pytest.mark.parametrize(
    ("counts", "paper", "shown"),
    [
        ((22_100_000, 306_560, 9_216), None, ["22.100M", "0.307M", "0.009M"]),
        ((306_560, 9_216, 0), None, ["306.6k", "9.2k", "0"]),
        ((306_560, 9_216), 0.8, ["0.307M", "0.009M"]),
        ((12_250, 12_350), None, ["12.2k", "12.4k"]),  # half to even
        ((1_000_000, 120), None, ["1.0000M", "0.0001M"]),
        ((999, 5), None, ["999", "5"]),
    ],
)
def test_a_column_has_one_unit_of_parameters(counts, paper, shown):
    published = None if paper is None else Published(None, paper, "P")
    cells = [cell(i, 0, parameters={"trainable_without_head": n}, published=published) for i, n in enumerate(counts)]
    assert [unit(cells).shown(number) for number in counts] == shown


def family(*pairs: Pair, **changes: object) -> Family:
    arms = tuple(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    return replace(Family("vit", arms, pairs), **changes)


def test_a_column_says_what_is_best_and_what_lies_below_it():
    pairs = (
        Pair("dgcnn", "pointnet2", 3, 0.012, -0.03, 0.054, 0.7),
        Pair("dgcnn", "pointnet", 3, 0.274, 0.238, 0.31, 0.002),
        Pair("dgcnn", "lora", 3, 0.221, 0.0004, 0.4416, 0.0496),
        Pair("pointnet2", "pointnet", 3, 0.262, 0.226, 0.298, 0.0004),
        Pair("pointnet2", "lora", 3, 0.209, -0.01, 0.428, 0.06),
    )
    assert comparison(family(*pairs, detectable=0.083)) == (
        "vit: dgcnn has the best mean. Below it: pointnet -27.4 (-31.0 to -23.8, p .002), "
        "lora -22.1 (-44.2 to -0.04, p .0496). Not separable from it: pointnet2. "
        "Also: pointnet below pointnet2 -26.2 (-29.8 to -22.6, p below .001). Detectable: 8.3 points (90 % power)."
    )


def test_a_row_that_is_apart_from_all_others_is_best():
    pair = Pair("a", "b", 3, 0.1, 0.05, 0.15, 0.01)
    assert comparison(family(pair)) == "vit: a is best. Below it: b -10.0 (-15.0 to -5.0, p .010)."


def test_what_is_not_compared_says_why():
    pairs = (
        Pair("a", "b", 0, None, reason="no seed in common"),
        Pair("a", "c", 3, 0.01, reason="the same difference with every seed"),
        Pair("b", "c", 3, 0.0, reason="the same difference with every seed"),
        Pair("a", "d", 3, 0.593, reason="set aside"),
    )
    aside = (ExcludedArm("d", 2, 0.12, 0.713),)
    assert comparison(family(*pairs, set_aside=aside)) == (
        "vit: a has the best mean. d: seed 2 collapsed (12.0 against 71.3), so no test about it is made. "
        "a and b: no seed in common, not compared. "
        "c -1.0 against a; c +0.0 against b: the same with every seed, no spread to judge by."
    )


def test_one_seed_shows_no_order():
    assert comparison(family(Pair("a", "b", 1, 0.5, reason="one seed in common"))) == "vit: one seed shows no order."
    assert comparison(Family("vit", ("a",))) == ""
    single = table(cells=tuple(replace(c, expected=1, keys=c.keys[:1], n=1, values=c.values[:1], sd=None) for c in table().cells[:2]))
    assert "one seed, so no sd" in render(replace(single, rows=single.rows[:1]), "text")


def test_rounding_hides_neither_sign_nor_decision():
    assert [points(value) for value in (0.031, -0.0004, 0.00004, -0.000001, 0.0)] == ["+3.1", "-0.04", "+0.004", "+0.000", "+0.0"]
    assert [p_short(p) for p in (0.0004, 0.002, 0.04, 0.0496, 0.0504, 0.3, 1.0)] == [
        "p below .001", "p .002", "p .040", "p .0496", "p .0504", "p .300", "p 1.000",
    ]  # fmt: skip


def test_marks_that_all_cells_share_are_said_once():
    cells = tuple(replace(c, marks=("official", "synthetic data")) for c in table().cells)
    assert "all cells: official, synthetic data\n" in render(table(cells=cells), "text")


def test_markdown_keeps_its_columns_whatever_the_labels_hold():
    lines = render(nasty(), "md").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    unescaped = re.compile(r"(?<!\\)(?:\\\\)*\|")
    assert {len(unescaped.findall(row)) for row in rows} == {1 + 1 + 2 * 4}
    escaped = r"a\_b \& 100% \| \<b\>\*x\*\</b\> \$y\$ \#1 \{z} \\back \~t^ \`c\` \[q\] 'p' " + '"r"'
    assert lines[0] == f"**{escaped.replace(chr(92) + '{', '{')}**"
    assert [line for line in lines if line.startswith("- ")][-3:] == [r"- 1\. x", r"- \+ y", "- two lines"]


def test_csv_has_a_line_a_cell_with_exact_values():
    rows = list(csv.DictReader(io.StringIO(render(table(), "csv"))))
    assert [(row["method"], row["column"], row["status"]) for row in rows] == [
        ("any2point", "minilm", "complete"),
        ("any2point", "vit", "complete"),
        ("lora", "minilm", "incomplete"),
        ("lora", "vit", "excluded"),
    ]
    assert float(rows[0]["mean"]) == 0.812
    assert (rows[0]["published"], rows[0]["published_params_m"], rows[0]["trainable_without_head"]) == ("91.9", "0.8", "306560")
    assert rows[2]["values"] == "0:0.0567"
    assert (rows[2]["sd"], rows[2]["n"], rows[2]["expected"]) == ("", "1", "3")
    assert rows[3]["reason"] == "why not"
    exact = 0.1 + 0.2
    assert float(next(csv.DictReader(io.StringIO(render(table(cells=(cell(0, 0, exact),)), "csv"))))["mean"]) == exact


def test_a_csv_survives_labels_with_commas_quotes_and_line_breaks():
    odd = 'a, "b"\nc'
    rows = list(csv.DictReader(io.StringIO(render(table(rows=((odd,), ("x",))), "csv"))))
    assert rows[0]["method"] == odd


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ("=1+1", "'=1+1"),
        ("=cmd|x!A0", "'=cmd|x!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+ local aggregation", "'+ local aggregation"),
        ("\t=1", "'\t=1"),
        ("\n=1", "'\n=1"),
        ("\r=1", r"\r=1"),
        ("  =1", "'  =1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"),
        ("-cmd()", "'-cmd()"),
        ("- local aggregation", "- local aggregation"),
        ("-0.5", "-0.5"),
        ("-1e-3", "-1e-3"),
        ("a = b", "a = b"),
        ("a\x1b[2J", r"a\x1b[2J"),
    ],
)
def test_a_label_is_text_in_every_spreadsheet(label, field):
    made = table(row_headers=(label,), rows=((label,), ("x",)), columns=(label, "vit"))
    header, first, *_ = csv.reader(io.StringIO(render(made, "csv"), newline=""))
    assert header[0] == first[0] == first[1] == field


HOSTILE = "a\x1b[31m\x07\x9b\u202ez\x00"
SAFE = r"a\x1b[31m\x07\x9b\u202ez\x00"


@pytest.mark.parametrize("form", [form for form in FORMATS if load(form).stored])
def test_no_control_character_reaches_any_format(form):
    cells = (
        cell(0, 0, marks=(HOSTILE,), published=Published(1.0, None, HOSTILE)),
        cell(0, 1, None, None, failures=((0, HOSTILE),)),
        cell(1, 0, None, None, excluded=HOSTILE),
        cell(1, 1),
    )
    made = table(
        title=HOSTILE, row_headers=(HOSTILE,), rows=((HOSTILE,), ("x",)), columns=(HOSTILE, "vit"), cells=cells, notes=(HOSTILE,)
    )
    shown = page(made, {}, {}) if form == "html" else render(made, form)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
    assert {"text": SAFE, "html": SAFE, "csv": SAFE}.get(form, "31m") in shown


@pytest.mark.parametrize("label", ["漢字と文字", "e\u0301te\u0301", "👍 👨\u200d👩\u200d👧", "가나다", "ａｂ"])
def test_columns_align_by_cells_of_a_terminal(label):
    lines = render(table(rows=((label,), ("lora",))), "text").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("---"))
    assert all(0 < width(line) <= width(lines[start]) for line in lines[start - 2 : start + 3])
    row = lines[start + 1]
    assert width(row[: row.index("81.2 ± 0.4")]) == max(len("method"), width(label)) + 4 + len("5.7 (n=1/3)") - len("81.2 ± 0.4")


@pytest.mark.parametrize("columns", [24, 40, 80, 118, 200])
@pytest.mark.parametrize("seed", range(5))
def test_a_table_fits_its_terminal_and_loses_nothing(columns, seed):
    made = replace(filled(seed), title="漢字 " * 30, rows=(("a label of several words " * 2,), ("b",), ("c",), ("漢字" * 20,)))
    shown = text(made, columns)
    assert max(map(width, shown.splitlines())) <= max(columns, 44)
    numbers = re.findall(r"\d+\.\d(?: ± \d+\.\d)?", render(made, "text"))
    assert sorted(re.findall(r"\d+\.\d(?: ± \d+\.\d)?", shown)) == sorted(numbers)


def test_a_table_in_a_file_stays_whole():
    wide = table(columns=tuple("abcdef"), cells=tuple(cell(i, j) for i in range(2) for j in range(6)))
    heads = [line for line in render(wide, "text").splitlines() if re.fullmatch(r"\s+[a-f](\s+[a-f])*", line)]
    assert [head.split() for head in heads] == [list("abcdef")]


def test_an_encoding_without_our_signs_keeps_the_columns_aligned():
    lines = text(table(), encoding="ascii").splitlines()
    assert "\n".join(lines).isascii()
    assert "any2point    81.2 +- 0.4  0.307M   91.9          0.8M    81.2 +- 0.4*" in lines
    assert "lora         5.7 (n=1/3)                                            -" in lines


def test_failed_cells_say_so():
    failed = cell(0, 0, None, None, failures=((0, "boom"), (1, "bang")))
    made = table(cells=(failed, cell(0, 1)), rows=(("any2point",),))
    assert re.search(r"^any2point +failed +81.2", render(made, "text"), re.MULTILINE)
    row = next(csv.DictReader(io.StringIO(render(made, "csv"))))
    assert (row["status"], row["reason"]) == ("failed", "seed 0: boom; seed 1: bang")


def test_json_holds_everything():
    data = json.loads(render(table(), "json"))
    assert data["cells"][0]["values"] == [[0, 0.812], [1, 0.812], [2, 0.812]]
    assert data["cells"][0]["published"] == {"value": 91.9, "params_m": 0.8, "source": "Paper", "dataset": "", "split": ""}
    assert [entry["status"] for entry in data["cells"]] == ["complete", "complete", "incomplete", "excluded"]


# What is printed, read back

SHOWN = re.compile(r"(\d+\.\d+)(?: ± (\d+\.\d+))?(?: \(n=(\d+)/(\d+)\))?[*†‡§¶]*")


def filled(seed: int) -> Table:
    """Twelve cells of drawn numbers, every state among them, with names that need escaping."""
    draw = random.Random(seed)
    cells = []
    for row, column in itertools.product(range(4), range(3)):
        kind = draw.choice(["complete", "complete", "short", "one", "none", "failed", "excluded"])
        mean, sd = draw.random(), draw.random() / 20
        size = {"trainable": 1, "total": 2, "trainable_without_head": draw.randrange(10 ** draw.randrange(1, 9))}
        paper = Published(draw.choice([None, round(100 * draw.random(), 2)]), draw.choice([None, round(90 * draw.random(), 1)]), "P")
        more = {"parameters": draw.choice([None, size]), "published": draw.choice([None, paper])}
        if kind in ("none", "failed", "excluded"):
            reason = {"failed": {"failures": ((0, "x"),)}, "excluded": {"excluded": "no", "keys": (), "expected": 0}}.get(kind, {})
            cells.append(cell(row, column, None, None, **more, **reason))
        else:
            n = {"complete": 3, "short": 2, "one": 1}[kind]
            values = tuple((seed, mean) for seed in range(n))
            cells.append(cell(row, column, mean, sd if n > 1 else None, n=n, values=values, **more))
    cells[0] = replace(cells[0], marks=("synthetic data",))
    rows = (("a_b | c",), ("50% & [x]",), ("<i>*y*</i>",), (r"\z ~ #1 $k$",))
    return table(cells=tuple(cells), rows=rows, columns=("x & y", "<b>", "c|d"))


def markdown_rows(source: str) -> list[list[str]]:
    lines = [line for line in source.splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[re.sub(r"\\(.)", r"\1", part).strip() for part in line] for line in split[2:]]


class HtmlRows(HTMLParser):
    """The body's rows of the first table, as text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(source.split("<tbody>")[1].split("</tbody>")[0])

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("seed", range(20))
def test_markdown_and_html_print_the_numbers_of_the_table_and_the_same_ones(seed):
    made = filled(seed)
    rows = {"md": markdown_rows(render(made, "md")), "html": HtmlRows(page(made, {}, {})).rows}
    assert rows["md"] == rows["html"]
    width = (len(rows["md"][0]) - 1) // 3
    assert [row[0] for row in rows["md"]] == [row[0] for row in made.rows]
    exact = {(c["row"], c["column"]): c for c in json.loads(render(made, "json"))["cells"]}
    for (row, column), known in exact.items():
        shown = rows["md"][row][1 + column * width : 1 + (column + 1) * width]
        found = SHOWN.fullmatch(shown[0])
        assert (found is None) == (known["mean"] is None)
        if found:
            assert float(found[1]) == pytest.approx(100 * known["mean"], abs=0.05 + 1e-9)
            assert (found[2] is None) == (known["sd"] is None)
            assert known["sd"] is None or float(found[2]) == pytest.approx(100 * known["sd"], abs=0.05 + 1e-9)
            assert (int(found[3] or 3), int(found[4] or 3)) == (known["n"], 3)
        size = (known["parameters"] or {}).get("trainable_without_head")
        assert (shown[1] == "") == (size is None)
        if size is not None:
            scale = {"M": 1e6, "k": 1e3}.get(shown[1][-1], 1)
            digits = len(shown[1].rstrip("Mk").partition(".")[2])
            assert float(shown[1].rstrip("Mk")) * scale == pytest.approx(size, abs=0.501 * scale / 10**digits)
        papers = [known["published"] and known["published"][name] for name in ("value", "params_m")]
        kept = [text for text in shown[2:] if text]
        assert [float(text.rstrip("M")) for text in kept] == [number for number in papers if number is not None]


def test_lines_are_broken_as_textwrap_breaks_them():
    generator = random.Random(0)
    words = ["a", "be-e", "(+3.1,", "±", "x" * 40, "y" * 116]
    lines = [" ".join(generator.choices(words, k=generator.randrange(1, 60))) for _ in range(200)]
    lines += ["", " led", "two  spaces " * 20, "z" * 117 + " b", "z" * 300]
    for line in lines:
        assert wrapped(line, WIDTH) == textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
