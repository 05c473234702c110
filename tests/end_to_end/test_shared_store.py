"""A store that several people share: modes follow the umask, both run, both read; who may not write is told so in one line.

The users are other numbers than root's, so these tests run as root alone, as in a container. The code is a copy of this process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pointsweep.cli import gc, run, sync, tables, verify
from pointsweep.testing.chaos_processes import at_once, forked

SWEEP = """
name: {name}
base:
  dataset: {{name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 20}}
  tokenizer: {{name: point_pn_light, num_tokens: 4, neighbours: 4}}
  backbone: {{name: tiny, modality: 1d}}
  method: {{name: {method}}}
  train: {{epochs: 1, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}}
seeds: 1
"""
ANNA, BERT, CARL = 61_001, 61_002, 61_003
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may write; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="pointsweep-shared-"))
    folder.chmod(0o777)
    for name, method in (("anna", "head_only"), ("bert", "bitfit")):
        (folder / f"{name}.yaml").write_text(SWEEP.format(name=name, method=method))
    with contextlib.suppress(OSError):
        Path(os.environ["POINTSWEEP_CACHE"]).chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def by(user: int, group: int, umask: int, work: Callable[[], int], log: Path) -> tuple[int, str]:
    """Exit code and output of a command, done by a user in a copy of this process."""

    def become() -> int:
        os.setgroups([group])
        os.setgid(group)
        os.setuid(user)
        os.umask(umask)
        return work()

    log.unlink(missing_ok=True)
    log.touch()
    code = forked(become, log, {"POINTSWEEP_CACHE": str(log.parent / f"cache-{user}"), "HOME": str(log.parent)})
    said = log.read_text()
    assert "Traceback" not in said, said
    return code, said


def launch(place: Path, name: str, store: Path, *more: str) -> int:
    return run.main([str(place / f"{name}.yaml"), "--inline", "--store", str(store), *more])


def warm(place: Path) -> None:
    """Imports all that the commands need: another user may not read this one's Python."""
    for name in ("anna", "bert"):
        assert launch(place, name, place / "warm") == 0
        assert launch(place, name, place / "warm-none", "--tracking-uri", "none") == 0
    assert tables.main(["anna", "--store", str(place / "warm")]) == 0
    assert verify.main([str(place / "warm")]) == 0
    assert sync.main([str(place / "warm")]) == 0
    assert gc.main([str(place / "warm")]) == 0


def modes(store: Path) -> set[tuple[str, str]]:
    found = set()
    for path in (store, *store.rglob("*")):
        mode = path.lstat().st_mode
        found.add(("folder" if stat.S_ISDIR(mode) else "file", f"{stat.S_IMODE(mode):03o}"))
    return found


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, "644", "755"), (0o002, "664", "775"), (0o077, "600", "700"), (0, "666", "777")]
)
def test_modes_follow_the_umask(place: Path, umask: int, file: str, folder: str):
    before = os.umask(umask)
    try:
        assert launch(place, "anna", place / "store") == 0
    finally:
        os.umask(before)
    assert modes(place / "store") == {("file", file), ("folder", folder)}


@as_root
@pytest.mark.parametrize(("umask", "groups"), [(0o002, (61_000, 61_000)), (0o000, (61_001, 61_002))])
def test_two_users_share_a_store(place: Path, umask: int, groups: tuple[int, int]):
    warm(place)
    store, log = place / "store", place / "log"
    assert by(ANNA, groups[0], umask, lambda: launch(place, "anna", store), log)[0] == 0
    code, said = by(BERT, groups[1], umask, lambda: launch(place, "bert", store), log)
    assert code == 0, said
    assert "MLflow" in said and "behind" not in said, "both write MLflow's database"
    code, said = by(BERT, groups[1], umask, lambda: launch(place, "anna", store), log)
    assert code == 0 and "1 finished, 0 to run" in said, said
    for user, group in ((ANNA, groups[0]), (BERT, groups[1])):
        for name in ("anna", "bert"):
            code, said = by(user, group, umask, lambda name=name: tables.main([name, "--store", str(store)]), log)
            assert code == 0 and "test/accuracy" in said
    assert by(BERT, groups[1], umask, lambda: verify.main([str(store)]), log)[0] == 0
    assert by(BERT, groups[1], umask, lambda: gc.main([str(store), "--delete"]), log)[0] == 0


@as_root
def test_who_may_not_write_reads_the_tables_and_is_told_so_in_one_line(place: Path):
    warm(place)
    store, log = place / "store", place / "log"
    assert by(ANNA, ANNA, 0o022, lambda: launch(place, "anna", store), log)[0] == 0
    code, said = by(CARL, CARL, 0o022, lambda: tables.main(["anna", "--store", str(store)]), log)
    assert code == 0 and "test/accuracy" in said
    assert by(CARL, CARL, 0o022, lambda: verify.main([str(store)]), log)[0] == 0
    for name in ("anna", "bert"):
        code, said = by(CARL, CARL, 0o022, lambda name=name: launch(place, name, store), log)
        assert code == 2
        refusals = [line for line in said.splitlines() if f"{store} may not be written by user" in line]
        assert len(refusals) == 1 and "(mode 755)" in refusals[0]
    assert by(CARL, CARL, 0o022, lambda: run.main([str(place / "anna.yaml"), "--plan", "--store", str(store)]), log)[0] == 0


@as_root
def test_who_may_not_read_is_told_so_in_one_line(place: Path):
    warm(place)
    store, log = place / "store", place / "log"
    assert by(ANNA, ANNA, 0o077, lambda: launch(place, "anna", store), log)[0] == 0
    for command in (
        lambda: launch(place, "anna", store),
        lambda: tables.main(["anna", "--store", str(store)]),
        lambda: verify.main([str(store)]),
        lambda: gc.main([str(store), "--delete"]),
    ):
        code, said = by(CARL, CARL, 0o022, command, log)
        assert code == 2 and f"{store} may not be read by user" in said, said


def test_two_processes_create_one_store_at_once(place: Path):
    warm(place)
    for number in range(3):
        store = place / f"store-{number}"
        works = [lambda name=name, store=store: launch(place, name, store, "--tracking-uri", "none") for name in ("anna", "bert")]
        assert at_once(*works) == 0
        assert verify.main([str(store)]) == 0
