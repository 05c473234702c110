"""Check that a record belongs to a trial."""

from __future__ import annotations

from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial
from pointsweep.results.records import FIRST_WITH_CHECKSUM, Record


def config_problem(record: Record, config: TrialConfig) -> str:
    """Return what speaks against a record being that of the trial with this configuration; empty if
    nothing.

    The configuration of a record with a checksum is not read again: the checksum speaks for it.
    """
    if record.key != config.key():
        return f"it is the record of trial {record.key}"
    if record.schema >= FIRST_WITH_CHECKSUM or not record.config:
        return ""

    checked, wrong = check_trial(dict(record.config))
    if checked is None or wrong:
        return "this version cannot read its configuration"
    if checked.key() == config.key():
        return ""

    return f"its configuration is that of trial {checked.key()}"
