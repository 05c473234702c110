"""The rows of benchmarks/gpu.py on a CPU: they run, tell no figure, and their baseline computes what the method computes."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_no_figure_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit, match="not measured"):
        gpu.main()
    assert capsys.readouterr().out == ""


def test_the_rows_run_in_a_tiny_form():
    args = Namespace(tiny=True, steps=1)
    for row in (gpu.g1, gpu.g3, gpu.g4, gpu.g5, gpu.g6, gpu.g7):
        assert row(args)


def test_views_in_a_loop_are_the_views_in_one_tensor():
    torch.manual_seed(0)
    config = gpu.trial(Namespace(tiny=True), "fp32")
    model = gpu.shared_of(config).build(config, 5).train()
    for parameter in model.method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(gpu.block(model, True)(), gpu.block(model, False)(), rtol=1e-4, atol=1e-5)
