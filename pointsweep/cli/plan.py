"""The command plan: what a launch of sweep files would do. It is `run --plan` under a name of its
own.
"""

from __future__ import annotations

from pointsweep.cli.command import AllowPluginsOption, Program, StoreOption, Version
from pointsweep.cli.run import (
    CfgOption,
    FileArgument,
    LogFormatOption,
    MoreArgument,
    OnlyOption,
    QuietOption,
    ReplaceOption,
    RerunOption,
    RunOptions,
    checked_and_run,
    words_of,
)
from pointsweep.execution.progress import Display


def plan(
    file: FileArgument,
    more: MoreArgument = None,
    cfg: CfgOption = False,
    only: OnlyOption = None,
    replace: ReplaceOption = False,
    store: StoreOption = None,
    rerun_stale: RerunOption = False,
    allow_plugins: AllowPluginsOption = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "text",
    version: Version = False,
) -> int:
    """Check sweep files; print their tables' skeletons and what would run. Nothing is launched.

    exit codes: 0 a launch would start, 2 invalid, or this machine is not fit
    """
    files, overrides = words_of(file, more or ())
    options = RunOptions(
        files=files,
        overrides=overrides,
        only=tuple(only or ()),
        plan=True,
        cfg=cfg,
        replace=replace,
        rerun_stale=rerun_stale,
        allow_plugins=allow_plugins,
        store=store,
    )

    return checked_and_run(options, Display(quiet=quiet, form=log_format, clock=False))


main = Program("plan", plan, examples=("ablation_table5", "my.yaml profile=smoke"))
