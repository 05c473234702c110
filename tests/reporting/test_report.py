"""The page: whole, offline, escaped, with every run in the cell that it fills and every section that has something to show."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from pointsweep.reporting.build import build
from pointsweep.reporting.formats.registry import render
from pointsweep.reporting.html.comparison import commands, replay, rerun
from pointsweep.reporting.html.evidence import Evidence
from pointsweep.reporting.html.page import page, plotly_cdn
from pointsweep.results.records import CellLayout, Layout
from tests.reporting.test_tables import failures, layout, record, records

CURVES = {f"full/a/{seed}": [0.2, 0.5, 0.8 + seed / 50] for seed in range(3)}
VOID = {"meta", "br", "input"}


class Reader(HTMLParser):
    """Checks that every element is closed in order; keeps tags, attributes and words."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def shown(shape: Layout | None = None, found=None, curves=CURVES) -> Reader:
    found = records() if found is None else found
    return Reader(page(build(shape or layout(), found, failures()), found, curves))


def test_every_cell_opens_its_runs():
    made = shown()
    results = page(build(layout(), records(), failures()), records(), CURVES).split("</table>")[0]
    assert results.count("<details>") == 6, "the two excluded cells have no runs"
    assert "seed 0 last 80.0 (epoch 3), best_test 81.0 (epoch 2)" in made.text
    assert "22.1M trained, 22.1M without the head, of 30.0M; 12 s" in made.text
    assert f"weights: random, seed 0; data: {'d' * 12}; code: {'c' * 12}, tree {'1' * 16} full/a/0" in made.text
    assert "seed 2 ValueError: loss is nan prompt/a/2" in made.text
    assert "seed 1 not finished full/b/1" in made.text
    assert "95 % t-interval of the mean: 77.0 to 87.0" in made.text  # 82 ± 4.303 * 2 / sqrt(3)


def scripts(source: str) -> list[tuple[str, str]]:
    """The attributes and the text of every script element."""
    return re.findall(r"<script([^>]*)>(.*?)</script>", source, re.DOTALL)


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def policy(made: Reader) -> str:
    [found] = [value for name, value in made.attributes if name == "content" and "default-src" in value]
    return found


def test_the_page_asks_the_network_for_nothing_and_runs_no_script_but_its_two():
    source = page(build(layout(), records(), failures()), records(), CURVES)
    made = Reader(source)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(made.tags)
    assert not [name for name, _ in made.attributes if name in ("src", "action") or name.startswith("on")]
    assert all(value.startswith("#") for name, value in made.attributes if name == "href")
    style = source.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import", style)
    assert "prefers-color-scheme: dark" in style
    assert "width=device-width" in source
    run = [text for attributes, text in scripts(source) if not attributes]
    assert len(run) == 2
    assert run[0] == get_plotlyjs()
    wanted = f"script-src 'sha256-{digest(run[1])}' 'sha256-{digest(run[0])}'; img-src data: blob:;"
    assert policy(made).startswith(f"default-src 'none'; style-src 'unsafe-inline'; {wanted}")
    data = [attributes for attributes, _ in scripts(source) if attributes]
    assert all('type="application/json"' in attributes for attributes in data)


def test_with_cdn_the_page_is_small_and_fetches_one_file_whose_digest_it_names():
    source = page(build(layout(), records(), failures()), records(), CURVES, plotly_src=plotly_cdn())
    made = Reader(source)
    assert len(source) < 300_000
    [address] = [value for name, value in made.attributes if name == "src"]
    assert address == f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    assert f"'sha256-{dict(made.attributes)['integrity'].removeprefix('sha256-')}'" == f"'sha256-{digest(get_plotlyjs())}'"
    assert f" {address};" in policy(made)


def test_every_section_is_reached_from_the_top():
    made = shown()
    links = [value.removeprefix("#") for name, value in made.attributes if name == "href"]
    assert links == ["results", "pareto", "curves", "compare", "optimism", "cost", "configs", "rerun", "origin"]
    assert set(links) <= {value for name, value in made.attributes if name == "id"}


def test_every_chart_has_a_title_and_a_text():
    source = page(build(layout(), records(), failures()), records(), CURVES, plotly_src=plotly_cdn())
    charts = re.findall(r'class="plot" role="group" tabindex="0" aria-labelledby="([^"]+)" aria-describedby="([^"]+)"', source)
    titles = dict(re.findall(r'<figcaption id="([^"]+)">([^<]+)<', source))
    texts = dict(re.findall(r'<p id="([^"]+)">([^<]+)</p>', source))
    assert [titles[title] for title, _ in charts] == [
        "test/accuracy against trainable parameters",
        "test/accuracy by epoch, a",
        "Time of a trial",
    ]
    assert all(texts[text] for _, text in charts)


@pytest.mark.parametrize("curve", [[], [0.5]])
def test_a_curve_of_one_epoch_is_not_drawn(curve):
    assert "Learning curves" not in shown(curves={"full/a/0": curve}).text


def test_a_run_links_to_its_page_in_mlflow():
    links = {"full/a/0": "http://127.0.0.1:5000/#/experiments/1/runs?searchFilter=x%20%3D%20%27y%27"}
    made = Reader(page(build(layout(), records(), failures()), records(), CURVES, Evidence(links=links)))
    assert [value for name, value in made.attributes if name == "href" and not value.startswith("#")] == list(links.values())


def test_best_and_tied_are_marked_by_the_tests_and_not_by_the_mean():
    """Two rows far above a third, each seed by seed: the two cannot be told apart, the third can."""
    cells = tuple(CellLayout(row, 0, tuple((seed, f"{row}/{seed}") for seed in range(4))) for row in range(3))
    shape = Layout("s", "S", ("method",), (("one",), ("two",), ("three",)), ("a",), cells)
    values = {0: (0.80, 0.82, 0.81, 0.83), 1: (0.81, 0.81, 0.82, 0.82), 2: (0.51, 0.50, 0.53, 0.52)}
    found = {f"{row}/{seed}": record(f"{row}/{seed}", value) for row, each in values.items() for seed, value in enumerate(each)}
    marks = re.findall(r'<td class="([^"]+)" data-value', page(build(shape, found, {}), found, {}, plotly_src=plotly_cdn()))
    assert marks == ["first tied", "first tied", "first"]
    found |= {f"1/{seed}": record(f"1/{seed}", value - 0.15) for seed, value in enumerate(values[1])}
    marks = re.findall(r'<td class="([^"]+)" data-value', page(build(shape, found, {}), found, {}, plotly_src=plotly_cdn()))
    assert marks == ["first best", "first second", "first"]


def test_the_table_is_in_the_page_as_csv_and_tex():
    made = build(layout(), records(), failures())
    source = page(made, records(), CURVES, plotly_src=plotly_cdn())
    exports = {
        re.search('data-file="([^"]+)"', attributes)[1]: json.loads(text)["text"]
        for attributes, text in scripts(source)
        if "export" in attributes
    }
    assert exports == {"made_up.csv": render(made, "csv"), "made_up.tex": render(made, "latex")}


def test_everything_is_escaped():
    bad = "<script>alert('x')</script>&\"</style>"
    shape = layout(title=bad, row_headers=(bad,), rows=((bad,), *layout().rows[1:]), columns=(bad, "b"), notes=(bad,))
    found = {key: replace(r, weights_origin=bad, marks=(bad,), dataset={**r.dataset, "name": bad}) for key, r in records().items()}
    made = Reader(page(build(shape, found, {"prompt/a/2": bad}), found, CURVES))
    run = [attributes for attributes, _ in scripts(page(build(shape, found, {"prompt/a/2": bad}), found, CURVES)) if not attributes]
    assert len(run) == 2, "Plotly's and the page's own"
    assert made.tags.count("style") == 1
    assert made.text.count("alert('x')") >= 6
    assert "<script>alert" not in page(build(shape, found, {"prompt/a/2": bad}), found, CURVES)


def test_the_rerun_command_names_exactly_one_cell():
    shape = layout(rows=(("it's [new]",), *layout().rows[1:]), columns=("a b*", "b"))
    made = build(shape, records(), failures())
    command = rerun(made, made.cell(0, 0))
    assert command == """pointsweep run FILE --only 'row=it'"'"'s [[]new]' --only 'column=a b[*]'"""


def test_a_finished_cell_is_replayed_and_an_unfinished_one_is_run():
    made = build(layout(), records(), failures())
    assert commands(made, made.cell(0, 0)) == "pointsweep replay made_up full a\n"
    assert commands(made, made.cell(2, 0)) == f"{replay(made, made.cell(2, 0))}\n{rerun(made, made.cell(2, 0))}"
    assert commands(made, made.cell(1, 1)) == rerun(made, made.cell(1, 1))
    text = shown().text
    assert "pointsweep replay made_up full a" in text
    assert "pointsweep replay made_up ROW COLUMN" in text


def test_the_replay_command_survives_a_shell():
    odd = layout(name="a b", rows=(("it's $x",), *layout().rows[1:]))
    made = build(odd, records(), failures())
    words = shlex.split(replay(made, made.cell(0, 0)))
    assert words == ["pointsweep", "replay", "a b", "it's $x", "a"]


def test_energy_stands_in_the_cost_where_it_was_read_and_else_that_it_was_not():
    assert "Energy: not readable on the machines that ran them." in shown().text
    found = records()
    for seed, joules in enumerate((1000.0, 2000.0, 3000.0)):
        found[f"full/a/{seed}"] = replace(
            found[f"full/a/{seed}"], energy_j={"gpu": joules, "cpu": 500.0}, origin={"device": "cuda:0"}
        )
    text = shown(found=found).text
    assert "gpu 2.0, cpu 0.5" in text
    assert "Energy: 0.002 kWh (of 3 trials; not readable for the others)" in text  # 7,500 J
    assert "38 GPU seconds" in text  # 3 x 12.5 s


def test_a_record_of_a_shipped_tree_has_no_commit():
    found = records()
    found["full/a/0"] = record("full/a/0", 0.8, origin={"code": "tree 1234", "tree": "1234"})
    assert "code: tree 1234 full/a/0" in shown(found=found).text


def test_a_cell_shows_the_first_digits_of_the_weights_digest():
    found = records()
    found["full/a/0"] = replace(found["full/a/0"], weights_origin=f"model.safetensors, sha256 {'53aa51172d14' + 'f' * 52}")
    assert "weights: model.safetensors, sha256 53aa51172d14; data" in shown(found=found).text


def test_without_records_only_the_table_is_shown():
    made = build(layout(), records(), failures())
    source = Reader(page(made, {}, {}))
    assert "details" not in source.tags
    assert "82.0 ± 2.0*" in source.text
    assert "Run it again" not in source.text
