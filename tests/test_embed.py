"""Embedding as a stage: what is written, in which order, and that a killed run goes on."""

import dataclasses

import numpy as np
import pytest
from test_train import Corpus

import clapcur
from clapcur import embed as module
from clapcur.embed import STAGE, EmbedConfig, embed
from clapcur.embeddings import EmbeddingTable
from clapcur.manifest import Manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def run(corpus: Corpus, config: EmbedConfig, inputs, version: str = "1"):
    stage = dataclasses.replace(STAGE, version=version)
    work = corpus.store.open(stage.key(config, inputs))
    return corpus.store.commit(work, embed(inputs, config, work), 0.0)


def test_rows_are_those_of_the_model_in_the_order_of_the_ids(corpus):
    """Rows that are shifted against their ids pair every clip with a stranger."""
    inputs = {"checkpoint": corpus.teacher(), "manifest": corpus.pool}
    table = EmbeddingTable.open(run(corpus, EmbedConfig(what="audio", device="cpu"), inputs))
    pool, model = Manifest.open(corpus.pool), clapcur.load_model(corpus.teacher().path, device="cpu")
    assert table.ids == pool.clips.clip_id.tolist()
    for clip in table.ids[::2]:
        assert np.allclose(table.select([clip])[0], model.embed_audio([pool.paths[clip]])[0], atol=1e-5)


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


def test_machine_fields_do_not_name_the_table():
    """Another batch or device must find the same embeddings."""
    config = EmbedConfig(what="audio")
    other = dataclasses.replace(config, batch_size=3, device="cpu")
    assert STAGE.key(config, {}) == STAGE.key(other, {})


@pytest.mark.parametrize(
    "settings", [{"what": "prompts"}, {"what": "audio", "prompts": ("x",)}, {"what": "audio", "num_crops": 0}]
)
def test_configs_without_a_meaning_are_refused(settings):
    """Prompts that are silently left out would embed the wrong thing."""
    with pytest.raises(ValueError, match="prompts|num_crops"):
        EmbedConfig(**settings)
