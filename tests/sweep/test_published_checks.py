"""The real file's inconsistencies; thirty planted ones in a clean table, each found and nothing else."""

from __future__ import annotations

import csv
import json
import random

import pytest

from pointsweep.cli.published import main
from pointsweep.sweep.published import COLUMNS, lines
from pointsweep.sweep.published_checks import agree, check, counts_of, printable, same_setting

BACKBONES = ("DINOv2-B", "CLIP-Text (ViT-L/14)")
FIELDS = (*COLUMNS, "value", "params_m")


def line(row: str, setting: str, backbone: str, value: str, params: str = "0.8", **changes: str) -> dict[str, str]:
    made = {
        "paper": "Paper", "table": "Table 1", "row": row, "setting": setting, "backbone": backbone, "modality": "2D",
        "dataset": "ScanObjectNN", "split": "PB_T50_RS", "metric": "OA", "value": value, "params_m": params, "note": "",
    }  # fmt: skip
    return made | changes


def clean() -> list[dict[str, str]]:
    """Two tables of one paper that print the whole method in both, and say what each row gains."""
    found = []
    for b, backbone in enumerate(BACKBONES):
        shares = [f"{100 * k / 2882:.2f}" for k in (2403 + 37 * b, 2455 + 29 * b, 2520 + 31 * b, 2611 + 23 * b)]
        found += [
            line("full", "method=full", backbone, shares[0], "86.3"),
            line("LoRA", "method=lora;rank=16(inferred)", backbone, shares[1], "0.9", note=gain(shares[1], shares[0], "full")),
            line("no adapter", "method=any2point;guided_adapter=false", backbone, shares[2], "0.3", table="Table 2"),
            line("whole", "method=any2point", backbone, shares[3], "0.8"),
            line(
                "G.A.", "method=any2point;M=6;guided_adapter=true", backbone, shares[3], "0.8", table="Table 2",
                note=gain(shares[3], shares[2], "no adapter"),
            ),
        ]  # fmt: skip
    return found


def gain(value: str, other: str, row: str) -> str:
    return f"seen in the text; gain={float(value) - float(other):+.2f} over {row} (same backbone)"


COUNTS = {"full": 86_254_080, "LoRA": 852_993, "no adapter": 279_744, "whole": 800_760, "G.A.": 800_760}


def counts(table: list[dict[str, str]]) -> dict[int, list[int]]:
    return {number: [COUNTS[line["row"]], COUNTS[line["row"]] + 150_000] for number, line in enumerate(table, start=2)}


def test_a_clean_table_raises_no_alarm():
    assert check(clean(), counts(clean())) == []


def plant(kind: str, generator: random.Random) -> tuple[list[dict[str, str]], dict[int, list[int]], str]:
    table = clean()
    known = counts(table)
    backbone = generator.choice(BACKBONES)
    rows = {line["row"]: line for line in table if line["backbone"] == backbone}
    if kind == "value":  # beside a share that 2,882 objects can give, and not in the reach of a cut-off digit
        k = generator.randrange(2300, 2800)
        rows["full"]["value"] = f"{100 * k / 2882 + 0.017:.2f}"
        rows["LoRA"]["note"] = ""
    elif kind == "same setting":
        rows["whole"]["value"] = f"{100 * generator.randrange(2700, 2800) / 2882:.2f}"
    elif kind == "same model":
        rows["whole"]["params_m"] = generator.choice(["0.9", "0.7", "1.2"])
        known = {}
    elif kind == "gain":
        name, over = generator.choice([("LoRA", "full"), ("G.A.", "no adapter")])
        wrong = float(rows[name]["value"]) - float(rows[over]["value"]) + generator.choice([-0.3, 0.01, 1.0])
        rows[name]["note"] = f"gain={wrong:+.2f} over {over}"
    elif kind == "count":
        name = generator.choice(["full", "LoRA", "no adapter"])
        rows[name]["params_m"] = f"{float(rows[name]['params_m']) + generator.choice([0.4, 3.0]):.1f}"
    else:  # the same numbers for another setting
        for line_ in table:
            if line_["row"] == "LoRA":
                match = next(other for other in table if other["row"] == "no adapter" and other["backbone"] == line_["backbone"])
                line_ |= {"value": match["value"], "params_m": "0.25", "note": ""}
        known = {}
    return table, known, kind


KINDS = ("value", "same setting", "same model", "gain", "count", "other setting")


@pytest.mark.parametrize("number", range(30))
def test_every_planted_fault_is_found_and_no_other(number):
    table, known, kind = plant(KINDS[number % len(KINDS)], random.Random(number))
    faults = check(table, known)
    assert {fault.kind for fault in faults} == {kind}, [fault.text for fault in faults]


def test_the_two_inconsistencies_inside_any2point_are_found():
    found = {fault.kind: fault.text for fault in check(lines()) if "Any2Point" in fault.text}
    # Table 5's first row is called an MLP adapter and prints what Table 3 prints without an adapter (spec T16).
    assert "V.P.=yes G.A.=no" in found["other setting"]
    assert "L.A.=no Ens.=no" in found["other setting"]
    # 0.9 million parameters in Table 1, 0.8 in the others, for one model (spec T22).
    assert "0.9M; " in found["same model"]
    assert found["same model"].endswith("0.8M")


def test_the_findings_in_the_real_file_are_known():
    found = [(fault.kind, fault.lines) for fault in check(lines())]
    assert [kind for kind, _ in found] == ["gain", "gain", "other setting", "same model", "same model"]


def test_counts_come_from_a_printed_table():
    number, row = next((number, line) for number, line in enumerate(lines(), start=2) if line["row"] == "LoRA")
    published = {"source": f"{row['paper']}, {row['table']}", "value": float(row["value"]), "params_m": float(row["params_m"])}
    built = {"trainable_without_head": 5, "trainable": 7}
    known = counts_of(
        lines(), json.dumps({"cells": [{"published": published, "parameters": built}, {"published": None, "parameters": built}]})
    )
    assert known == {number: [5, 7]}
    assert [
        fault.text.endswith("0.9M printed, the built model trains 5 or 7") for fault in check(lines(), known) if fault.kind == "count"
    ] == [True]


@pytest.mark.parametrize(
    ("value", "objects", "possible"),
    [
        ("85.18", 2882, True),  # 2455 / 2882 = 85.184
        ("88.29", 581, True),  # 513 / 581 = 88.296: cut off, not rounded
        ("88.30", 581, True),
        ("88.25", 581, False),  # 512 / 581 = 88.124
        ("100.0", 581, True),
        ("100.1", 581, False),
        ("85.2", 2882, True),
    ],
)
def test_what_a_share_of_the_objects_can_print(value, objects, possible):
    assert printable(value, objects) is possible


def test_every_share_can_be_printed():
    for objects in (40, 581, 2468, 2882):
        assert all(printable(f"{100 * k / objects:.{d}f}", objects) for k in range(objects + 1) for d in (1, 2))


def test_numbers_agree_as_far_as_they_are_printed():
    assert agree("85.2", "85.18")
    assert agree("0.3", "0.25")
    assert not agree("0.9", "0.8")
    assert not agree("93.8", "94.04")


def test_what_a_table_leaves_out_has_its_usual_value():
    one = line("a", "method=any2point;virtual_projection=true;guided_adapter=true", "B", "1")
    assert same_setting(one) == same_setting(line("b", "method=any2point;M=6;voting=false", "B", "1"))
    assert same_setting(one) != same_setting(line("b", "method=any2point;M=4", "B", "1"))
    other = line("c", "method=any2point;virtual_projection=false", "B", "1")
    assert same_setting(other) == same_setting(line("d", "method=any2point;pe=none", "B", "1"))


def test_the_command_prints_its_findings(tmp_path, capsys):
    assert main([]) == 1
    assert "110 lines, 5 findings" in capsys.readouterr().out
    path = tmp_path / "own.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(clean())
    assert main(["--csv", str(path)]) == 0
    assert capsys.readouterr().out == "10 lines, 0 findings\n"
    path.write_text("paper,table\n")
    assert main(["--csv", str(path)]) == 2
    assert "no columns backbone" in capsys.readouterr().err
