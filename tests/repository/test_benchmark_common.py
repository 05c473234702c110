"""What the benchmarks share."""

from __future__ import annotations

import sys

import pytest

from benchmarks.common import measure, python

BURN_S = 1.0
BURNS = f"import time\nwhile time.process_time() < {BURN_S}: pass"
IGNORES = f"""
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {BURNS!r}]).wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("script", [BURNS, IGNORES], ids=["waited for", "as Ray's daemon: nobody waits for it"])
def test_processor_seconds_of_all_descendants_are_counted(script):
    measured = measure(lambda: python("-c", script))
    # The last look may be a tenth of a second old, longer on a loaded machine.
    assert BURN_S / 4 < measured.cpu_s < 20 * BURN_S
