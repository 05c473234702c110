"""SIGINT and SIGTERM set a flag. Each test is a process of its own, as signals belong to a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

WORK = """
    import os, signal, sys, threading, time
    from pointsweep.utils import interruption

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, as it should

    def wait_for_the_flag():
        print("ready", flush=True)
        while True:
            interruption.check()
            time.sleep(0.01)

    def hang():
        print("ready", flush=True)
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass

    def rescue():
        print("rescued", flush=True)
"""


def ended(body: str, *numbers: signal.Signals) -> tuple[int, str, float]:
    """Exit code, output and the seconds from the first signal to the end."""
    code = textwrap.dedent(WORK) + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, time.monotonic() - begun


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", ["wait_for_the_flag", "hang"])
def test_a_signal_ends_the_work_with_code_3_whether_it_looks_at_the_flag_or_not(number, work):
    code, output, _ = ended(f"sys.exit(interruption.run({work}, 'it continues', rescue))", number)
    assert code == 3
    assert output == f"rescued\n\ninterrupted by {number.name}: it continues\n"


def test_a_second_signal_changes_nothing():
    body = "sys.exit(interruption.run(wait_for_the_flag, 'it continues', rescue))"
    code, output, _ = ended(body, signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert code == 3
    assert output.count("interrupted by SIGINT") == 1
    assert "Traceback" not in output


def test_handlers_that_a_library_replaces_are_put_back():
    """As Ray does while it starts: a handler of its own for SIGTERM."""
    body = """
    def work():
        with interruption.handlers_kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        wait_for_the_flag()
    sys.exit(interruption.run(work, 'it continues', rescue))
    """
    assert ended(body, signal.SIGTERM)[0] == 3


def test_a_signal_that_a_librarys_handler_takes_is_not_lost():
    body = """
    def work():
        with interruption.handlers_kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
            print("ready", flush=True)
            time.sleep(60)
        wait_for_the_flag()
    sys.exit(interruption.run(work, 'it continues', rescue))
    """
    assert ended(body, signal.SIGTERM)[0] == 3


def test_under_nohup_a_closed_terminal_ends_nothing():
    body = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(interruption.run(wait_for_the_flag, 'it continues', rescue))
    """
    code, output, _ = ended(body, signal.SIGHUP, signal.SIGTERM)
    assert code == 3
    assert "interrupted by SIGTERM" in output
