"""Windows decoded ahead: what a plain loop decodes, no more at once than was agreed, and errors in their place."""

import threading
import time

import numpy as np
import pytest
import soundfile
import torch

from clapcur.audio import fit, load_audio, load_crops
from clapcur.audio.throughput import Pace
from clapcur.errors import DataError
from clapcur.models import prefetch
from clapcur.models.prefetch import AHEAD, Window, on_device, read_ahead, to_host

RATE = 8000
WINDOW = Window(RATE, 4000, (0.0, 0.5, 1.0), "repeat")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    paths = [folder / f"{index}.wav" for index in range(7)]
    for index, path in enumerate(paths):
        soundfile.write(
            path, 0.1 * rng.standard_normal(1500 + 1700 * index), (RATE, 11_025)[index % 2], subtype="FLOAT"
        )
    return paths


def one_by_one(paths) -> np.ndarray:
    """Return the same windows, shape (N, C, T), decoded in a plain loop."""
    waveforms = [load_audio(path, RATE) for path in paths]
    return np.stack([[fit(wave, 4000, offset, "repeat") for offset in WINDOW.offsets] for wave in waveforms])


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_batches_come_in_order_and_hold_what_a_plain_loop_decodes(clips, num_workers, monkeypatch):
    """A short file that overtakes a long one would swap the rows of two clips."""
    names = {path: index for index, path in enumerate(clips)}

    def slow_at_first(path, *settings):
        time.sleep(0.02 * (7 - names[path]))
        return load_crops(path, *settings)

    monkeypatch.setattr(prefetch, "load_crops", slow_at_first)
    batches = [clips[:3], clips[3:4], [], clips[4:]]
    pace = Pace()
    decoded = list(read_ahead(batches, WINDOW, num_workers=num_workers, pace=pace))
    assert [len(batch) for batch in decoded] == [3, 1, 0, 3]
    np.testing.assert_array_equal(torch.cat(decoded), one_by_one(clips))
    assert pace.audio_s == pytest.approx(sum(len(load_audio(path, RATE)) for path in clips) / RATE)
    assert pace.waiting_s > 0.1


def test_only_a_few_batches_are_decoded_before_they_are_wanted(clips):
    """Without a limit a pool of a million clips would be in memory before the first is embedded."""
    taken = []
    decoded = read_ahead((taken.append(i) or clips[:1] for i in range(50)), WINDOW, num_workers=2)
    next(decoded)
    time.sleep(0.05)
    assert len(taken) == AHEAD + 1
    next(decoded)
    assert len(taken) == AHEAD + 2
    decoded.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_bad_file_is_an_error_at_its_place_and_ends_the_threads(clips, tmp_path):
    """An error that comes early would cost the shards before it, one that is lost a row of noise."""
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    decoded = read_ahead([clips[:2], clips[2:4], [clips[4], tmp_path / "bad.wav"], clips[5:]], WINDOW)
    assert len(next(decoded)) == len(next(decoded)) == 2
    with pytest.raises(DataError, match="bad.wav"):
        next(decoded)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_bad_file_is_told_of_before_its_batch_and_leaves_its_place(clips, tmp_path):
    """One file that vanished must neither stop a million others nor move their crops by one place."""
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    told = []
    batches = [[clips[0], tmp_path / "bad.wav", clips[1]], [clips[2]], [tmp_path / "gone.wav"]]
    ids = {clips[2]: "0" * 64}
    decoded = read_ahead(
        batches, WINDOW, clip_ids=ids, on_bad=lambda path, error: told.append((path.name, error.reason))
    )
    first = next(decoded)
    assert told == [("bad.wav", "unreadable")]
    np.testing.assert_array_equal(first[[0, 2]], one_by_one(clips[:2]))
    assert not first[1].any()
    next(decoded)
    assert told[1:] == [("2.wav", "changed")]
    next(decoded)
    assert told[2:] == [("gone.wav", "missing")]


def test_a_pace_adds_up_and_says_nothing_before_the_first_row():
    """Two workers at once are twice as fast as their sum over time says: the clock on the wall is what counts."""
    pace = Pace(rows=30, audio_s=300, wall_s=10, waiting_s=1) + Pace(rows=10, audio_s=100, wall_s=10, waiting_s=3)
    assert pace.metrics(10) == {"rows_per_s": 4, "real_time_factor": 40, "waiting_share": 0.2}
    assert pace.metrics()["rows_per_s"] == 2
    assert str(pace) == "2.0/s, 20 x real time, 20% waiting for data"
    assert Pace(rows=4, wall_s=2).metrics() == {"rows_per_s": 2}  # text
    assert Pace().metrics(10) == {} and str(Pace()) == ""


@pytest.mark.gpu
def test_a_gpu_gets_and_gives_every_batch_in_order(clips):
    """Copies that overtake the work they are for leave the rows of another batch."""
    device = torch.device("cuda")
    batches = [clips[index : index + 1] for index in (0, 1, 2, 3, 4, 5, 6) * 20]
    decoded = read_ahead(batches, WINDOW, pin=True)
    rows = to_host(windows_NCT * 2 for windows_NCT in on_device(decoded, device))
    np.testing.assert_array_equal(torch.cat(list(rows)), 2 * np.tile(one_by_one(clips), (20, 1, 1)))
