"""The comparison of named backbones with the general way: its quick form runs, and sees what is equal and what is not."""

from __future__ import annotations

from benchmarks.named_backbones import HEADINGS, main


def test_the_quick_form_sees_equal_blocks_and_the_other_eps_of_the_final_norm(capsys):
    main(["--quick", "--names", "minilm"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[0] == list(HEADINGS)
    found = dict(zip(rows[0], rows[-1], strict=True))
    assert (found["name"], found["library"]) == ("minilm", "transformers")
    assert float(found["start"]) <= 1e-6
    assert float(found["blocks"]) <= 1e-6
    # The stream behind a post-norm block has variance 1: (1 + 1e-12) ** -0.5 against (1 + 1e-5) ** -0.5.
    assert 4e-6 < float(found["norm"]) < 6e-6
    assert float(found["pack / alone"]) == 0
    assert "equal" not in found["holds"].split(", ")
