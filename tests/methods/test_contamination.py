"""Contamination: which clips are known from others, and from what a checkpoint learned."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from clapcur.data.class_names import prompts
from clapcur.data.recordings import recording
from clapcur.errors import EmptySetError
from clapcur.methods.contamination import (
    LEAST_DIFFERENT,
    LearnedFrom,
    ancestors,
    calibrated_threshold,
    learned_from,
    near_duplicate_threshold,
    near_duplicates_by,
    nearest_different,
    overlap,
)
from clapcur.stages.evaluate import STAGE, EvaluateConfig, evaluate
from clapcur.store.artifacts import Artifact, Store
from clapcur.testing import clips_table, commit, embeddings, manifest, rewrite_record


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data("meta/esc50", "meta/urbansound8k")
def test_the_94_recordings_that_esc50_and_urbansound8k_share_are_found_and_no_more(shared_data) -> None:
    """Every paper that trains on one and scores on the other without looking has this leak."""

    def table(path: Path, file: str, sound: str) -> pd.DataFrame:
        with open(path, newline="", encoding="utf-8") as lines:
            rows = [(row[file], recording("freesound", row[sound])) for row in csv.DictReader(lines)]
        return clips_table([name for name, _ in rows], recording_id=[sound for _, sound in rows])

    esc = table(shared_data("meta/esc50/esc50.csv"), "filename", "src_file")
    urban = table(shared_data("meta/urbansound8k/UrbanSound8K.csv"), "slice_file_name", "fsID")
    found = overlap(esc, urban)
    by_hand = {name.split("-")[1] for name in esc.clip_id} & {name.split("-")[0] for name in urban.clip_id}
    assert {name.removeprefix("freesound:") for name in found.matches.name} == by_hand and len(by_hand) == 94
    assert found.clips("recording") == {name for name in esc.clip_id if name.split("-")[1] in by_hand}
    assert found.counts() == {"clip": 0, "recording": 106}
    assert overlap(urban, esc).counts() == {"clip": 0, "recording": 474}


def test_a_clip_counts_for_the_first_reason_that_applies() -> None:
    """Counted for each, the numbers would add up to more clips than there are."""
    others = clips_table(["a", "x", "y"], pcm_sha256=["pcm-a", "pcm-b", "p"], recording_id=["r1", "", "r2"])
    clips = clips_table(list("abcde"), recording_id=["r1", "r2", "r2", "", "r9"])
    found = overlap(clips, others)
    assert found.reason_of() == {"a": "clip", "b": "clip", "c": "recording"}
    assert found.counts() == {"clip": 2, "recording": 1}
    assert found.examples()["recording"][-1] == {"clip_id": "c", "other_clip_id": "y", "name": "r2"}


def test_the_same_sound_goes_with_the_clip_whose_recording_is_known() -> None:
    """The copy in another container says nothing of its recording and would slip through."""
    clips = clips_table(["ogg", "wav", "other"], pcm_sha256=["s", "s", "t"], recording_id=["r1", "", ""])
    found = overlap(clips, clips_table(["e"], recording_id=["r1"]))
    assert found.clips("recording") == {"ogg", "wav"}
    assert found.matches.other_clip_id.tolist() == ["e", "e"]


def test_clips_without_a_recording_share_none() -> None:
    """An empty id is that of thousands of clips; one of them in the evaluation would empty the pool."""
    assert overlap(clips_table(["a", "b"]), clips_table(["c", "d"])).counts() == {"clip": 0, "recording": 0}
    assert overlap(clips_table([]), clips_table(["c"])).counts() == {"clip": 0, "recording": 0}


names = st.sampled_from(["", "r1", "r2", "r3"])
tables = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("stuvw"), names), unique_by=lambda row: row[0])


@settings(max_examples=100, deadline=None)
@given(tables, tables)
def test_names_meet_as_in_the_obvious_loop(own, foreign) -> None:
    def table(rows):
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        return clips_table(columns[0], pcm_sha256=columns[1], recording_id=columns[2])

    same = {clip for clip, sound, _ in own if any(clip == c or sound == s for c, s, _ in foreign)}
    cut = {(clip, sound) for clip, sound, name in own if name and any(name == other for _, _, other in foreign)}
    related = {clip for clip, sound, _ in own if sound in {s for _, s in cut}}
    found = overlap(table(own), table(foreign))
    assert found.clips("clip") == same and found.clips("recording") == related
    assert sum(found.counts().values()) == len(same | related)


# --- by sound --------------------------------------------------------------------------------------------------------


def test_near_duplicates_are_those_at_the_threshold_or_above(rng) -> None:
    rows = unit(rng.standard_normal((20, 8)))
    other = unit(rng.standard_normal((5, 8)))
    other[2] = rows[7]
    limit = float((rows @ other.T).max(axis=1)[3])
    clips, others = clips_table([f"c{i:02d}" for i in range(20)]), clips_table([f"o{i}" for i in range(5)])
    found = overlap(clips, others, rows, other, limit)
    nearest = np.float32((rows.astype(np.float64) @ other.T.astype(np.float64)).max(axis=1))
    assert found.clips("near_duplicate") == {f"c{i:02d}" for i in np.flatnonzero(nearest >= np.float32(limit))}
    assert found.matches.set_index("clip_id").loc["c07", ["other_clip_id", "name"]].tolist() == ["o2", "1.0000"]
    assert overlap(clips, others).checked == ("clip", "recording"), "what was not looked for is not counted as none"


def test_the_nearest_that_differs_is_of_another_recording(rng) -> None:
    """Against the obvious loop, in blocks that do not fit: two slices of one recording are alike and no evidence."""
    rows, groups = unit(rng.standard_normal((53, 6))), np.array([f"r{i // 3}" for i in range(53)])
    expected = [max(rows[i] @ rows[j] for j in range(53) if groups[i] != groups[j]) for i in range(53)]
    np.testing.assert_allclose(nearest_different(rows, groups, block=10), expected, atol=1e-6)
    assert len(nearest_different(rows, np.full(53, "one"))) == 0


@pytest.mark.parametrize("false_alarms", [0.0, 0.01, 0.1])
def test_no_more_than_the_allowed_share_of_different_clips_passes_for_the_same(rng, false_alarms) -> None:
    """And the next lower threshold would let too many pass: it gives away no duplicate that it need not."""
    similarity = rng.uniform(0.2, 0.99, 250).astype(np.float32)
    threshold = calibrated_threshold(similarity, false_alarms)
    allowed = int(false_alarms * 250)
    assert (similarity >= np.float32(threshold)).sum() == allowed
    assert (similarity >= np.nextafter(np.float32(threshold), np.float32(0))).sum() == allowed + 1


def test_the_threshold_parts_copies_from_other_recordings(rng) -> None:
    """A fixed 0.9999 misses every copy that was compressed; the calibrated one is between the two crowds."""
    rows = unit(rng.standard_normal((400, 32)))
    copies = unit(rows[:50] + 0.02 * rng.standard_normal((50, 32)))
    clips = clips_table([f"{i:03d}" for i in range(400)], recording_id=[f"r{i // 2}" for i in range(400)])
    threshold, different = near_duplicate_threshold("calibrated", clips, rows)
    assert different.max() < threshold < 0.95
    evaluation = clips_table([f"e{i:02d}" for i in range(50)])
    found = overlap(clips, evaluation, rows, copies, threshold)
    assert found.clips("near_duplicate") == {f"{i:03d}" for i in range(50)}
    assert len(overlap(clips, evaluation, rows, copies, 0.9999).clips("near_duplicate")) < 50
    assert near_duplicate_threshold(0.7, clips, rows) == (0.7, None)


def test_clips_of_unknown_recordings_are_no_evidence_that_sounds_differ(rng) -> None:
    """Copies without an id would teach that copies differ, and none would ever be found."""
    rows = unit(rng.standard_normal((150, 16)))
    doubled = np.concatenate([rows, rows])
    ids = [f"r{i}" for i in range(150)] + [""] * 150
    threshold, different = near_duplicate_threshold(
        "calibrated", clips_table([f"{i:03d}" for i in range(300)], recording_id=ids), doubled
    )
    assert len(different) == 150 and threshold < 0.95


@pytest.mark.parametrize("clips", [0, LEAST_DIFFERENT - 1])
def test_too_few_clips_to_calibrate_on_is_an_error(clips: int) -> None:
    with pytest.raises(EmptySetError, match=f"needs {LEAST_DIFFERENT} clips .* got {clips}; give near_duplicate as"):
        calibrated_threshold(np.zeros(clips, np.float32))
    with pytest.raises(ValueError, match=r"false_alarms must be a fraction in \[0, 1\), got 5"):
        calibrated_threshold(np.zeros(LEAST_DIFFERENT, np.float32), 5)


def log_mel_statistics(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return mean, spread and upper tenth of 30-odd log-spaced bands: an embedding that nothing was trained for."""
    waveform = soxr.resample(waveform, sample_rate, 16_000)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, 256), 512)[::160] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(2, 256, 33).astype(int))
    bands = np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-6)
    return np.concatenate([bands.mean(0), bands.std(0), np.percentile(bands, 90, 0)])


def as_lossy_copy(waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
    """Return what a low-rate Ogg Vorbis at 16 kHz keeps of a sound."""
    file = io.BytesIO()
    waveform = soxr.resample(waveform, sample_rate, 16_000)
    soundfile.write(file, waveform, 16_000, format="OGG", subtype="VORBIS", compression_level=0.9)
    file.seek(0)
    return soundfile.read(file)


@pytest.mark.shared_data("esc10")
def test_on_real_sounds_the_calibrated_threshold_finds_copies_and_no_other_recording(shared_data) -> None:
    """Of 100 lossy copies the fixed 0.9999 finds hardly one; what finds them must not take two dogs for one."""
    folder = shared_data("esc10")
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sounds = [soundfile.read(folder / row["path"]) for row in rows]
    features = np.stack([log_mel_statistics(*sound) for sound in sounds])
    copied = np.stack([log_mel_statistics(*as_lossy_copy(*sound)) for sound in sounds[::4]])
    mean, spread = features.mean(0), features.std(0)
    own, copies = unit((features - mean) / spread), unit((copied - mean) / spread)
    recordings = [recording("freesound", row["freesound_id"]) for row in rows]
    clips = clips_table([row["path"] for row in rows], recording_id=recordings)
    threshold, different = near_duplicate_threshold("calibrated", clips, own)
    assert (different >= threshold).sum() == 0
    of_copies = clips_table([f"copy of {row['path']}" for row in rows[::4]])
    found = {at: overlap(of_copies, clips, copies, own, at).clips("near_duplicate") for at in (threshold, 0.9999)}
    assert len(found[threshold]) >= 80 and len(found[0.9999]) <= 5


# --- what a checkpoint learned from ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def checkpoint(store: Store, name: str, **inputs: Artifact) -> Artifact:
    def write(work):
        save_file({"logit_scale": np.array(2.6, np.float32)}, work.path / "model.safetensors")

    return commit(store, "checkpoint", name, write, inputs)


def pairs(store: Store, name: str, clips: pd.DataFrame) -> Artifact:
    return manifest(store, name, clips, [(clip, f"caption of {clip}") for clip in clips.clip_id])


def improvement_set(store: Store, chosen: list[str], **inputs: Artifact) -> Artifact:
    def write(work):
        pd.DataFrame({"clip_id": chosen}).to_parquet(work.path / "pairs.parquet")

    return commit(store, "improvement_set", f"set of {chosen}", write, inputs)


def student(store: Store) -> Artifact:
    """Make a student of a teacher: the teacher learned from t1 and t2, the student from p1 of a pool of two."""
    own = pairs(store, "pairs", clips_table(["t1", "t2"], recording_id=["freesound:1", ""]))
    pool = manifest(store, "pool", clips_table(["p1", "p2"], recording_id=["freesound:7", "freesound:8"]))
    teacher = checkpoint(store, "teacher", teacher_pairs=own)
    chosen = improvement_set(store, ["p1"], pool=pool, teacher_pairs=own)
    return checkpoint(store, "student", init=teacher, teacher=teacher, improvement_set=chosen, pool=pool)


def heard_by(store: Store, model: Artifact) -> LearnedFrom:
    return learned_from(model, {artifact.id: artifact for artifact in ancestors(store, model).values()})


def test_a_student_has_learned_from_its_set_and_from_all_that_its_teacher_heard(store) -> None:
    """A student's own inputs name the set alone; of the pool it heard only what was chosen."""
    learned = heard_by(store, student(store))
    assert sorted(learned.clips.clip_id) == ["p1", "t1", "t2"]
    assert learned.unknown == []


def test_a_checkpoint_from_elsewhere_and_a_lost_manifest_are_unknown_not_clean(store) -> None:
    """Exactly those models that were trained on everything would be called clean."""
    foreign = checkpoint(store, "from the hub")
    assert heard_by(store, foreign).unknown == [f"checkpoint {foreign.id}"]
    own = pairs(store, "pairs", clips_table(["t1"]))
    tuned = checkpoint(store, "tuned", init=foreign, teacher_pairs=own)
    assert heard_by(store, tuned).unknown == [f"checkpoint {foreign.id}"]
    assert heard_by(store, tuned).clips.clip_id.tolist() == ["t1"]
    (own.path / "clips.parquet").unlink()
    assert heard_by(store, tuned).unknown == [f"checkpoint {foreign.id}", f"teacher_pairs {own.id}"]


CLASSES = ("dog", "rain")
ROWS = np.array([[9, 1], [1, 9], [9, 0], [1, 8]], float)


def scored(store: Store, model: Artifact, clips: pd.DataFrame, **more: Artifact) -> tuple[dict, pd.DataFrame]:
    clips = clips.assign(label=["dog", "rain", "rain", "rain"][: len(clips)])
    audio = embeddings(store, "audio", clips.clip_id.tolist(), ROWS[: len(clips)])
    rewrite_record(audio, config={"num_crops": 1})
    inputs = {
        "checkpoint": model, "audio_embeddings": audio, "evaluation": manifest(store, "evaluation", clips),
        "prompt_embeddings": embeddings(store, "prompts", prompts(CLASSES), np.eye(2)), **more,
        **ancestors(store, model),
    }  # fmt: skip
    config = EvaluateConfig(class_names=CLASSES)
    work = store.open(STAGE.key(config, inputs))
    outcome = evaluate(inputs, config, work)
    scores = json.loads((work.path / "scores.json").read_text())
    assert outcome.counts["contaminated"] == scores["contamination"]["num_clips"]
    return scores, pd.read_parquet(work.path / "predictions.parquet").set_index("clip_id")


def test_a_score_says_which_of_its_clips_the_checkpoint_has_learned_from(store) -> None:
    """The accuracy of the clips that are new is beside it: of all three of four are right, of these one of two."""
    clips = clips_table(["t2", "e1", "e2", "e3"], recording_id=["", "freesound:7", "freesound:8", "freesound:9"])
    scores, predictions = scored(store, student(store), clips)
    known = scores["contamination"]
    assert (known["status"], known["num_clips"], known["unknown"]) == ("contaminated", 2, [])
    assert known["by_reason"] == {"clip": 1, "recording": 1}
    assert known["examples"]["recording"] == [{"clip_id": "e1", "other_clip_id": "p1", "name": "freesound:7"}]
    assert (scores["accuracy"], known["accuracy_of_others"]) == (0.75, 0.5)
    assert predictions.known_by.to_dict() == {"t2": "clip", "e1": "recording", "e2": "", "e3": ""}


def test_scores_of_clips_that_are_new_are_clean_and_those_of_a_foreign_model_unknown(store) -> None:
    clips = clips_table(["e1", "e2"], recording_id=["freesound:21", ""])
    scores, _ = scored(store, student(store), clips)
    assert scores["contamination"]["status"] == "clean" and scores["contamination"]["accuracy_of_others"] is None
    foreign = checkpoint(store, "from the hub")
    scores, _ = scored(store, foreign, clips)
    assert (scores["contamination"]["status"], scores["contamination"]["unknown"]) == (
        "unknown", [f"checkpoint {foreign.id}"],
    )  # fmt: skip


def curated_against(store: Store, evaluation: pd.DataFrame, near_duplicate: object) -> Artifact:
    """Make a student of a set that was curated with these evaluation clips in sight: e2 sounds like t2."""
    clips = evaluation.assign(label=["dog", "rain"])
    inputs = {
        "evaluation": manifest(store, "evaluation", clips),
        "teacher_pairs": pairs(store, "pairs", clips_table(["t1", "t2"], recording_id=["freesound:1", ""])),
        "teacher_clip_embeddings": embeddings(store, "tc", ["t1", "t2"], np.array([[1.0, 0], [0.6, 0.8]])),
        "evaluation_embeddings": embeddings(store, "ev", ["e1", "e2"], np.array([[0, 1.0], [0.6, 0.8]])),
        "pool": manifest(store, "pool", clips_table(["p1"])),
    }
    chosen = improvement_set(store, ["p1"], **inputs)
    rewrite_record(chosen, config={"near_duplicate": near_duplicate})
    return checkpoint(store, f"student {near_duplicate}", teacher_pairs=inputs["teacher_pairs"], improvement_set=chosen)


def test_near_duplicates_of_teacher_clips_are_found_where_curation_had_embedded_both(store) -> None:
    """The teacher's own pairs cannot be excluded; a score that is on a copy of one must say so."""
    clips = clips_table(["e1", "e2"], recording_id=["freesound:21", ""])
    scores, _ = scored(store, curated_against(store, clips, 0.9999), clips)
    assert scores["contamination"]["by_reason"] == {"clip": 0, "recording": 0, "near_duplicate": 1}
    assert scores["contamination"]["examples"]["near_duplicate"] == [
        {"clip_id": "e2", "other_clip_id": "t2", "name": "1.0000"}
    ]
    assert scores["contamination"]["near_duplicate_threshold"] == 0.9999


def test_where_nobody_looked_for_near_duplicates_none_are_counted(store) -> None:
    """Not looked for, curated against other clips, or collected since: "0 near duplicates" would be a claim."""
    clips = clips_table(["e1", "e2"], recording_id=["freesound:21", ""])
    without = {"clip": 0, "recording": 0}
    assert scored(store, curated_against(store, clips, None), clips)[0]["contamination"]["by_reason"] == without
    model = curated_against(store, clips, 0.9999)
    other = clips.assign(recording_id=["freesound:22", ""])
    known = {artifact.id: artifact for artifact in ancestors(store, model).values()}
    assert list(near_duplicates_by(heard_by(store, model).sets, known, "another evaluation", other)) == []
    lost = embeddings(store, "tc", ["t1", "t2"], np.array([[1.0, 0], [0.6, 0.8]]))
    (lost.path / "record.json").unlink()
    assert scored(store, model, clips)[0]["contamination"]["by_reason"] == without
