"""Launches what is planned: sweeps together, or a search by its study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from pointsweep.errors import SearchFailedError
from pointsweep.execution import ray_cluster
from pointsweep.execution.options import LaunchOptions
from pointsweep.execution.progress import Display
from pointsweep.execution.session import (
    FAILED,
    Conclusion,
    conclude,
    execute,
    launch_all,
    trial_tags_of,
)
from pointsweep.planning.plan import Plan
from pointsweep.reporting.build import files_of
from pointsweep.reporting.cell_metrics import cell_metrics
from pointsweep.reporting.stale import set_aside
from pointsweep.results.record_index import trial_status
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore, Store, establish
from pointsweep.storage.stores import on_disk
from pointsweep.sweep.definition import write_definition
from pointsweep.sweep.sweep import Sweep
from pointsweep.tracking.mirroring import mirrored
from pointsweep.tracking.target import TrackerUnavailableError, TrialTags, tracking_uri
from pointsweep.tracking.trackers import open_tracker


def launch(
    sweeps: Sequence[Sweep],
    plans: Sequence[Plan],
    store: Store,
    options: LaunchOptions,
    display: Display,
    rerun_stale: bool = False,
) -> list[Conclusion]:
    """Train what is not finished, and return what became of each sweep. A search is launched alone.

    Raises StoreError, ResourcesError or LeaseHeldError where nothing can be launched,
    SearchFailedError where all of a search fails, and StoreUnavailableError or another OSError
    where a disk or a service fails on the way.
    """
    establish(store)
    if rerun_stale:
        put_aside(plans, store, tracking_uri(options.tracking_uri, store))

    if sweeps[0].search is None:
        return execute(plans, store, options, display)

    disk = on_disk(store, "a search keeps its study in a database")
    return [search(sweeps[0], plans[0], disk, options, display)]


def put_aside(plans: Sequence[Plan], store: Store, uri: str) -> None:
    """Take what is stale out of the store, and out of the tracker where it can be reached."""
    stale: dict[str, None] = {}
    for plan in plans:
        stale.update(dict.fromkeys(plan.stale))
        if uri != "none" and plan.stale:
            try:
                open_tracker(uri).set_aside(plan.sweep.name, plan.stale)
            except TrackerUnavailableError as error:
                print(
                    f"{error}\nthe runs of stale trials there keep their old epochs",
                    file=sys.stderr,
                )

    set_aside(store, stale)


def search(
    sweep: Sweep, plan: Plan, store: FileStore, options: LaunchOptions, display: Display
) -> Conclusion:
    """Run the searches of a sweep, their suggestions as ordinary trials, then what they found as an
    ordinary sweep.
    """
    from pointsweep.hpo.export import write_searched
    from pointsweep.hpo.study import working
    from pointsweep.hpo.tuner import Tuning

    uri = tracking_uri(options.tracking_uri, store)
    tags: dict[str, TrialTags] = {}

    # One process at a time may add to a study.
    with (
        TrialFolder(store.path(f"sweeps/{sweep.name}")).lock(),
        mirrored(uri, store, plan.sweep.layout(), tags, bool(plan.to_run)) as mirror,
    ):
        target = mirror.target

        def train(
            batch: Sweep,
            limits: Mapping[str, Mapping[int, float]],
            on_end: Callable[[str], None] | None = None,
        ) -> None:
            batch_tags = trial_tags_of(batch)
            tags.update(batch_tags)
            states = {}

            for trial in batch.trials():
                key = trial.config.key()
                states[key] = trial_status(store, key)

            display.expect(*tuning.extent())
            launch_all(
                plans=[Plan(batch, states, {}, {}, {}, ())],
                store=store,
                targets={batch.name: target} if target is not None else {},
                tags=batch_tags,
                options=options,
                display=display,
                limits=limits,
                on_end=on_end,
            )

        tuning = Tuning(sweep, store)
        tuning.trial_page = mirror.trial_page
        with working(tuning.url):
            tuning.run(train, display.say)
            tags.update(trial_tags_of(tuning.everything()))
            winners = tuning.result()

        if winners is None:
            raise SearchFailedError(
                f"{sweep.name}: every suggestion failed; {store.path('trials')} says why"
            )

        write_definition(winners, store)
        with working(tuning.url):
            write_searched(sweep, tuning.by_arm(), store)

        train(winners, {})
        ray_cluster.leave()
        mirror.layout = winners.layout()

    conclusion = conclude(winners, store, mirror.lines(), (), options, display)
    mirror.publish(files_of(store, winners.name), cell_metrics(conclusion.table))
    if tuning.failed():
        return Conclusion(conclusion.table, max(conclusion.code, FAILED))

    return conclusion
