"""Copies of public corpora with a few tones each."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from clapcur.testing import write_tone


def write_csv(path: Path, rows: Iterable[Sequence[object]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def tone(path: Path, seed: int) -> None:
    write_tone(path, 200 + 50 * seed, seed=seed, duration_s=0.1)


def esc50(folder: Path) -> Path:
    rows = [
        ("1-100032-A-0.wav", 1, 0, "dog", True, 100032, "A"),
        ("1-172649-A-40.wav", 1, 40, "helicopter", True, 172649, "A"),
        ("5-172649-B-33.wav", 5, 33, "door_wood_creaks", False, 172649, "B"),
    ]
    write_csv(
        folder / "meta/esc50.csv", [("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows]
    )
    for seed, row in enumerate(rows):
        tone(folder / "audio" / row[0], seed)
    return folder


def urbansound8k(folder: Path) -> Path:
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    rows = [
        ("100032-3-0-0.wav", 100032, 0.0, 0.3, 1, 5, 3, "dog_bark"),
        ("100263-2-0-117.wav", 100263, 58.5, 62.5, 1, 10, 2, "children_playing"),
    ]
    write_csv(folder / "metadata/UrbanSound8K.csv", [header, *rows])
    for seed, row in enumerate(rows):
        tone(folder / f"audio/fold{row[5]}" / row[0], seed)
    return folder


def clotho(folder: Path) -> Path:
    header = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
    captions = [("Rain, heavy.wav", *(f"rain falls {n}, hard" for n in "abcde")), ("Évora.wav", *["a bell"] * 5)]
    write_csv(folder / "clotho_csv_files/clotho_captions_development.csv", [header, *captions])
    header = ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")
    metadata = [
        ("Rain, heavy.wav", "rain;café", "123", "link", "0", "é", "cc0"),
        ("Évora.wav", "", "Not found", *["NA"] * 4),
    ]
    write_csv(folder / "clotho_csv_files/clotho_metadata_development.csv", [header, *metadata], encoding="latin-1")
    for seed, row in enumerate(captions):
        tone(folder / "clotho_audio_files/development" / row[0], seed)
    return folder


def macs(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MACS.yaml").write_text(
        "files:\n- filename: airport-barcelona-0-0-a.wav\n  annotations:\n"
        "  - annotator_id: 28\n    sentence: people talk in a hall\n    tags: [adults_talking]\n"
        "  - annotator_id: 12\n    sentence: 'steps: many'\n    tags: [footsteps]\n"
        "- filename: street_traffic-lyon-1040-31-a.wav\n  annotations:\n"
        "  - annotator_id: 3\n    sentence: cars\n    tags: []\n"
    )
    tone(folder / "audio/airport-barcelona-0-0-a.wav", 1)
    tone(folder / "audio/street_traffic-lyon-1040-31-a.wav", 2)
    return folder


def fsd50k(folder: Path) -> Path:
    rows = [("64760", "Electric_guitar,Guitar", "/m/1,/m/2", "train"), ("16399", "Bark", "/m/3", "val")]
    write_csv(folder / "FSD50K.ground_truth/dev.csv", [("fname", "labels", "mids", "split"), *rows])
    write_csv(folder / "FSD50K.ground_truth/eval.csv", [("fname", "labels", "mids"), ("37199", "Rain", "/m/4")])
    infos = {
        "dev": {
            "64760": {"title": "guitar_1.wav", "description": 'A riff, in\r\nE. <a href="x">more</a> $5*', "tags": []},
            "16399": {"title": "", "description": None},
        },
        "eval": {"37199": {"title": "Rain", "description": "on a roof"}},
    }
    (folder / "FSD50K.metadata").mkdir()
    for part, info in infos.items():
        (folder / f"FSD50K.metadata/{part}_clips_info_FSD50K.json").write_text(json.dumps(info))
        for seed, clip in enumerate(info):
            tone(folder / f"FSD50K.{part}_audio/{clip}.wav", seed)
    return folder


def audioset(folder: Path) -> Path:
    notes = (
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=5\n# YTID, start_seconds, end_seconds, labels\n"
    )
    videos = ("--PJHxphWEs", "-0RWZT-miFs", "7fmOlUlwoNg", "YbcdefghijK", "gone_video0")
    lines = "".join(f'{video}, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n' for video in videos)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unbalanced_train_segments.csv").write_text(notes + lines)
    for seed, name in enumerate(
        ("part00/Y--PJHxphWEs.wav", "part01/-0RWZT-miFs_420000_430000.flac", "7fmOlUlwoNg_20.wav", "YbcdefghijK.wav")
    ):
        tone(folder / name, seed)
    return folder


def tut2017(folder: Path, with_map: bool = True) -> Path:
    development, evaluation = (folder / f"TUT-acoustic-scenes-2017-{part}" for part in ("development", "evaluation"))
    rows = [("audio/b020_90_100.wav", "beach", "b020"), ("audio/b020_100_110.wav", "beach", "b020")]
    write_csv(development / "meta.txt", rows, "\t")
    write_csv(
        evaluation / "evaluation_setup/evaluate.txt",
        [("audio/0.wav", "cafe/restaurant"), ("audio/1.wav", "tram")],
        "\t",
    )
    if with_map:
        originals = [("audio/a031_10_20.wav", "audio/0.wav"), ("audio/a147_0_10.wav", "audio/1.wav")]
        write_csv(evaluation / "evaluation_setup/map.txt", originals, "\t")
    for seed, path in enumerate(
        (development / rows[0][0], development / rows[1][0], evaluation / "audio/0.wav", evaluation / "audio/1.wav")
    ):
        tone(path, seed)
    return folder
