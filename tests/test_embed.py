"""Embedding as a stage: what is written, in which order, and that a killed run goes on."""

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
from building import manifest
from test_train import Corpus

import clapcur
from clapcur import embed as module
from clapcur import windows
from clapcur.artifacts import here
from clapcur.audio import load_audio
from clapcur.audio.addresses import cell_address
from clapcur.embed import STAGE, EmbedConfig, embed
from clapcur.embeddings import EmbeddingTable, read_shards, write_shard
from clapcur.manifest import Manifest


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
    monkeypatch.setattr(windows, "load_audio", lambda path, rate: read.append(path) or load_audio(path, rate))
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
    assert sorted(resumed.record["files"]) == sorted(names)
    assert all((resumed.path / name).read_bytes() == (unbroken.path / name).read_bytes() for name in names)


def test_the_record_says_how_fast_it_was_and_on_what(corpus):
    """Without the share of waiting nobody knows whether a faster disk or a faster GPU would help."""
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pool}
    record = run(corpus, AUDIO, inputs, version="timed").record
    told, heard = record["metrics"], [soundfile.info(path) for path in Manifest.open(corpus.pool).paths.values()]
    mean_s = np.mean([info.duration for info in heard])
    assert told["real_time_factor"] / told["rows_per_s"] == pytest.approx(mean_s)
    assert 0 <= told["waiting_share"] <= 1 and record["environment"]["device"] == "cpu"


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


def test_machine_fields_do_not_name_the_table():
    """Another batch or device must find the same embeddings."""
    config = EmbedConfig(what="audio")
    other = dataclasses.replace(config, batch_size=3, device="cpu", num_workers=2)
    assert STAGE.key(config, {}) == STAGE.key(other, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"what": "prompts"},
        {"what": "audio", "prompts": ("x",)},
        {"what": "audio", "num_crops": 0},
        {"what": "audio", "batch_size": 0},
        {"what": "audio", "num_workers": -1},
    ],  # fmt: skip
)
def test_configs_without_a_meaning_are_refused(settings):
    """Prompts that are silently left out would embed the wrong thing."""
    with pytest.raises(ValueError, match="prompts|num_crops|batch_size"):
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
    from tasks import fan_out

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
    return {name: (artifact.path / name).read_bytes() for name in artifact.record["files"]}


@pytest.fixture(scope="module")
def serial(corpus):
    """Embed the pairs in this process, in four shards; one thread, as every worker has: more round in another way."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_ROWS", 5)
        return run(corpus, AUDIO, {"checkpoint": corpus.teacher(), "manifest": corpus.pairs}, version="serial")


@pytest.mark.parametrize("setting", ["processes:2", "ray:2"])
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
    assert made.record["metrics"].keys() == {"rows_per_s", "real_time_factor", "waiting_share"}


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
    monkeypatch.setattr("tasks.fan_out.SHARES_PER_WORKER", 1)
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
