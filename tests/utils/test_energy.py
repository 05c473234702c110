"""Counters of energy: sums of packages, a counter that begins anew, and a machine that has none."""

from __future__ import annotations

from pathlib import Path

from pointsweep.training.record_builder import used
from pointsweep.utils.energy import Meter, meter, rapl


def package(folder: Path, name: str, microjoules: object) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_add_up_and_their_parts_do_not_count_twice(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 3_000_000)
    package(tmp_path, "intel-rapl:0:0", 1_000_000)
    package(tmp_path, "intel-rapl:1", 500_000)
    assert rapl(tmp_path) == 3.5


def test_what_cannot_be_read_is_none(tmp_path: Path):
    assert rapl(tmp_path) is None
    package(tmp_path, "intel-rapl:0", "?")
    assert rapl(tmp_path) is None


def test_a_meter_tells_what_was_added_since():
    gpu, cpu, lost = [10.0, 25.0, 5.0, 7.0], [1.0, 2.0, 4.0, 8.0], [1.0, None, 3.0, 4.0]
    made = Meter({name: iter(values).__next__ for name, values in (("gpu", gpu), ("cpu", cpu), ("lost", lost))})
    assert made.read() == {"gpu": 15.0, "cpu": 1.0}
    assert made.read() == {"cpu": 2.0}, "the GPU's counter began anew, the other's last value is not known"
    assert made.read() == {"gpu": 2.0, "cpu": 4.0, "lost": 1.0}


def test_this_machine_is_read_or_not_but_never_fails():
    assert set(meter().read()) <= {"cpu"}


def test_only_a_device_of_every_epoch_is_told():
    assert used([{"gpu": 1.0, "cpu": 2.0}, {"gpu": 3.0}]) == {"gpu": 4.0}
    assert used([{}, {"gpu": 3.0}]) == {}
