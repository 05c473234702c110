"""Runs a command as a Ray job, prints what it prints, and ends with its exit code: python submit.py
COMMAND...

`ray job submit` ends with 1 whatever the command ended with, and a Kubernetes job could not tell a
sweep that is refused from one that was interrupted. RAY_API_SERVER_ADDRESS names the cluster. Ended
by a signal, the Ray job is stopped: it saves its checkpoints.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from types import FrameType

from ray.job_submission import JobInfo, JobStatus, JobSubmissionClient

LOST = 6  # as pointsweep.run says it: what is done is kept, the same command continues
PAUSE_S = 2.0
PATIENCE_S = 120.0  # for a head that does not answer


class TrialStoppedError(Exception):
    """A signal asked to end."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TrialStoppedError(signal.Signals(number).name)


def _show(client: JobSubmissionClient, job: str, printed: int) -> int:
    """Print what is new in the job's log. Return how much of it is printed."""
    log = client.get_job_logs(job)
    sys.stdout.write(log[printed:])
    sys.stdout.flush()
    return len(log)


def _follow(client: JobSubmissionClient, job: str) -> JobInfo:
    """Print the job's log until it has ended. Raises ConnectionError if its head is gone."""
    printed = 0
    heard_at = time.monotonic()
    while True:
        try:
            info = client.get_job_info(job)
            printed = _show(client, job, printed)
            heard_at = time.monotonic()
        except (OSError, RuntimeError) as error:
            # A head that was started anew answers, and does not know the job.
            if time.monotonic() - heard_at > PATIENCE_S or "does not exist" in str(
                error
            ):
                raise ConnectionError(f"the job {job} is lost: {error}") from error
        else:
            if info.status.is_terminal():
                return info
        time.sleep(PAUSE_S)


def main(words: list[str]) -> int:
    if not words:
        print("usage: submit.py COMMAND...", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    try:
        client = JobSubmissionClient()
        job = client.submit_job(entrypoint=shlex.join(words))
    except TrialStoppedError:
        return 3
    except (OSError, RuntimeError) as error:
        print(f"submit: Ray takes no job: {error}", file=sys.stderr)
        return LOST
    print(f"submit: Ray job {job}", flush=True)
    try:
        info = _follow(client, job)
    except TrialStoppedError:
        client.stop_job(job)
        return 3
    except ConnectionError as error:
        print(f"submit: {error}", file=sys.stderr)
        return LOST
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"submit: {info.status}: {info.message}", file=sys.stderr)
    code = info.driver_exit_code
    # Without a code of its own the driver was killed, or its node was lost.
    return code if code is not None and code > 0 else LOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
