"""A clip that was taken down is in no champion: every order of landing, re-curation, take-down and gate is tried.

The flows, their tasks, the store, the gate and the pools are the real ones. What takes long is not: towers of bytes
represent models, so that a whole re-curation takes a moment and many orders can be tried. Each says which clips made
it, which is what the test believes: it asks no code of ours what a lineage holds. `test_landing` does one order of it
with real trainings.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import chain
import pandas as pd
import pytest

from clapcur.data import champions
from clapcur.data.forgotten import forgotten_names
from clapcur.data.improvement_set import Changes
from clapcur.data.manifest import Manifest, captions_table
from clapcur.data.takedowns import why_tainted
from clapcur.errors import DamagedArtifact, DataError, OutdatedError
from clapcur.experiments.config import Experiment, experiment_from_file
from clapcur.flows import forget, reconcile, recurate, steps
from clapcur.lineage import pools
from clapcur.stages.ingest import IngestConfig
from clapcur.stages.tombstone import STAGE as BURY
from clapcur.stages.tombstone import Tombstone
from clapcur.store.artifacts import Artifact, Stage, Workspace
from clapcur.store.home import Home
from clapcur.store.record import Outcome
from clapcur.store.runner import run
from clapcur.tasks.pool import grow as grow_pool
from clapcur.testing import card, clips_table, manifest, write_tones

NAMES = ("a1", "a2", "b", "c", "d", "e", "p", "q")  # a1 and a2 are of one recording, e is the sound of b; p, q: pairs
ID = {name: chain.clip(name) for name in NAMES}
NAME = {clip: name for name, clip in ID.items()}
RECORDING = {"a1": "freesound:100032", "a2": "freesound:100032"}
SOUND = {"e": "b"}
MEANT = {"recording": {"a1", "a2"}, "b": {"b", "e"}}  # what a take-down of this name takes down; else the name alone
LANDINGS = {"first": ("a1", "b"), "second": ("c",), "third": ("a2", "d"), "again": ("a1", "e", "c")}
POINTS = (
    "grown", "ingested", "teacher made", "pool embeds", "curation begins", "set written", "set made",
    "student trains", "student made", "scored", "gate asks", "gate decides", "decided",
)  # fmt: skip
STAGES = ("curate", "train", "embed", "evaluate", "audition", "report")


def table(names: "Iterator[str] | tuple[str, ...] | list[str]") -> pd.DataFrame:
    names = sorted(names, key=lambda name: ID[name])
    return clips_table(
        [ID[name] for name in names],
        pcm_sha256=[f"pcm {SOUND.get(name, name)}" for name in names],
        recording_id=[RECORDING.get(name, "") for name in names],
    )


@dataclass
class World:
    """A home, and what happens to it at which point of the next re-curation."""

    home: Home
    experiment: Experiment
    planned: dict[str, list[str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)  # names of clips that were asked to go, and did
    chosen: frozenset[str] = frozenset(NAMES)  # whom a curation takes, where it is in the pool

    def at(self, point: str) -> None:
        """Let happen what is planned for this point, once."""
        for event in self.planned.pop(point, []):
            self.do(event)

    def do(self, event: str) -> None:
        """Do one step to its end, and look whether every alias is clean then."""
        what, _, name = event.partition(" ")
        if what == "land":
            clips = table(LANDINGS[name])  # as it was scanned before any take-down
            grow_pool("field", manifest(self.home.store, f"landing {name}", clips))
        elif what == "forget":
            forget.forget.fn([RECORDING["a1"] if name == "recording" else ID[name]], "asked")
            self.gone |= MEANT.get(name, {name})
        elif what == "recurate":
            recurate.recurate.fn(self.experiment, force=name == "forced")
        elif what == "reconcile":
            if reconcile.next_key(self.home, self.experiment):
                recurate.recurate.fn(self.experiment)
        self.check(event)

    def check(self, after: str) -> None:
        for alias, checkpoint in champions.standing(self.home.store, self.experiment.name).items():
            held = {NAME[clip] for clip in made_of(checkpoint)} & self.gone
            assert not held, f"after {after}: the {alias} was made of {held}"

    def settle(self) -> None:
        """Reconcile once: then a clean champion is there, and nothing is left to do."""
        self.planned.clear()
        self.do("reconcile")
        standing = champions.standing(self.home.store, self.experiment.name)
        assert set(standing) == set(champions.ALIASES)
        assert champions.why_outdated(self.home.store, self.experiment.name) == ""
        assert reconcile.next_key(self.home, self.experiment) is None
        head = Manifest.open(pools.head(self.home, "field"))
        assert not {NAME[clip] for clip in head.clips.clip_id} & self.gone
        assert standing["champion"].id in {standing["challenger"].id, *self.before()}

    def before(self) -> set[str]:
        """Return whom the last challenger was compared with."""
        made = champions.decisions(self.home.store, self.experiment.name)
        artifact, decision = made[-1]
        return {decision.champion, artifact.record.inputs["teacher"]}


def made_of(checkpoint: Artifact) -> set[str]:
    """Return the ids of the clips that made a checkpoint, as the stage that represents a training wrote them down."""
    return set(json.loads((checkpoint.path / "clips.json").read_text()))


WORLD: list[World] = []  # the one that the stages below belong to


def embed(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
    if "manifest" in inputs and inputs["manifest"].record.stage == "pool":
        WORLD[0].at("pool embeds")
    return Outcome()


def curate(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
    """Pair clips of the pool with one caption."""
    WORLD[0].at("curation begins")
    clips = [clip for clip in Manifest.open(inputs["pool"]).clips.clip_id if NAME[clip] in WORLD[0].chosen]
    pd.DataFrame({"clip_id": clips, "caption_id": "caption"}).to_parquet(work.path / "pairs.parquet")
    changes = None
    if "parent" in inputs:
        old, new = set(pd.read_parquet(inputs["parent"].path / "pairs.parquet").clip_id), set(clips)
        changes = Changes(
            parent=inputs["parent"].id, added=len(new - old), removed=len(old - new), kept=len(old & new),
            clips_added=len(new - old), clips_removed=len(old - new), pairs_per_class={},
        )  # fmt: skip
    card(config.strategy, changes=changes).write(work.path)
    WORLD[0].at("set written")
    return Outcome(counts={"pairs": len(clips)})


def train(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
    is_teacher = "improvement_set" not in inputs
    WORLD[0].at("teacher trains" if is_teacher else "student trains")
    clips = set(Manifest.open(inputs["teacher_pairs"]).pairs.clip_id)
    if not is_teacher:
        clips |= set(pd.read_parquet(inputs["improvement_set"].path / "pairs.parquet").clip_id)
        clips |= made_of(inputs["init"])
    (work.path / "clips.json").write_text(json.dumps(sorted(clips)))
    return Outcome(counts={"seen.teacher_pairs": 8})


def evaluate(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
    """Score a model the better, the more clips made it: what holds a forgotten clip would always win."""
    WORLD[0].at("scored")
    right = 10 + 12 * len(made_of(inputs["checkpoint"]))
    rows = [(f"{n:03d}", f"{n}", "dog", "dog" if n < right else "rain") for n in range(120)]
    told = pd.DataFrame(rows, columns=["clip_id", "group", "label", "predicted"])
    told.to_parquet(work.path / "predictions.parquet")
    return Outcome(metrics={"accuracy": right / 120})


def nothing(inputs: Mapping[str, Artifact], config: Any, work: Workspace) -> Outcome:
    return Outcome()


def before(point: str, function: Callable[..., Any], after: str = "") -> Callable[..., Any]:
    """Return a function that lets happen what is planned for before it, and for after it."""

    def called(*arguments: Any, **options: Any) -> Any:
        if point:
            WORLD[0].at(point)
        found = function(*arguments, **options)
        if after:
            WORLD[0].at(after)
        return found

    return called


@pytest.fixture(scope="module")
def tasks() -> Iterator[None]:
    """Give the tasks small stages, and tell MLflow nothing."""
    small = {"curate": curate, "train": train, "embed": embed, "evaluate": evaluate}
    with pytest.MonkeyPatch.context() as patch:
        for name in STAGES:
            module = import_module(f"clapcur.tasks.{name}")
            real = module.STAGE
            patch.setattr(module, "STAGE", Stage(real.name, real.version, real.kind, small.get(name, nothing)))
        patch.setattr("clapcur.tasks.embed.with_left_out", lambda store, config, inputs: inputs)
        patch.setattr("clapcur.tasks.common.tracking.deliver", lambda home: None)
        patch.setattr("clapcur.tasks.common.tracking.live", lambda *arguments: nullcontext(lambda step, metrics: None))
        patch.setattr(recurate, "grow", before("", recurate.grow, "grown"))
        patch.setattr(recurate, "teacher_of", before("ingested", recurate.teacher_of, "teacher made"))
        patch.setattr(recurate, "improvement_sets", before("", recurate.improvement_sets, "set made"))
        patch.setattr(recurate, "student", before("", recurate.student, "student made"))
        patch.setattr(recurate, "gate", before("gate asks", recurate.gate, "decided"))
        decide = import_module("clapcur.tasks.gate")
        real = decide.STAGE
        patch.setattr(decide, "STAGE", Stage(real.name, real.version, real.kind, before("gate decides", real.compute)))
        patch.setattr(steps.preflight, "check_config", lambda experiment: None)
        patch.setattr(steps.preflight, "check_manifests", lambda experiment, manifests: None)
        patch.setattr(steps, "ingest", ingest)
        patch.setattr(reconcile, "get_client", lambda sync_client: Server())
        yield


def ingest(config: IngestConfig, role: str, campaign: Any) -> Artifact:
    """Return the pairs without what was taken down, as a scan does, and evaluation clips of their own."""
    store = WORLD[0].home.store
    if role == "evaluation":
        return manifest(store, "evaluation", clips_table(["x", "y"]))
    kept = [name for name in ("p", "q") if ID[name] not in forgotten_names(store)]
    return manifest(store, f"pairs {kept}", table(kept), [(ID[name], f"caption of {name}") for name in kept])


class Server:
    """A Prefect server that has seen no run."""

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read_flow_runs(self, flow_run_filter: object) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = write_tones(tmp_path_factory.mktemp("tones"))
    rules = "on_landing: {min_new_clips: 1, max_wait_hours: 100, min_changed: 0.3, strategy: du, soft_labels: false}"
    path.write_text(f"{path.read_text()}\n        pool: pool:field\n        {rules}\n")
    return experiment_from_file(path)


@pytest.fixture(scope="module")
def begun(tasks: None, experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a home with a champion of the first landing; the second one has landed."""
    folder = tmp_path_factory.mktemp("begun") / "home"
    with world(folder, experiment) as one:
        for event in ("land first", "recurate", "land second"):
            one.do(event)
        standing = champions.standing(one.home.store, experiment.name)
        assert {NAME[clip] for clip in made_of(standing["champion"])} == {"p", "q", "a1", "b"}
    return folder


@contextmanager
def world(folder: Path, experiment: Experiment, copied: Path | None = None) -> Iterator[World]:
    if copied:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copied, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAPCUR_HOME", str(folder))
        WORLD[:] = [World(Home.open(folder), experiment)]
        yield WORLD[0]
        WORLD.clear()


def try_order(folder: Path, experiment: Experiment, begun: Path, plan: Mapping[str, list[str]]) -> None:
    with world(folder, experiment, begun) as one:
        one.planned |= {point: list(events) for point, events in plan.items()}
        try:
            one.do("recurate forced")
        except (OutdatedError, DataError) as error:
            one.check(f"{plan}: {error}")
        assert one.planned == {}, f"{plan}: never came there"
        one.settle()


EVENTS = ("forget b", "forget c", "forget p", "forget recording", "land third")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
def test_what_happens_at_any_point_of_a_recuration_leaves_a_clean_champion(point, begun, experiment, tmp_path):
    """A student of a forgotten clip became champion where the clip went between its training and the gate."""
    for event in EVENTS:
        try_order(tmp_path / "home", experiment, begun, {point: [event]})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", ["set written", "student trains", "gate decides"])
def test_two_take_downs_in_one_recuration_leave_a_clean_champion(first, begun, experiment, tmp_path):
    """The second one meets a re-curation that has begun again because of the first one."""
    for later in ("set written", "student trains", "gate asks", "decided"):
        for one, other in (("forget b", "forget p"), ("forget recording", "land again")):
            plan = {first: [one], later: [other]} if first != later else {first: [one, other]}
            try_order(tmp_path / "home", experiment, begun, plan)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", ["recurate", "forget b", "forget p", "reconcile", "land again"])
def test_whole_steps_in_every_order_leave_a_clean_champion(first, begun, experiment, tmp_path):
    """What one step left undone, the next one took for done."""
    others = {"recurate", "forget b", "forget p", "land again", "reconcile"} - {first}
    for order in itertools.permutations(sorted(others), 2):
        with world(tmp_path / "home", experiment, begun) as one:
            for step in (first, *order):
                one.do(step)
            one.settle()


@pytest.mark.slow
def test_a_take_down_that_changes_no_pair_still_finds_a_champion(begun, experiment, tmp_path):
    """Nothing had changed since the last student was judged, so that the teacher was champion for good."""
    with world(tmp_path / "home", experiment, begun) as one:
        one.chosen = frozenset({"b", "c"})
        one.do("recurate forced")
        _, judged = champions.decisions(one.home.store, experiment.name)[-1]
        assert not judged.promoted, "it is as good as the champion, which heard a1 and b"
        one.do("forget a1")
        assert made_of(champions.standing(one.home.store, experiment.name)["champion"]) == {ID["p"], ID["q"]}
        assert "taken down" in champions.why_outdated(one.home.store, experiment.name), "so a re-curation is due"
        one.settle()
        found = champions.standing(one.home.store, experiment.name)["champion"]
        assert {NAME[clip] for clip in made_of(found)} == {"p", "q", "b", "c"}


# -- what a tombstone says, and what it cannot say any more


def write_table(home: Home, *names: str) -> Artifact:
    """Land clips without looking at tombstones, as a version of a pool before the take-down holds them."""
    return manifest(home.store, f"landed {names}", table(names))


def bury(home: Home, **said: str) -> Path:
    stone = Tombstone(**{"clip_id": "", "pcm_sha256": "", "recording_id": "", "reason": "asked", **said})
    return run(BURY, stone, {}, home).path


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ({"clip_id": ID["b"]}, {"a1", "a2", "c", "e"}), ({"pcm_sha256": "pcm b"}, {"a1", "a2", "c"}),
        ({"recording_id": "freesound:100032"}, {"b", "c", "e"}), ({"recording_id": "100032"}, {"b", "c", "e"}),
    ],
)  # fmt: skip
def test_every_way_to_name_a_clip_holds_through_merged_and_landed_again(home, said, left):
    """What was taken down by its sound or its recording came back by the manifest of another landing."""
    from clapcur.stages.merge import STAGE as MERGE
    from clapcur.stages.merge import MergeConfig

    parts = {"part00": write_table(home, "a1", "b", "c"), "part01": write_table(home, "a2", "e")}
    merged = run(MERGE, MergeConfig(), parts, home)
    grow(home, parts["part00"])
    bury(home, **said)
    for landing in (parts["part00"], parts["part01"], merged):
        version = grow(home, landing)
    found = {NAME[clip] for clip in Manifest.open(version).clips.clip_id}
    assert found == (left - {"e"} if "b" in left else left)  # one sound counts once
    for name in ("a1", "a2", "b", "c", "e"):
        chosen = chain.make(home, "improvement_set", name, lambda work, name=name: paired(work, name), {"pool": merged})
        student = chain.make(home, "checkpoint", name, lambda work: {}, {"improvement_set": chosen})
        assert bool(why_tainted(home.store, student)) == (name not in left), name


def test_tags_are_given_over_all_clips_of_a_pool_and_hold_each_of_them(home):
    """A threshold is relative to the mean over the pool: the captions of others depend on a forgotten clip."""
    from clapcur.stages.merge import STAGE as MERGE
    from clapcur.stages.merge import MergeConfig

    pool, pairs = write_table(home, "b", "c"), write_table(home, "p", "q")
    caption = Stage("caption", "1", "manifest", lambda inputs, config, work: write_pair(work, "c"))
    written = run(caption, {}, {"pool": pool}, home)
    made = {
        "searched": chain.make(home, "improvement_set", "ads", lambda work: paired(work, "c"), {"pool": pool}),
        "generated": chain.make(
            home, "improvement_set", "tagcap", lambda work: paired(work, "c"), {"pool": pool, "generated": written}
        ),
        "teacher": chain.make(home, "checkpoint", "t", lambda work: {}, {"teacher_pairs": written}),
        "merged": chain.make(
            home, "checkpoint", "m", lambda work: {},
            {"teacher_pairs": run(MERGE, MergeConfig(), {"part00": written, "part01": pairs}, home)},
        ),
    }  # fmt: skip
    assert {name: why_tainted(home.store, artifact) for name, artifact in made.items()} == dict.fromkeys(made, "")
    bury(home, clip_id=ID["b"])  # which is in no pair
    tainted = {name for name, artifact in made.items() if why_tainted(home.store, artifact)}
    assert tainted == {"generated", "teacher", "merged"}


def write_pair(work: Workspace, name: str) -> Outcome:
    clips, texts = table([name]), captions_table(["a bell"])
    pairs = pd.DataFrame({"clip_id": [ID[name]], "caption_id": texts.caption_id.tolist()}, dtype="str")
    places = pd.DataFrame({"clip_id": [ID[name]], "path": [f"/{name}.wav"]}, dtype="str")
    Manifest(clips, texts, pairs, places).write(work.path)
    return Outcome()


def paired(work: Workspace, name: str) -> Outcome:
    pd.DataFrame({"clip_id": [ID[name]], "caption_id": ["x"]}).to_parquet(work.path / "pairs.parquet")
    return Outcome()


def grow(home: Home, landing: Artifact) -> Artifact:
    from clapcur.stages.pool import STAGE

    following = pools.next_version(home, "field", landing)
    return pools.head(home, "field") if following is None else run(STAGE, *following, home)


def only_record(stone: Path) -> None:
    """Leave of a tombstone what one of an earlier clapcur is."""
    for path in stone.iterdir():
        if path.name != "record.json":
            path.unlink()


def cut(stone: Path) -> None:
    only_record(stone)
    (stone / "record.json").write_bytes((stone / "record.json").read_bytes()[:40])


def flipped(stone: Path) -> None:
    only_record(stone)
    content = (stone / "record.json").read_text()
    (stone / "record.json").write_text(content.replace(ID["b"], ID["c"]))


def a_file(stone: Path) -> None:
    shutil.rmtree(stone)
    stone.write_bytes(b"")


def a_loop(stone: Path) -> None:
    shutil.rmtree(stone)
    stone.symlink_to(stone)


def all_are_a_file(stone: Path) -> None:
    shutil.rmtree(stone.parent)
    stone.parent.write_bytes(b"")


def all_are_away(stone: Path) -> None:
    stone.parent.rename(stone.parents[2] / "aside")
    stone.parent.symlink_to(stone.parents[2] / "not mounted")


DAMAGES = (cut, flipped, a_file, a_loop, all_are_a_file, all_are_away)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_tombstone_that_cannot_be_read_lets_nothing_through(home, answer, damage):
    """A disk that lost the tombstones made champions of what had been taken down."""
    made = chain.experiment(home)
    chain.decision(home, made["teacher"], made["teacher"], made["student"], promoted=True)
    landing = write_table(home, "b")
    damage(bury(home, clip_id=ID["b"]))
    for refused in (
        lambda: champions.standing(home.store, "esc50"),
        lambda: pools.next_version(home, "field", landing),
        lambda: why_tainted(home.store, made["student"]),
    ):
        with pytest.raises(DamagedArtifact, match=r"cannot be excluded|It is unknown which clip"):
            refused()
    code, _, err = answer("sync", "--home", home.root)
    said = err.strip().splitlines()[-1]
    assert (
        code == 1
        and ("is unknown which clip" in said or "cannot be excluded" in said)
        and ("clapcur forget" in said or "restore it from a backup" in said)
    )
    assert "does not respond" not in err


def test_a_tombstone_of_names_alone_or_of_a_record_alone_is_whole(home):
    """Both were written, so that damage to the one does not bring a clip back."""
    one, other = bury(home, clip_id=ID["b"], pcm_sha256="pcm b"), bury(home, clip_id=ID["c"])
    (one / "record.json").write_bytes(b"{")
    only_record(other)
    (one.parent / ".DS_Store").write_bytes(b"")
    assert forgotten_names(home.store) == {ID["b"], "pcm b", ID["c"]}
