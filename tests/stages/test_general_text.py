"""General text as captions: how it is read, split and cleaned, what can be heard, near duplicates, and errors."""

import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from clapcur.cli import app
from clapcur.data.text_corpus import sentences, split
from clapcur.errors import DataError, EmptySetError
from clapcur.methods.hearing import fit, read_weights, shipped, stems, write_weights
from clapcur.methods.min_hash import NearDuplicates
from clapcur.stages import ingest
from clapcur.stages.ingest import IngestConfig, TextRules
from clapcur.stages.ingest.general_text import sift

pytestmark = pytest.mark.usefixtures("leaves_no_trace")  # of the log that a command writes
HEARD = [
    "A dog barks loudly while a car passes by", "Rain is falling on a metal roof", "Water splashes and birds chirp",
    "A man speaks as an engine idles", "Thunder rumbles in the distance", "A siren wails and fades away",
]  # fmt: skip
OTHERS = [
    "The act of settling a dispute by agreement", "A member of the party that governs the country",
    "Relating to the theory of numbers", "The price of the house was agreed in March",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog barks. A car passes by!  Rain falls", ["A dog barks.", "A car passes by!", "Rain falls"]),
        ("Mr. Smith whistles. It echoes.", ["Mr. Smith whistles.", "It echoes."]),
        ("animals, e.g. Dogs, bark at night", ["animals, e.g. Dogs, bark at night"]),
        ("- A bell rings\n2) Glass breaks", ["A bell rings", "Glass breaks"]),
        ("<p>Wind &amp; rain</p><br>", ["Wind & rain"]),
        ('"A door creaks." She left.', ["A door creaks.", "She left."]),
        ("a\u200bb\x00 bell\u00a0rings", ["a b bell rings"]),
        ("   \n \n", []),
    ],
)
def test_text_is_split_into_clean_sentences(text, expected):
    assert list(split(text)) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.parquet", "folder"])
def test_every_form_gives_the_same_sentences(name, tmp_path):
    lines = [f"{text}." for text in HEARD]
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        for index, line in enumerate(lines):
            (path / f"{index}.txt").write_text(line)
        (path / "notes.pdf").write_bytes(b"%PDF")
    elif name == "a.parquet":
        parquet.write_table(pa.table({"id": range(6), "text": lines}), path)
    else:
        rows = [json.dumps({"n": n, "text": line}) for n, line in enumerate(lines)] if "jsonl" in name else lines
        content = ("\ufeff" if name == "a.txt.gz" else "") + "\n".join(rows)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(content.encode()))
        elif name.endswith(".zst"):
            with pa.CompressedOutputStream(str(path), "zstd") as file:
                file.write(content.encode())
        else:
            path.write_text(content)
    found = list(sentences(path))
    assert [text for _, text in found] == lines
    assert all(str(path) in where for where, _ in found)


def test_a_folder_of_hugging_face_datasets_is_read(tmp_path):
    """`datasets` saves Arrow streams; the package itself is not needed."""
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    for number in range(2):
        table = pa.table({"caption": HEARD[3 * number : 3 * number + 3], "other": [1, 2, 3]})
        with pa.OSFile(str(folder / f"data-0000{number}-of-00002.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    assert [text for _, text in sentences(tmp_path / "saved")] == HEARD


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "a bell\nein Gl\u00f6ckchen\n".encode("latin-1"), r"latin\.txt, line 2, is not UTF-8"),
        (
            "latin.txt.gz",
            gzip.compress("a bell\nGl\u00f6ckchen\n".encode("latin-1"), mtime=0),
            r"line 2, is not UTF-8 \(byte",
        ),
        ("cut.txt.gz", gzip.compress(b"a dog barks\n" * 1000, mtime=0)[:40], "cannot be unpacked; was it truncated"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"bad\.jsonl, line 2: not JSON"),
        (
            "none.jsonl",
            b'{"name": "a"}\n',
            "none of the columns text, caption, sentence, content; choose the text column among name",
        ),
        ("no.parquet", b"PAR1 and no more", "cannot be read after row 0"),
        ("page.pdf", b"%PDF", "expected a text file"),
    ],
)
def test_what_cannot_be_read_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(sentences(tmp_path / name))
    with pytest.raises(DataError, match="does not exist"):
        list(sentences(tmp_path / "missing.txt"))


def test_words_are_one_whatever_their_endings():
    assert stems("barked barks barking") == ["bark"] * 3
    assert stems("The glass is humming") == ["glass", "hum"]


def test_a_classifier_learns_from_both_sides_and_says_why(tmp_path):
    """A score that nobody can explain cannot be argued with."""
    rng = np.random.default_rng(0)
    sounds, others = ["bark", "siren", "rain", "engine"], ["theory", "party", "price", "member"]
    places = ["street", "house", "garden", "room"]

    def some(words):
        return [f"a {rng.choice(words)} and {rng.choice(words)} near the {rng.choice(places)}" for _ in range(200)]

    found = fit(some(sounds), some(others))
    assert found.score("siren and rain") > 0.9 and found.score("a theory of the party") < 0.1
    assert found.reasons("a siren in the street")[0][0] == "siren"
    assert 0.2 < found.score("words that nobody knows") < 0.8
    write_weights(found, tmp_path / "weights.csv")
    again = read_weights(tmp_path / "weights.csv")
    assert again.score("siren and rain") == pytest.approx(found.score("siren and rain"), abs=0.02)
    with pytest.raises(ValueError, match="expected audible and other sentences"):
        fit([], others)


def test_the_classifier_that_is_shipped_tells_sounds_from_thoughts():
    assert all(shipped().score(text) > 0.5 for text in HEARD) and all(shipped().score(text) < 0.5 for text in OTHERS)


@pytest.mark.shared_data("captions/clotho")
def test_captions_of_a_corpus_that_it_was_not_fitted_to_pass(shared_data):
    """Three of four pass at least; docs/corpora.md has the whole table."""
    with open(shared_data("captions/clotho") / "clotho_captions_evaluation.csv", encoding="utf-8", newline="") as file:
        texts = [row["caption_1"] for row in csv.DictReader(file)]
    assert np.mean([shipped().score(text) >= 0.5 for text in texts]) > 0.7


def test_near_duplicates_are_those_of_a_loop_over_all():
    """A pair that no band proposes stays twice; one that is proposed must still be alike."""
    rng = np.random.default_rng(1)
    sets = []
    for _ in range(300):
        base = set(rng.choice(60, 12, replace=False).astype(str).tolist())
        sets.append(base)
        if rng.random() < 0.5:
            sets.append((base - set(list(base)[: rng.integers(0, 4)])) | {f"new {rng.integers(5)}"})
    kept, expected = [], []
    near = NearDuplicates(0.7)
    for one in sets:
        is_near = any(len(one & other) >= 0.7 * len(one | other) for other in kept)
        expected.append(is_near)
        if not is_near:
            kept.append(one)
    found = [near.add(one) for one in sets]
    assert sum(expected) > 40 and np.mean(np.array(found) == np.array(expected)) > 0.99
    assert not any(f and not e for f, e in zip(found[:50], expected[:50], strict=True))
    with pytest.raises(ValueError, match="a percentage"):
        NearDuplicates(70)


def test_each_sentence_is_kept_or_counted_by_its_reason(tmp_path):
    lines = [
        *HEARD, *OTHERS, "a DOG barks loudly while a car passes by", "A dog is barking loudly while cars pass by",
        "Rain falls", "3.14159 2.71828 1.41421", " ".join(["rain and thunder"] * 12),
    ]  # fmt: skip
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    found = sift(path, TextRules())
    assert found.kept == HEARD
    assert found.counts == {
        "kept": 6, "not_heard": 4, "duplicate": 1, "near_duplicate": 1, "too_short": 1, "not_text": 1, "too_long": 1
    }  # fmt: skip
    assert found.examples["duplicate"][0][0] == f"{path}, line 11"
    assert sift(path, TextRules(near_duplicate=None)).counts["kept"] == 7
    with pytest.raises(EmptySetError, match=r"none of the 15 sentences .* closest is .* lower least_score \(now 1\)"):
        sift(path, TextRules(least_score=1.0))
    path.write_text("\n")
    with pytest.raises(EmptySetError, match="has no sentence"):
        sift(path, TextRules())


def test_a_manifest_of_general_text_has_captions_alone_and_says_what_it_left_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*HEARD, *OTHERS, HEARD[0]]))
    scan = ingest.scan(IngestConfig(source=str(path), text=TextRules()))
    assert set(scan.manifest.captions.caption) == set(HEARD) and scan.manifest.clips.empty
    assert scan.reasons == {"duplicate": 1, "not_heard": 4} and scan.counts["rows"] == 11
    assert scan.quarantine.reason.value_counts().to_dict() == {"not_heard": 4, "duplicate": 1}
    plain = ingest.scan(IngestConfig(source=str(path)))
    assert len(plain.manifest.captions) == 10, "without text: each line is a caption, as ever"
    with pytest.raises(ValueError, match="general text has no audio"):
        IngestConfig(source=str(path), text=TextRules(), audio_folder="x")


def test_the_command_shows_what_would_be_kept(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*HEARD, *OTHERS]))
    shown = CliRunner().invoke(app, ["captions", str(path)])
    assert shown.exit_code == 0 and "not heard" in shown.output and HEARD[0] in shown.output
    told = json.loads(CliRunner().invoke(app, ["captions", str(path), "--json"]).output.splitlines()[-1])
    assert told["counts"] == {"kept": 6, "not_heard": 4} and told["sentences"] == 10
    home = {"CLAPCUR_HOME": str(tmp_path / "home")}
    made = CliRunner().invoke(app, ["ingest", str(path), "--text", "--role", "captions", "--json"], env=home)
    artifact = json.loads(made.output.splitlines()[-1])
    found = pd.read_parquet(f"{artifact['uri'].removeprefix('file://')}/captions.parquet")
    assert set(found.caption) == set(HEARD)


@pytest.mark.slow
def test_a_large_text_takes_no_memory_of_its_size(tmp_path):
    """Ten million sentences fit no list."""
    path = tmp_path / "large.txt.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number in range(300_000):
            file.write(f"{OTHERS[number % 4]} numbered {number:07d} for the record of nobody in particular\n")
        file.write("\n".join(HEARD))
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from clapcur.stages.ingest import TextRules\nfrom clapcur.stages.ingest.general_text import sift\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = sift(Path(sys.argv[1]), TextRules())\n"
        "print(len(found.kept), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kept, grown_kib = map(int, done.stdout.split())
    assert kept == 6 and grown_kib < 60_000
