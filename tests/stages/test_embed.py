"""Embedding as a stage: what is written, in which order, and that a killed run continues."""

import dataclasses
import os
import signal
import tempfile
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from training_corpus import Corpus

import clapcur
from clapcur.audio import load_crops
from clapcur.audio.addresses import cell_address
from clapcur.data.embeddings import EmbeddingTable, are_sound, read_shards, write_shard
from clapcur.data.manifest import Manifest
from clapcur.errors import ArtifactError, DataError
from clapcur.models import prefetch
from clapcur.stages import embed as module
from clapcur.stages.embed import STAGE, EmbedConfig, embed, with_left_out
from clapcur.stages.ingest import IngestConfig, refresh_locations, scan, stage_for
from clapcur.store.artifacts import Artifact, here
from clapcur.testing import manifest, write_tone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


AUDIO = EmbedConfig(what="audio", device="cpu")


def run(corpus: Corpus, config: EmbedConfig, inputs, version: str = "1", spread=here):
    stage = dataclasses.replace(STAGE, version=version)
    work = corpus.store.open(stage.key(config, inputs))
    work.spread = spread
    return corpus.store.commit(work, embed(inputs, config, work), 0.0)


def test_rows_are_those_of_the_model_in_the_order_of_the_ids(corpus):
    """Rows that are shifted against their ids pair every clip with a stranger."""
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pool}
    table = EmbeddingTable.open(run(corpus, EmbedConfig(what="audio", device="cpu"), inputs))
    pool, model = Manifest.open(corpus.pool), clapcur.load_model(corpus.teacher().path, device="cpu")
    assert table.ids == pool.clips.clip_id.tolist()
    for clip in table.ids[::2]:
        assert np.allclose(table.select([clip])[0], model.embed_audio([pool.paths[clip]])[0], atol=1e-5)


def test_cells_of_parquet_are_read_as_they_lie_and_stand_by_their_ids(corpus, tmp_path, monkeypatch):
    """At random, a large pool would cost a row group for each clip; in another order, each row a stranger's name."""
    monkeypatch.setattr(module, "SHARD_ROWS", 5)
    files = Manifest.open(corpus.pool)
    order = sorted(files.paths, key=lambda clip: clip[::-1])
    pd.DataFrame({"audio": [Path(files.paths[clip]).read_bytes() for clip in order]}).to_parquet(tmp_path / "a.parquet")
    cells = {clip: cell_address(str(tmp_path / "a.parquet"), row, "audio") for row, clip in enumerate(order)}
    pool = manifest(corpus.store, "packed", files.clips, paths=cells)
    read = []
    monkeypatch.setattr(prefetch, "load_crops", lambda path, *of: read.append(path) or load_crops(path, *of))
    teacher = corpus.teacher()
    packed = EmbeddingTable.open(
        run(corpus, dataclasses.replace(AUDIO, num_workers=1), {"checkpoint": teacher, "manifest": pool})
    )
    assert read == list(cells.values()) and order != files.clips.clip_id.tolist()
    plain = EmbeddingTable.open(run(corpus, AUDIO, {"checkpoint": teacher, "manifest": corpus.pool}, version="plain"))
    assert packed.ids == plain.ids
    np.testing.assert_allclose(packed.rows_ND, plain.rows_ND, atol=1e-5)


def test_captions_and_prompts_are_embedded_as_given(corpus):
    """Prompts that are sorted or made unique would move the classes."""
    teacher = corpus.teacher()
    prompts = ("a low tone sounds", "a high tone sounds", "a bell")
    config = EmbedConfig(what="prompts", prompts=prompts, device="cpu")
    table = EmbeddingTable.open(run(corpus, config, {"checkpoint": teacher}))
    assert tuple(table.ids) == prompts
    captions = EmbeddingTable.open(
        run(corpus, EmbedConfig(what="captions", device="cpu"), {"checkpoint": teacher, "manifest": corpus.pairs})
    )
    row = captions.select([c for c, t in _captions(corpus) if t == prompts[0]])[0]
    assert np.allclose(row, table.rows_ND[0], atol=1e-5)


def _captions(corpus: Corpus):
    captions = Manifest.open(corpus.pairs).captions
    return list(zip(captions.caption_id, captions.caption, strict=True))


def test_a_killed_run_goes_on_from_its_last_shard_to_the_same_bytes(corpus, monkeypatch):
    """A pool of a million clips must not be embedded twice for one kill, and no shard may be doubled or lost."""
    monkeypatch.setattr(module, "SHARD_ROWS", 5)
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pairs}
    config = EmbedConfig(what="audio", device="cpu")
    unbroken = run(corpus, config, inputs, version="unbroken")
    write = module.write_shard
    written: list[int] = []

    def write_two(folder, index, rows):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(index)
        write(folder, index, rows)

    monkeypatch.setattr(module, "write_shard", write_two)
    work = corpus.store.open(dataclasses.replace(STAGE, version="killed").key(config, inputs))
    with pytest.raises(KeyboardInterrupt):
        embed(inputs, config, work)
    again: list[int] = []
    monkeypatch.setattr(module, "write_shard", lambda f, i, r: (again.append(i), write(f, i, r)))
    resumed = run(corpus, config, inputs, version="killed")
    assert (written, again) == ([0, 1], [2, 3])
    names = [f"rows-{i:05d}.npy" for i in range(4)] + ["ids.parquet"]
    assert sorted(resumed.record.files) == sorted(names)
    assert all((resumed.path / name).read_bytes() == (unbroken.path / name).read_bytes() for name in names)


def test_the_record_says_how_fast_it_was_and_on_what(corpus):
    """Without the share of waiting nobody knows whether a faster disk or a faster GPU would help."""
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pool}
    record = run(corpus, AUDIO, inputs, version="timed").record
    told, heard = record.metrics, [soundfile.info(path) for path in Manifest.open(corpus.pool).paths.values()]
    mean_s = np.mean([info.duration for info in heard])
    assert told["real_time_factor"] / told["rows_per_s"] == pytest.approx(mean_s)
    assert 0 <= told["waiting_share"] <= 1 and record.environment["device"] == "cpu"


def test_a_shard_is_whole_or_not_there(tmp_path, monkeypatch):
    """Two workers may write the same shard, and one may be killed: what is marked done must be all rows."""
    rows = np.eye(3, dtype=np.float32)
    write_shard(tmp_path, 0, rows)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        for index in (0, 1):
            with pytest.raises(KeyboardInterrupt):
                write_shard(tmp_path, index, 2 * rows)
    assert np.array_equal(read_shards(tmp_path), rows)


# -- clips that have no row


def ingested(corpus: Corpus, folder: Path, count: int = 6) -> Artifact:
    """Return the manifest of some tones, as an ingest makes it: with the ids that their bytes have."""
    for index in range(count):
        write_tone(folder / f"{index}.wav", 200.0 * (index + 1), index)
    found = scan(IngestConfig(source=str(folder)))
    stage, identity = stage_for(found)
    work = corpus.store.open(stage.key(identity, {}))
    made = corpus.store.get(work.key) or corpus.store.commit(work, stage.compute({}, identity, work), 0.0)
    refresh_locations(made, found)
    return made


def embed_as_task(corpus: Corpus, config: EmbedConfig, inputs):
    """Embed as the task does: reuse what is complete, complete what is not."""
    inputs = with_left_out(corpus.store, config, inputs)
    return corpus.store.get(STAGE.key(config, inputs)) or run_now(corpus, config, inputs)


def run_now(corpus: Corpus, config: EmbedConfig, inputs):
    work = corpus.store.open(STAGE.key(config, inputs))
    return corpus.store.commit(work, embed(inputs, config, work), 0.0)


HALF = dataclasses.replace(AUDIO, max_bad_fraction=0.5)


def replace(path: str) -> bytes:
    """Put another sound into a file, of the same size and the same time; return what was in it."""
    before, then = Path(path).read_bytes(), os.stat(path)
    write_tone(Path(path), 5000.0, 99)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert os.path.getsize(path) == len(before)
    return before


def test_a_clip_whose_file_was_replaced_is_refused_by_name(corpus, tmp_path):
    """The row of another sound under the id of a clip is believed for ever, and so is all that is curated with it."""
    pool = ingested(corpus, tmp_path)
    clip, path = next(iter(Manifest.open(pool).paths.items()))
    replace(path)
    inputs = {"checkpoint": corpus.teacher(), "manifest": pool}
    with pytest.raises(
        DataError, match=rf"1 clips have no embedding \(changed 1\); the first is {path}: it was clip {clip[:12]}"
    ):
        run_now(corpus, AUDIO, inputs)


@pytest.mark.parametrize("shard_rows", [2, 1024])
def test_few_bad_clips_are_left_out_by_name_and_every_row_keeps_its_clip(
    corpus, tmp_path, monkeypatch, caplog, shard_rows
):
    """One file that vanished must not stop an embedding of a million, nor shift the rows behind it by one."""
    monkeypatch.setattr(module, "SHARD_ROWS", shard_rows)
    pool = ingested(corpus, tmp_path)
    paths, inputs = Manifest.open(pool).paths, {"checkpoint": corpus.teacher(), "manifest": pool}
    whole = EmbeddingTable.open(run(corpus, AUDIO, inputs, version=f"whole {shard_rows}"))
    gone, changed = list(paths)[1], list(paths)[4]
    content = replace(paths[changed])
    os.rename(paths[gone], tmp_path / "elsewhere")
    artifact = run(corpus, HALF, inputs, version=f"some {shard_rows}")
    table = EmbeddingTable.open(artifact)
    assert table.ids == [clip for clip in paths if clip not in (gone, changed)]
    np.testing.assert_allclose(table.rows_ND, whole.select(table.ids), atol=1e-5)
    assert [tuple(row) for row in table.left_out[["id", "path", "reason"]].to_numpy()] == sorted(
        [(gone, paths[gone], "missing"), (changed, paths[changed], "changed")]
    )
    assert artifact.record.counts["left_out"] == 2 and artifact.record.counts["rows"] == 4
    assert "2 clips have no embedding" in caplog.text and "left_out.parquet" in caplog.text
    with pytest.raises(ArtifactError, match=f"{paths[gone]}, which was left out .no such file"):
        table.select([gone])
    os.rename(tmp_path / "elsewhere", paths[gone])
    Path(paths[changed]).write_bytes(content)


def test_a_table_that_lacks_clips_is_completed_when_their_files_are_back(corpus, tmp_path, caplog):
    """The key names the manifest alone: a hit would hand out the incomplete table for ever."""
    pool = ingested(corpus, tmp_path / "pool", 8)
    paths, inputs = Manifest.open(pool).paths, {"checkpoint": corpus.teacher(), "manifest": pool}
    gone, changed = list(paths)[0], list(paths)[5]
    content = replace(paths[changed])
    os.rename(paths[gone], tmp_path / "elsewhere")
    first = embed_as_task(corpus, HALF, inputs)
    caplog.clear()
    assert embed_as_task(corpus, HALF, inputs) == first
    assert "2 clips have no embedding" in caplog.text, "whoever reuses it is told"
    os.rename(tmp_path / "elsewhere", paths[gone])
    second = embed_as_task(corpus, HALF, inputs)
    assert second.record.counts == {"rows": 7, "shards": 1, "embedded": 1, "left_out": 1}
    assert second.record.inputs["previous"] == first.id
    Path(paths[changed]).write_bytes(content)
    third = embed_as_task(corpus, HALF, inputs)
    assert EmbeddingTable.open(third).ids == list(paths)
    assert embed_as_task(corpus, HALF, inputs) == third
    plain = EmbeddingTable.open(run(corpus, AUDIO, inputs, version="plain pool"))
    np.testing.assert_allclose(EmbeddingTable.open(third).rows_ND, plain.rows_ND, atol=1e-5)


def test_a_run_that_was_refused_succeeds_once_the_files_are_back(corpus, tmp_path, monkeypatch):
    """What the refused run left out would otherwise be counted against every later one."""
    monkeypatch.setattr(module, "SHARD_ROWS", 2)
    pool = ingested(corpus, tmp_path / "pool", 7)
    paths, inputs = Manifest.open(pool).paths, {"checkpoint": corpus.teacher(), "manifest": pool}
    config = dataclasses.replace(AUDIO, max_bad_fraction=0.2)
    for index in (0, 3, 6):
        os.rename(paths[list(paths)[index]], tmp_path / str(index))
    with pytest.raises(
        DataError, match=r"2 clips have no embedding .missing 2.*more than max_bad_fraction .0.2. of 7 clips"
    ):
        run_now(corpus, config, inputs)
    for index in (0, 3, 6):
        os.rename(tmp_path / str(index), paths[list(paths)[index]])
    made = run_now(corpus, config, inputs)
    assert EmbeddingTable.open(made).ids == list(paths) and "left_out" not in made.record.counts


def dies_at(call: int, action, counts=lambda *of: True):
    """Return an action that ends like a kill when it is called for this time, counted from 0."""
    calls = iter(range(100))

    def run(*of):
        if counts(*of) and next(calls) == call:
            raise KeyboardInterrupt
        return action(*of)

    return run


@pytest.mark.parametrize("step", ["aside 0", "aside 2", "anew 0", "anew 1", "anew 2"])
def test_a_run_that_is_killed_while_it_leaves_clips_out_goes_on_to_the_same_bytes(corpus, tmp_path, monkeypatch, step):
    """Shards that are written anew in their own place would be cut twice by the run that continues."""
    monkeypatch.setattr(module, "SHARD_ROWS", 2)
    pool = ingested(corpus, tmp_path / "pool", 7)
    paths, inputs = Manifest.open(pool).paths, {"checkpoint": corpus.teacher(), "manifest": pool}
    Path(paths[list(paths)[2]]).unlink()
    unbroken = run(corpus, HALF, inputs, version="unbroken")
    work = corpus.store.open(dataclasses.replace(STAGE, version=f"killed {step}").key(HALF, inputs))
    what, number = step.split()
    with monkeypatch.context() as patch:
        if what == "aside":
            is_move = lambda source, target: Path(source).name.startswith("rows-")  # noqa: E731
            patch.setattr(os, "replace", dies_at(int(number), os.replace, is_move))
        else:
            patch.setattr(module, "write_shard", dies_at(4 + int(number), module.write_shard))  # behind the shards
        with pytest.raises(KeyboardInterrupt):
            embed(inputs, HALF, work)
    killed = corpus.store.commit(work, embed(inputs, HALF, work), 0.0)
    assert files(killed) == files(unbroken)


class Spoilt(torch.nn.Module):
    """A tower that makes NaN of every second clip."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, logmel):
        features = self.tower(logmel)
        features[::2] = torch.nan
        return features


def test_a_row_that_is_not_finite_is_never_written(corpus, tmp_path, monkeypatch):
    """A row of NaN is cached, and the stage that stumbles over it names whoever is beside it."""
    monkeypatch.setattr("clapcur.models.clap.for_inference", Spoilt)
    pool = ingested(corpus, tmp_path, 6)
    paths, inputs = Manifest.open(pool).paths, {"checkpoint": corpus.teacher(), "manifest": pool}
    with pytest.raises(
        DataError, match=rf"no_embedding 3.; the first is {list(paths.values())[0]}: its embedding is not finite"
    ):
        run(corpus, AUDIO, inputs, version="spoilt")
    table = EmbeddingTable.open(run(corpus, HALF, inputs, version="spoilt"))
    assert table.ids == list(paths)[1::2] and table.left_out.id.tolist() == list(paths)[::2]


def test_a_checkpoint_that_makes_nan_of_texts_is_named(corpus, monkeypatch):
    monkeypatch.setattr(
        "clapcur.models.clap.Clap.embed_text", lambda self, texts, batch: np.full((len(texts), 4), np.nan, np.float32)
    )
    teacher, config = corpus.teacher(), EmbedConfig(what="prompts", prompts=("a dog", "a cat"), device="cpu")
    with pytest.raises(
        ArtifactError, match=f"{teacher.id} gives an embedding that is not finite .* for the text 'a dog'"
    ):
        run(corpus, config, {"checkpoint": teacher}, version="spoilt")


def test_odd_sounds_that_are_sounds_have_rows(corpus, tmp_path):
    """A constant, almost nothing, all that is inaudible after resampling, and integers at both ends."""
    time = np.arange(48_000) / 48_000
    sounds = {
        "constant": np.full(48_000, 0.5), "soft": 2e-5 * np.sin(440 * time), "click": np.eye(1, 48_000)[0],
        "ultrasound": 0.5 * np.sin(2 * np.pi * 23_000 * time), "square": np.sign(np.sin(2000 * time)),
        "loud": 99 * np.sin(2000 * time), "opposite": np.stack([np.sin(2000 * time), -0.999 * np.sin(2000 * time)], 1),
    }  # fmt: skip
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 48_000, subtype="FLOAT")
    made = scan(IngestConfig(source=str(tmp_path)))
    assert made.counts["clips"] == len(sounds)
    model = clapcur.load_model(corpus.teacher().path, device="cpu")
    assert are_sound(model.embed_audio(list(made.manifest.paths.values()))).all()


def test_machine_fields_do_not_name_the_table():
    """Another batch or device must find the same embeddings."""
    config = EmbedConfig(what="audio")
    other = dataclasses.replace(config, batch_size=3, device="cpu", num_workers=2, max_bad_fraction=1)
    assert STAGE.key(config, {}) == STAGE.key(other, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"what": "prompts"},
        {"what": "audio", "prompts": ("x",)},
        {"what": "audio", "num_crops": 0},
        {"what": "audio", "batch_size": 0},
        {"what": "audio", "num_workers": -1},
        {"what": "audio", "max_bad_fraction": 5.0},
    ],  # fmt: skip
)
def test_configs_without_a_meaning_are_refused(settings):
    """Prompts that are silently left out would embed the wrong thing."""
    with pytest.raises(ValueError, match="prompts|num_crops|batch_size|max_bad_fraction"):
        EmbedConfig(**settings)


# -- many workers


@pytest.fixture(scope="module")
def prefect():
    """Run Prefect's server once: without one, every worker would start its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness():
        yield


def spread_as(setting: str, monkeypatch):
    """Return what the environment names, on a machine where every worker has one CPU, as this test has."""
    monkeypatch.setattr(os, "cpu_count", lambda: int(setting.partition(":")[2]))
    return spread_of(setting, monkeypatch)


def spread_of(setting: str, monkeypatch):
    from clapcur.tasks import fan_out

    monkeypatch.setenv(fan_out.VARIABLE, setting)
    return fan_out.spread()


@pytest.fixture
def ray_at_home(monkeypatch, tmp_path):
    """Keep Ray on this machine: its folders, its addresses, and the clouds that it asks whether they are its own."""
    (tmp_path / "ray_bootstrap_config.yaml").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else it takes the address of a network card
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: names of sockets are at most 107 characters
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield
        pytest.importorskip("ray").shutdown()


def files(artifact) -> dict[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in artifact.record.files}


@pytest.fixture(scope="module")
def serial(corpus):
    """Embed the pairs in this process, in four shards; one thread, as every worker has: more round in another way."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_ROWS", 5)
        return run(corpus, AUDIO, {"checkpoint": corpus.teacher(), "manifest": corpus.pairs}, version="serial")


@pytest.mark.parametrize("setting", ["processes:2", "ray:2"])
@pytest.mark.slow
def test_two_workers_make_the_bytes_that_one_makes(corpus, serial, setting, prefect, monkeypatch, request):
    """A table that depends on who made which part could be neither resumed elsewhere nor compared."""
    if setting.startswith("ray"):
        pytest.importorskip("prefect_ray", reason="the extra ray is not installed")
        request.getfixturevalue("ray_at_home")
    monkeypatch.setattr(module, "SHARD_ROWS", 5)
    monkeypatch.setattr(module, "_kept_model", lru_cache(lambda *of: pytest.fail("this process was to embed nothing")))
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pairs}
    made = run(corpus, AUDIO, inputs, version=setting, spread=spread_as(setting, monkeypatch))
    assert files(made) == files(serial)
    assert made.record.metrics.keys() == {"rows_per_s", "real_time_factor", "waiting_share"}


@pytest.mark.parametrize("setting", ["threads", "processes:0", "ray:two", "ray:-1"])
def test_a_way_to_fan_out_that_is_not_known_is_refused(setting, monkeypatch):
    """A misspelt setting would leave a cluster idle for days."""
    with pytest.raises(ValueError, match=f"got '{setting}'"):
        spread_of(setting, monkeypatch)


def test_without_a_setting_everything_is_made_here(monkeypatch):
    """A laptop must not start a cluster."""
    assert spread_of("", monkeypatch) is spread_of("none", monkeypatch) is here


def die_once(marker: Path, work, parts):
    """Make one part, then fall dead, the first time; a worker that is started again makes all that is asked of it."""
    if not marker.exists():
        marker.touch()
        work(parts[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    return work(parts)


def test_a_killed_worker_costs_no_shard_that_it_had_finished(corpus, serial, prefect, monkeypatch, tmp_path):
    """A pool of processes dies whole with one of them; the marks must outlive it."""
    monkeypatch.setattr(module, "SHARD_ROWS", 5)
    monkeypatch.setattr("clapcur.tasks.fan_out.SHARES_PER_WORKER", 1)
    over_one = spread_as("processes:1", monkeypatch)
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pairs}
    work = corpus.store.open(dataclasses.replace(STAGE, version="killed worker").key(AUDIO, inputs))
    work.spread = lambda do, parts: over_one(partial(die_once, tmp_path / "died", do), parts)
    with pytest.raises(BrokenProcessPool):
        embed(inputs, AUDIO, work)
    finished = {path: path.stat().st_mtime_ns for path in work.path.glob("rows-*.npy")}
    assert [path.name for path in finished] == ["rows-00000.npy"]
    asked: list[int] = []
    work.spread = lambda do, parts: (asked.extend(parts), [do(parts)])[1]
    made = corpus.store.commit(work, embed(inputs, AUDIO, work), 0.0)
    assert asked == [1, 2, 3] and files(made) == files(serial)
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
