"""Inputs that went wrong in other hands, as scripts outside of this project make and try them: each right answer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapcur.models.clap import Clap
from clapcur.models.config import AudioConfig, ClapConfig, FrontEndConfig, TextConfig
from clapcur.store.artifacts import Workspace
from clapcur.store.home import Home
from clapcur.testing import commit, write_tone

TEXTS = ["a dog barks", "rain falls on a roof", "a siren wails"]
CLAPCUR = Path(sys.executable).parent / "clapcur"
Shared = Callable[[str], Path]


def tiny() -> Clap:
    front_end = FrontEndConfig(sample_rate=16_000, n_fft=512, hop_samples=320, num_mels=40, f_max=7800.0)
    config = ClapConfig(
        audio=AudioConfig(front_end=front_end, width="tiny"),
        text=TextConfig(hidden_size=32, num_layers=1, num_heads=2, vocab_size=60),
        embedding_dim=32,
        window_s=1.0,
    )
    return Clap.create(config, TEXTS).eval()


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = tuple(map(str, words))
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=120, check=False)


def made_by(shared_data: Shared, script: str, folder: Path) -> Path:
    done = run(sys.executable, shared_data(f"odd_inputs/{script}"), folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_guard_finds_a_recording_in_every_spelling_of_its_id(shared_data: Shared) -> None:
    done = run(sys.executable, shared_data("odd_inputs/leak_by_id.py"))
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["2 of 2"] * 3 + ["0 of 2"], done.stderr


@pytest.mark.slow
def test_a_series_is_read_in_the_order_of_its_values(shared_data: Shared, tmp_path: Path) -> None:
    tiny().save(tmp_path / "model")
    tone = write_tone(tmp_path / "tone.wav", 800, seed=0)
    done = run(sys.executable, shared_data("odd_inputs/series_order.py"), tmp_path / "model", tone)
    first, second, by_list, by_series = done.stdout.splitlines()
    assert first.endswith("True") and second.endswith("True"), done.stderr
    assert by_list.split(":", 1)[1] == by_series.split(":", 1)[1]


@pytest.mark.slow
def test_a_clip_that_was_replaced_is_not_embedded_under_the_old_id(home: Home, shared_data: Shared) -> None:
    def write(work: Workspace) -> None:
        tiny().save(work.path)

    teacher = commit(home.store, "checkpoint", "teacher", write)
    done = run(
        "bash", shared_data("odd_inputs/changed_after_ingest.sh"), CLAPCUR=str(CLAPCUR), PYTHON=sys.executable,
        CLAPCUR_HOME=str(home.root), TEACHER=teacher.id,
    )  # fmt: skip
    assert done.returncode == 1 and "FAULT" not in done.stdout, done.stdout
    assert "a.wav" in done.stderr.splitlines()[-1] and "ingest again" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ("labels.csv", "classes.txt", "Dog Bark"),
        ("labels_extra.csv", "classes.txt", "speech"),
        ("labels_ok.csv", "classes_case.txt", "case"),
        ("labels_ok.csv", "classes.csv", "table"),
        ("labels_ok.csv", "classes_cp1252.txt", "UTF-8"),
        ("labels_ok.csv", "classes_empty.txt", "at least two class names"),
    ],
)
def test_labels_and_classes_are_checked_before_a_teacher_is_trained(
    home: Home, shared_data: Shared, tmp_path: Path, labels: str, classes: str, said: str
) -> None:
    folder = made_by(shared_data, "make_tables.py", tmp_path / "odd")
    done = run(
        CLAPCUR, "improve", "--pairs", folder / "semicolon.csv", "--pool", folder / "nfd",
        "--classes", folder / classes, "--evaluation", folder / labels, CLAPCUR_HOME=str(home.root),
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode in (1, 2) and last.startswith("error: ") and said in last, done.stderr
    assert list(home.store.of_kind("checkpoint")) == []


def test_cut_sounds_of_every_container_are_quarantined_as_cut(shared_data: Shared, tmp_path: Path) -> None:
    from clapcur.audio import Problem, probe

    made_by(shared_data, "make_audio.py", tmp_path / "sounds")
    cut = sorted((tmp_path / "sounds").glob("half_of_*"))
    assert len(cut) >= 4
    answers = {path.name: probe(path) for path in cut}
    assert {name: answer for name, answer in answers.items() if not isinstance(answer, Problem)} == {}
    for name in ("huge_float_1e20.wav", "one_huge_sample.wav", "int16_values_as_float.wav"):
        answer = probe(tmp_path / "sounds" / name)
        assert isinstance(answer, Problem) and answer.reason in ("non_finite", "out_of_range"), name


def test_a_class_with_two_dollars_and_a_list_of_hundreds_get_their_figures(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """`cls_math.txt`, and the list of 1,500 names that took 21 GB: drawn in seconds, whatever the names are."""
    from clapcur.methods.plots import confusion_figure

    names = ["$\\alpha_{x$ noise $", "AC/DC_hum", "{braces}", "[/red]", *(f"class number {k}" for k in range(1500))]
    counts = rng.integers(0, 3, (len(names), len(names)))
    confusion_figure(counts, names, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size < 5_000_000


def test_an_ogg_without_its_last_mark_and_an_mp3_behind_zeros_are_whole(shared_data: Shared, tmp_path: Path) -> None:
    from clapcur.audio import ClipInfo, probe

    made_by(shared_data, "make_audio.py", tmp_path)
    answer = probe(tmp_path / "mp3_lead_garbage.mp3")
    assert isinstance(answer, ClipInfo)
    samples, rate = soundfile.read(tmp_path / "mp3_lead_garbage.mp3")
    assert answer.duration_s == pytest.approx(len(samples) / rate, abs=0.01)
