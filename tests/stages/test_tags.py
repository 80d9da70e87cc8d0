"""Tags: taggers of other projects, thresholds for each class, tags that are given, and pools that grow."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from checkpoint_families import cnn14, stored_filters
from cnn14_reference import reference_features
from conftest import SHARED
from scipy.special import softmax
from tiny_checkpoints import clip, from_shapes

from clapcur.data.tags import Tags
from clapcur.errors import CheckpointError, DataError
from clapcur.models.config import FrontEndConfig, YamnetConfig
from clapcur.models.front_end import LogMel
from clapcur.models.taggers import (
    Cnn14Tagger,
    Vocabulary,
    YamnetTagger,
    open_tagger,
    read_tagger,
    save_tagger,
)
from clapcur.stages.tag import TagConfig, stage_for, tag
from clapcur.stages.tagger import TaggerConfig
from clapcur.stages.tagger import stage_for as tagger_stage_for
from clapcur.store.artifacts import Store, sha256_file
from clapcur.testing import clips_table, commit, embeddings, manifest

WEIGHTS = SHARED / "weights" / "yamnet"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"YAMNet's weights are not at {WEIGHTS}")
NAMES = ("Dog", "Rain", "Siren", "Speech", "Wind")
VOCABULARY = Vocabulary(NAMES, tuple(f"/m/{index}" for index in range(5)))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def clips(tmp_path, store):
    """Six clips of noise, whose ids are the hashes of their files, and their manifest."""
    paths = {}
    for index in range(6):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.3 * clip(0.5 + 0.2 * index, 16_000, index), 16_000)
        paths[sha256_file(path)] = path
    return paths, manifest(store, "pool", clips_table(sorted(paths)), paths=paths)


@pytest.fixture
def tagger(store):
    torch.manual_seed(0)
    model = YamnetTagger(5, YamnetConfig(channels=4)).eval()
    return commit(store, "tagger", "small", lambda work: save_tagger(model, VOCABULARY, work.path))


def run(store, config, inputs):
    stage, identity = stage_for(config)
    work = store.open(stage.key(identity, inputs))
    return store.commit(work, tag(inputs, config, work), 0.0)


def test_panns_head_says_what_the_paper_describes(tmp_path):
    """A head on other features, or another front end, gives probabilities that look as good."""
    tensors = from_shapes(cnn14()) | {"logmel_extractor.melW": stored_filters(32000)}
    torch.save({"iteration": 1, "model": tensors}, tmp_path / "Cnn14.pth")
    read = read_tagger(tmp_path / "Cnn14.pth")
    assert isinstance(read, Cnn14Tagger) and (read.sample_rate, read.num_classes) == (32000, 527)
    wave = torch.from_numpy(clip(1.3, 32_000, 3))[None]
    features = reference_features(tensors, LogMel(FrontEndConfig())(wave))
    expected = torch.sigmoid(features @ tensors["fc_audioset.weight"].T + tensors["fc_audioset.bias"])
    torch.testing.assert_close(read.probabilities(wave), expected, rtol=1e-4, atol=1e-5)

    names = tuple(f"class {index}" for index in range(527))
    (tmp_path / "ours").mkdir()
    save_tagger(read, Vocabulary(names, ("",) * 527), tmp_path / "ours")
    again, vocabulary = open_tagger(tmp_path / "ours")
    assert vocabulary.names == names and torch.equal(again.probabilities(wave), read.probabilities(wave))


@pytest.mark.parametrize(("n_fft", "rate", "f_max"), [(512, 16_000, 8_000), (1024, 32_000, 14_000)])
def test_a_cnn14_of_another_rate_hears_at_that_rate(tmp_path, n_fft, rate, f_max):
    """PANNs publishes one of 16 kHz too; at 32 kHz it would hear everything an octave off."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(n_fft // 2 + 1, 64, 50, f_max, rate, norm="slaney", mel_scale="slaney")
    tensors = from_shapes(cnn14()) | {"logmel_extractor.melW": torch.from_numpy(filters.astype(np.float32))}
    torch.save({"model": tensors}, tmp_path / "Cnn14.pth")
    heard = read_tagger(tmp_path / "Cnn14.pth").front_end.config
    assert (heard.sample_rate, heard.n_fft, heard.hop_samples, heard.f_max) == (rate, n_fft, n_fft * 10 // 32, f_max)


@pytest.mark.parametrize(
    ("names", "message"),
    [(5, "has 527 outputs, but the list has 5 classes"), (None, "the outputs of .* have no names")],
)
def test_a_list_of_classes_that_is_not_the_taggers_is_refused(tmp_path, store, names, message):
    """Every tag would be another class's."""
    torch.save({"model": from_shapes(cnn14())}, tmp_path / "Cnn14.pth")
    if names:
        rows = ["index,mid,display_name", *(f"{index},/m/{index},name {index}" for index in range(names))]
        (tmp_path / "class_labels_indices.csv").write_text("\n".join(rows))
    with pytest.raises((CheckpointError, DataError), match=message):
        stage, identity = tagger_stage_for(TaggerConfig(source=str(tmp_path / "Cnn14.pth")))
        stage.compute({}, identity, store.open(stage.key(identity, {})))


def test_what_is_no_tagger_is_named(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a known tagger: expected YAMNet or PANNs"):
        read_tagger(tmp_path / "other.pth")
    tensors = {name: value for name, value in from_shapes(cnn14()).items() if not name.startswith("fc_audioset")}
    torch.save(tensors, tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match="fc_audioset.weight is missing"):
        read_tagger(tmp_path / "headless.pth")


def test_probabilities_are_those_of_the_tagger_and_thresholds_those_of_the_class(store, clips, tagger):
    """One threshold for all classes gives steady noise no tag, and speech to everything."""
    paths, pool = clips
    config = TagConfig(window_s=1.0, num_windows=2, factor=1.1, least=0.01, most=0.9, floor=0.0, num_workers=1)
    tags = Tags.open(run(store, config, {"manifest": pool, "tagger": tagger}))
    model, _ = open_tagger(tagger.path)
    expected = {}
    for name, path in paths.items():
        wave = soundfile.read(path, dtype="float32")[0]
        if len(wave) < 16_000:
            wave = np.resize(wave, 16_000)
        windows = torch.from_numpy(np.stack([wave[:16_000], wave[len(wave) - 16_000 :]]))
        expected[name] = model.probabilities(windows).mean(dim=0).numpy()
    for row in tags.tags.rename(columns={"class": "index_"}).itertuples():
        assert row.probability == pytest.approx(expected[row.clip_id][row.index_], abs=2e-3)
    assert len(tags.tags) == 6 * 5 and tags.clip_ids == sorted(paths)
    means = np.mean(list(expected.values()), axis=0)
    np.testing.assert_allclose(tags.classes["mean"], means, atol=1e-3)
    np.testing.assert_allclose(tags.classes.threshold, np.clip(1.1 * tags.classes["mean"], 0.01, 0.9))
    given = tags.given(most=2)
    table = tags.tags.pivot(index="clip_id", columns="class", values="probability")
    for name, found in given.items():
        over = {NAMES[k]: table.loc[name, k] / tags.classes.threshold[k] for k in range(5)}
        right = sorted((n for n, s in over.items() if s >= 1), key=lambda n: -over[n])[:2]
        assert [one.name for one in found] == right
        assert found[0].strength == pytest.approx(over[right[0]], rel=1e-6)
    assert "Dog" not in {one.name for found in tags.given(5, unsaid=("Dog",)).values() for one in found}


def test_of_a_pool_that_grew_only_the_new_is_heard_and_the_tags_are_those_of_all(store, clips, tagger, monkeypatch):
    """A threshold is relative to all clips: the old ones get the tags that a new start would give them."""
    paths, pool = clips
    old = sorted(paths)[:4]
    before = manifest(store, "before", clips_table(old), paths=paths)
    config = TagConfig(window_s=1.0, factor=1.05, least=0.0, floor=0.0, num_workers=1)
    first = run(store, config, {"manifest": before, "tagger": tagger})
    whole = run(store, config, {"manifest": pool, "tagger": tagger})
    heard = []
    plain = YamnetTagger.probabilities
    monkeypatch.setattr(YamnetTagger, "probabilities", lambda self, wave: heard.append(len(wave)) or plain(self, wave))
    grown = run(store, config, {"manifest": pool, "tagger": tagger, "previous": first})
    assert sum(heard) == 2 and grown.record.counts["heard"] == 2
    for name in ("tags.parquet", "classes.parquet", "ids.parquet"):
        one, other = (pd.read_parquet(made.path / name) for made in (whole, grown))
        pd.testing.assert_frame_equal(one, other, rtol=1e-5)


def test_a_killed_run_resumes_with_the_next_block(store, clips, tagger, monkeypatch):
    """A pool of a million clips takes hours."""
    from clapcur.stages import tag as module

    _, pool = clips
    config, inputs = TagConfig(window_s=1.0, num_workers=1), {"manifest": pool, "tagger": tagger}
    whole = run(store, dataclasses.replace(config, factor=2.0), inputs)
    monkeypatch.setattr(module, "BLOCK", 2)
    stage, identity = stage_for(config)
    work, calls, plain = store.open(stage.key(identity, inputs)), [], module._block

    def stops(tagger, block, *rest):
        calls.append(block)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(tagger, block, *rest)

    monkeypatch.setattr(module, "_block", stops)
    with pytest.raises(KeyboardInterrupt):
        tag(inputs, config, work)
    tag(inputs, config, work)
    assert [len(block) for block in calls] == [2, 2, 2, 2] and calls[2] == calls[3]
    pd.testing.assert_frame_equal(
        pd.read_parquet(work.path / "tags.parquet"), pd.read_parquet(whole.path / "tags.parquet"), rtol=1e-5
    )


def test_clips_that_cannot_be_heard_are_left_out_and_too_many_are_an_error(store, clips, tagger):
    paths, pool = clips
    gone = sorted(paths)[2]
    paths[gone].unlink()
    inputs = {"manifest": pool, "tagger": tagger}
    with pytest.raises(DataError, match=r"1 of 6 clips cannot be read; the first is .*more than max_bad_fraction"):
        run(store, TagConfig(window_s=1.0), inputs)
    tags = Tags.open(run(store, TagConfig(window_s=1.0, max_bad_fraction=0.5), inputs))
    assert tags.left_out.id.tolist() == [gone] and gone not in tags.clip_ids and gone not in set(tags.tags.clip_id)


def test_any_clap_tags_by_its_prompts(store, rng):
    """The scale of the model decides how sure a softmax is."""
    from tiny_yamnet import SMALL

    from clapcur.models.clap import Clap
    from clapcur.models.config import ClapConfig

    model = Clap.create(ClapConfig.from_dict(SMALL.to_dict()), captions=["a dog", "rain"], seed=0)
    checkpoint = commit(store, "checkpoint", "clap", lambda work: model.save(work.path))
    audio, prompts = rng.standard_normal((4, 24)), rng.standard_normal((3, 24))
    names = [f"c{index}" for index in range(4)]
    inputs = {
        "manifest": manifest(store, "pool", clips_table(names[1:])), "checkpoint": checkpoint,
        "audio_embeddings": embeddings(store, "a", names, audio),
        "prompt_embeddings": embeddings(store, "p", ["dog", "rain", "bell"], prompts),
    }  # fmt: skip
    tags = Tags.open(run(store, TagConfig(class_names=("dog", "rain", "bell"), floor=0.0), inputs))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (audio[1:], prompts)]
    expected = softmax(model.scale().item() * unit[0] @ unit[1].T, axis=1)
    np.testing.assert_allclose(tags.tags.probability.to_numpy().reshape(3, 3), expected, atol=1e-5)
    assert tags.classes.name.tolist() == ["dog", "rain", "bell"] and tags.clip_ids == names[1:]


def test_tags_that_are_known_come_from_a_table(store, clips, tmp_path):
    """AudioSet's own labels name clips by their recordings and classes by their ids."""
    pool = manifest(
        store, "recordings", clips_table(["a", "b", "c"], recording_id=["youtube:7fmOlUlwoNg", "youtube:x-1", ""])
    )
    rows = ["index,mid,display_name", '0,/m/0,"Child speech, kid speaking"', "1,/m/1,Dog", "2,/m/2,Rain"]
    (tmp_path / "names.csv").write_text("\n".join(rows))
    table = tmp_path / "labels.csv"
    table.write_text('recording_id,positive_labels\nyoutube:7fmOlUlwoNg,"/m/0,/m/1"\nyoutube:zzz,"/m/2"\n')
    config = TagConfig(table=str(table), classes=str(tmp_path / "names.csv"))
    made = run(store, config, {"manifest": pool})
    tags = Tags.open(made)
    assert {clip: [one.name for one in found] for clip, found in tags.given(3).items()} == {
        "a": ["Child speech, kid speaking", "Dog"]
    }
    assert made.record.counts["unknown_rows"] == 1 and tags.clip_ids == ["a", "b", "c"]
    table.write_text("clip_id,tags\nb,Rain on surface; Dog\n")
    tags = Tags.open(run(store, TagConfig(table=str(table)), {"manifest": pool}))
    assert [one.name for one in tags.given(3)["b"]] == ["Dog", "Rain on surface"]
    table.write_text("clip_id,tags\nz,Dog\n")
    with pytest.raises(DataError, match="tags none of the 3 clips of the manifest"):
        run(store, TagConfig(table=str(table)), {"manifest": pool})
    table.write_text("clip_id,tags\na,/m/99\n")
    with pytest.raises(DataError, match="line 2: '/m/99' is not a class of"):
        run(store, TagConfig(table=str(table), classes=str(tmp_path / "names.csv")), {"manifest": pool})
    table.write_text("name,tags\na,Dog\n")
    with pytest.raises(DataError, match="needs a column of clip_id, recording_id, path"):
        run(store, TagConfig(table=str(table)), {"manifest": pool})


def test_a_table_is_known_by_its_content(tmp_path):
    table = tmp_path / "tags.csv"
    table.write_text("clip_id,tags\na,Dog\n")
    first = stage_for(TagConfig(table=str(table)))[1]
    table.rename(tmp_path / "moved.csv")
    assert stage_for(TagConfig(table=str(tmp_path / "moved.csv")))[1] == first
    with pytest.raises(DataError, match="does not exist"):
        stage_for(TagConfig(table=str(table)))


@needs_weights
@pytest.mark.slow
def test_yamnet_tags_real_sounds(store, tmp_path):
    """Half of ten classes is what a tagger of AudioSet hears at least; a wrong front end hears next to nothing."""
    rows = pd.read_csv(SHARED / "esc10" / "manifest.csv").iloc[::8]
    wanted = {"dog": "Dog", "rooster": "Chicken, rooster", "crying_baby": "Crying, sobbing", "sneezing": "Sneeze",
              "clock_tick": "Tick", "helicopter": "Helicopter", "chainsaw": "Chainsaw", "rain": "Rain",
              "sea_waves": "Waves, surf", "crackling_fire": "Fire"}  # fmt: skip
    path_of = {sha256_file(SHARED / "esc10" / path): SHARED / "esc10" / path for path in rows.path}
    label = {sha256_file(SHARED / "esc10" / path): name for path, name in zip(rows.path, rows.label, strict=True)}
    pool = manifest(store, "esc10", clips_table(sorted(path_of)), paths=path_of)
    stage, identity = tagger_stage_for(TaggerConfig(source=str(WEIGHTS / "yamnet.safetensors")))
    work = store.open(stage.key(identity, {}))
    tagger = store.commit(work, stage.compute({}, identity, work), 0.0)
    given = Tags.open(run(store, TagConfig(num_workers=1), {"manifest": pool, "tagger": tagger})).given(10)
    right = [wanted[label[name]] in {one.name for one in given.get(name, [])} for name in path_of]
    assert np.mean(right) > 0.6, json.dumps([label[n] for n, ok in zip(path_of, right, strict=True) if not ok])


def test_of_a_version_of_a_pool_only_what_landed_is_heard(tmp_path, monkeypatch):
    """The task finds what the same tagger made of the version before; nobody has to name it."""
    from safetensors.torch import save_file

    from clapcur.stages.ingest import IngestConfig
    from clapcur.store.home import Home
    from clapcur.tasks.ingest import ingest
    from clapcur.tasks.pool import grow
    from clapcur.tasks.tag import adopt_tagger
    from clapcur.tasks.tag import tag as tag_pool

    monkeypatch.setenv("CLAPCUR_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    tensors = YamnetTagger(5, YamnetConfig(channels=4)).state_dict()
    save_file({name.removeprefix("tower."): value for name, value in tensors.items()}, tmp_path / "yamnet.safetensors")
    rows = ["index,mid,display_name", *(f"{index},/m/{index},{name}" for index, name in enumerate(NAMES))]
    (tmp_path / "class_map.csv").write_text("\n".join(rows))
    tagger = adopt_tagger(TaggerConfig(source=str(tmp_path / "yamnet.safetensors")))
    made = []
    for month, seeds in (("november", range(4)), ("december", range(4, 6))):
        (tmp_path / month).mkdir()
        for seed in seeds:
            soundfile.write(tmp_path / month / f"{seed}.wav", 0.3 * clip(1.0, 16_000, seed), 16_000)
        version = grow("field", landing=ingest(IngestConfig(source=str(tmp_path / month)), "landing"))
        made.append(tag_pool(TagConfig(window_s=1.0, num_workers=1), {"manifest": version, "tagger": tagger}, "pool"))
    first, second = made
    assert (first.record.counts["heard"], second.record.counts["heard"]) == (4, 2)
    assert second.record.inputs["previous"] == first.id and len(Tags.open(second).clip_ids) == 6
    whole = run(
        Home.open().store, TagConfig(window_s=1.0, num_workers=1),
        {"manifest": Home.open().store.find(second.record.inputs["manifest"]), "tagger": tagger},
    )  # fmt: skip
    for name in ("tags.parquet", "classes.parquet"):
        one, other = (pd.read_parquet(artifact.path / name) for artifact in (whole, second))
        pd.testing.assert_frame_equal(one, other, rtol=1e-5)


def test_tags_as_vectors_are_in_the_order_of_the_clips_and_classes_that_are_asked_for():
    """A vector whose classes are in another order tells a captioner of another sound."""
    rows = [("a", 0, 0.9), ("a", 2, 0.05), ("b", 1, 0.3)]
    table = pd.DataFrame(rows, columns=["clip_id", "class", "probability"]).astype({"probability": np.float32})
    names = pd.DataFrame({"name": NAMES, "mid": ""})
    tags = Tags.of(names, table, ["a", "b", "c"], lambda mean_K: np.array([0.5, 0.3, 0.1, 0.1, 0.1]))
    given = tags.vectors(["c", "b", "a"], ("Siren", "Rain", "Dog", "Flute"))
    assert given.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    probable = tags.vectors(["a", "b"], NAMES, "probability")
    np.testing.assert_allclose(probable, [[0.9, 0, 0.05, 0, 0], [0, 0.3, 0, 0, 0]], rtol=1e-6)
