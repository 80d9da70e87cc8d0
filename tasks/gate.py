"""Two scores -> decision: which student is champion."""

from collections.abc import Mapping
from contextlib import nullcontext

from clapcur.data import champions
from clapcur.data.takedowns import why_tainted
from clapcur.errors import OutdatedError
from clapcur.stages.gate import STAGE, GateConfig
from clapcur.store import dry_run
from clapcur.store.artifacts import Artifact
from clapcur.store.catalog import Campaign
from clapcur.store.home import Home
from clapcur.tasks.common import run_stage, stage_task
from clapcur.tasks.pages import show


@stage_task("gate-{config.dataset}")
def gate(config: GateConfig, inputs: Mapping[str, Artifact], campaign: Campaign | None = None) -> Artifact:
    """Decide whether the challenger replaces the champion.

    Parameters
    ----------
    config : GateConfig
    inputs : mapping of str to Artifact
        By role: ``teacher``, ``champion`` and ``challenger`` (checkpoints), ``champion_scores`` and
        ``challenger_scores``.
    campaign : Campaign, optional
        Campaign that the MLflow run belongs to.

    Raises
    ------
    OutdatedError
        Challenger, champion or teacher was trained on a clip that was taken down, or the champion changed meanwhile, so
        other scores must be compared.
    """
    home = Home.open()
    with nullcontext() if dry_run.current() else champions.turn(home, config.dataset) as lease:
        for role in ("teacher", "champion", "challenger"):
            if inputs[role].is_made and (why := why_tainted(home.store, inputs[role])):
                raise OutdatedError(
                    f"the {role} {inputs[role].id} cannot be champion: {why}; run the same command again"
                )
        now = champions.standing(home.store, config.dataset).get("champion", inputs["champion"])
        if now != inputs["champion"]:
            raise OutdatedError(
                f"the champion of {config.dataset} changed from {inputs['champion'].id} to {now.id}; run the same "
                "command again to compare with it"
            )
        if lease is not None:
            lease.check()
        decided = run_stage(STAGE, config, inputs, campaign, {"role": "gate", "dataset": config.dataset})
    return show(decided)
