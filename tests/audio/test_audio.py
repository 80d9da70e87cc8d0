"""Audio files: what comes out of good ones, and that every bad one is named."""

import hashlib
import os
import pickle
import struct
import threading
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from clapcur.audio import (
    ClipInfo,
    ProbeRules,
    Problem,
    UnusableAudio,
    WaveformCache,
    containers,
    decoding,
    fit,
    load_audio,
    load_crops,
    loading,
    probe,
    probing,
)
from clapcur.errors import DataError

RATE = 16_000


def noise(num_samples: int = RATE, num_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise on the grid of 16 bits, so that nothing is lost in a 16-bit file."""
    rng = np.random.default_rng(seed)
    return rng.integers(-8000, 8000, (num_samples, num_channels)) / 32768


def write(path: Path, samples: np.ndarray, rate: int = RATE, **kind: str) -> Path:
    soundfile.write(path, samples, rate, **kind)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep the first `share` of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def forget_length(flac: bytearray) -> None:
    """Set the 36 bits of STREAMINFO that hold the number of samples to 0: unknown (RFC 9639, section 8.2)."""
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)


def reason(path: Path, **rules: float) -> str:
    answer = probe(path, ProbeRules(**rules))
    assert isinstance(answer, Problem), f"{path.name} should be refused, got {answer}"
    assert str(path) not in answer.detail, "a detail with a path in it changes when the file moves"
    return answer.reason


# --- waveforms -----------------------------------------------------------------------------------------------------


def test_stereo_becomes_the_mean_of_its_channels_at_its_own_length(tmp_path: Path) -> None:
    """Stereo flattened into one long signal: twice the duration, and an embedding of noise."""
    samples = noise(1000, 2)
    waveform = load_audio(write(tmp_path / "a.wav", samples), RATE)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, samples.mean(axis=1), atol=1e-7)


def test_a_wav_written_by_the_standard_library_is_read_exactly(tmp_path: Path) -> None:
    """A scale or an offset by one sample that writing and reading with the same library hides."""
    values = np.array([0, 1, -1, 32767, -32768, 12345], np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(values.tobytes())
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", RATE), values.astype(np.float32) / 32768)


def test_a_resampled_tone_is_the_same_tone(tmp_path: Path) -> None:
    """A file at another rate played too fast: every pitch is wrong and nothing fails."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100)
    waveform = load_audio(write(tmp_path / "a.wav", tone, 44_100, subtype="FLOAT"), RATE)
    assert len(waveform) == RATE
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(waveform[500:-500], expected[500:-500], atol=2e-5)


def test_what_lies_above_the_new_band_is_gone(tmp_path: Path) -> None:
    """Resampling without a filter folds high sounds into low ones."""
    tone = 0.5 * np.sin(2 * np.pi * 15_000 * np.arange(48_000) / 48_000)
    waveform = load_audio(write(tmp_path / "a.wav", tone, 48_000, subtype="FLOAT"), RATE)
    assert np.abs(waveform[500:-500]).max() < 1e-4


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame lost or doubled between two blocks, which only long files have."""
    files = [write(tmp_path / f"a.{kind}", noise(5000, 2)) for kind in ("wav", "flac", "ogg", "mp3")]
    whole = [(load_audio(file, RATE), probe(file)) for file in files]
    monkeypatch.setattr(decoding, "BLOCK_FRAMES", 333)
    for file, (waveform, answer) in zip(files, whole, strict=True):
        np.testing.assert_array_equal(load_audio(file, RATE), waveform)
        assert probe(file) == answer
        np.testing.assert_allclose(waveform, soundfile.read(file, dtype="float32")[0].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "missing: no such file"), (b"", "empty: 0 bytes"), (b"not audio at all, only text", "unreadable")],
)
def test_a_file_that_cannot_be_loaded_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.wav: {said}"):
        load_audio(path, RATE)


def test_loading_refuses_nan_and_truncated_files(tmp_path: Path) -> None:
    """One NaN sample makes every weight NaN; half a clip is trained on as if it were the clip."""
    samples = noise()
    samples[77] = np.nan
    with pytest.raises(UnusableAudio, match="NaN"):
        load_audio(write(tmp_path / "a.wav", samples, subtype="FLOAT"), RATE)
    with pytest.raises(UnusableAudio, match="truncated"):
        load_audio(cut(write(tmp_path / "b.wav", noise()), 0.5), RATE)


def test_the_error_survives_the_way_out_of_a_worker_process(tmp_path: Path) -> None:
    """An exception that cannot be unpickled hangs or hides behind another one."""
    with pytest.raises(UnusableAudio) as caught:
        load_audio(tmp_path / "a.wav", RATE)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), "missing")


# --- fit -----------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 50),
    st.integers(1, 120),
    st.floats(0, 1),
    st.sampled_from(["repeat", "repeatpad", "pad", "zeros"]),
)  # lengths below, at, above and far above each other
def test_fit_gives_the_length_and_only_what_was_there(length: int, wanted: int, offset: float, short: str) -> None:
    """A length off by one stops a batch after an hour; a wrong crop is never noticed at all."""
    waveform = np.arange(1, length + 1, dtype=np.float32)
    out = fit(waveform, wanted, offset, short)  # type: ignore[arg-type]
    assert out.shape == (wanted,) and out.dtype == np.float32
    start = int(offset * abs(length - wanted))
    if wanted <= length:
        expected = [waveform[start + i] for i in range(wanted)]
    elif short == "repeat":
        expected = [waveform[i % length] for i in range(wanted)]
    elif short in ("repeatpad", "pad"):
        filled = wanted // length * length if short == "repeatpad" else length
        expected = [waveform[i % length] if i < filled else 0 for i in range(wanted)]
    else:
        expected = [waveform[i - start] if 0 <= i - start < length else 0 for i in range(wanted)]
    np.testing.assert_array_equal(out, expected)


def test_offsets_reach_both_ends_and_the_centre() -> None:
    waveform = np.arange(10, dtype=np.float32)
    assert [fit(waveform, 4, offset)[0] for offset in (0, 0.5, 1)] == [0, 3, 6]
    short = np.ones(2, np.float32)
    assert [fit(short, 6, offset, "zeros").argmax() for offset in (0, 0.5, 1)] == [0, 2, 4]


def test_fit_returns_a_copy() -> None:
    """An augmentation in place would change the cached clip for all later epochs."""
    waveform = np.ones(4, np.float32)
    for wanted in (4, 2, 8):
        fit(waveform, wanted)[:] = 0
    assert waveform.all()


@pytest.mark.parametrize(
    ("shape", "wanted", "offset", "short", "said"),
    [
        (0, 4, 0.5, "repeat", r"shape \(0,\)"),
        ((2, 9), 4, 0.5, "repeat", r"shape \(2, 9\)"),
        (9, 0, 0.5, "repeat", "num_samples"),
        (9, 4, 1.01, "repeat", "offset"),
        (9, 4, float("nan"), "repeat", "offset"),
        (9, 4, 0.5, "reflect", "reflect"),
    ],
)
def test_fit_refuses_what_has_no_meaning(
    shape: int | tuple[int, int], wanted: int, offset: float, short: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        fit(np.ones(shape, np.float32), wanted, offset, short)  # type: ignore[arg-type]


# --- cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of the files that are decoded."""
    names: list[str] = []

    def spy(path: Path, *settings: object) -> tuple[np.ndarray, int]:
        names.append(Path(path).name)
        return load_crops(path, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "load_crops", spy)
    return names


def test_a_cache_decodes_each_clip_once_and_gives_what_the_file_gives(tmp_path: Path, decoded: list[str]) -> None:
    paths = [write(tmp_path / f"{i}.wav", noise(100, seed=i)) for i in range(3)]
    cache = WaveformCache(2**20)
    for _ in range(2):
        for path in paths:
            np.testing.assert_array_equal(cache.crop(path, RATE, 100, 0.5), load_audio(path, RATE))
    assert decoded == ["0.wav", "1.wav", "2.wav"]
    other = cache.crop(paths[0], RATE // 2, 100, 0.5, "pad")
    assert other[:50].any() and not other[50:].any(), "the same file at another rate is another waveform"


def test_a_full_cache_drops_the_longest_unused_and_never_exceeds_its_memory(tmp_path: Path, decoded: list[str]) -> None:
    """A cache that grows without end, or one that drops what is used most."""
    a, b, c = (write(tmp_path / f"{name}.wav", noise(100)) for name in "abc")
    cache = WaveformCache(2 * 400)
    for path in (a, b, a, c, a, b):  # c takes the place of b, then b that of c
        cache.crop(path, RATE, 10, 0.5)
        assert cache.num_bytes <= 800
    assert decoded == ["a.wav", "b.wav", "c.wav", "b.wav"]
    empty = WaveformCache(0)
    assert (empty.crop(a, RATE, 100, 0.5).shape, empty.num_bytes) == ((100,), 0)


@pytest.mark.parametrize("max_bytes", [0, 2**20])
def test_a_crop_that_is_written_to_changes_no_later_one(tmp_path: Path, max_bytes: int) -> None:
    path, cache = write(tmp_path / "a.wav", noise(100)), WaveformCache(max_bytes)
    for _ in range(2):
        crop = cache.crop(path, RATE, 100, 0.5)
        np.testing.assert_array_equal(crop, load_audio(path, RATE))
        crop[:] = 1


def test_threads_share_a_cache(tmp_path: Path) -> None:
    """Two threads that count the same clip twice let the cache forget all it holds, little by little."""
    paths = [write(tmp_path / f"{i}.wav", noise(200, seed=i)) for i in range(8)]
    cache, expected = WaveformCache(5 * 800), [load_audio(path, RATE) for path in paths]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 8, 100):
            if not np.array_equal(cache.crop(paths[i], RATE, 200, 0.5), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.num_bytes == sum(waveform.nbytes for waveform in cache._waveforms.values()) == 5 * 800


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_is_another_clip_now_is_refused(tmp_path: Path) -> None:
    """The row of one sound, or a training on it, under the id and with the captions of another."""
    path = write(tmp_path / "a.wav", noise())
    clip = sha256(path)
    whole, length = load_crops(path, RATE, RATE, [0.5], clip_id=clip)
    np.testing.assert_array_equal(whole[0], load_audio(path, RATE))
    assert length == RATE
    then = path.stat()
    write(path, noise(seed=1))
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))  # of the same size, and as if it were never touched
    said = f"a.wav: changed: it was clip {clip[:12]} when it was ingested, but is {sha256(path)[:12]} now"
    with pytest.raises(UnusableAudio, match=said):
        load_crops(path, RATE, RATE, [0.5], clip_id=clip)


def test_the_bytes_of_a_clip_are_hashed_once_and_when_its_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training meets each clip hundreds of times; a file that is replaced meanwhile must not pass."""
    path, cache, hashed = write(tmp_path / "a.wav", noise()), WaveformCache(0), []
    clip, check = sha256(path), loading._check_bytes
    monkeypatch.setattr(loading, "_check_bytes", lambda *of: (hashed.append(of[2]), check(*of)))
    for _ in range(3):
        cache.crop(path, RATE, 100, 0.5, clip_id=clip)
    assert hashed == [clip]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    cache.crop(path, RATE, 100, 0.5, clip_id=clip)
    assert hashed == [clip, clip]
    write(path, noise(seed=1))
    with pytest.raises(UnusableAudio, match="changed"):
        cache.crop(path, RATE, 100, 0.5, clip_id=clip)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "pipe.flac"])
@pytest.mark.parametrize("rate", [RATE, 44_100, 11_025, 1000])
@pytest.mark.parametrize("is_known", [True, False])
def test_crops_of_a_long_clip_are_those_of_the_whole_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rate: int, is_known: bool
) -> None:
    """The row of a clip must not depend on how much memory it took to decode it."""
    written = {"ogg": 44_100, "mp3": 44_100, "pipe.flac": 44_100}.get(kind, rate)
    path = write(tmp_path / f"a.{kind}", noise(3 * 44_100, 2), written)
    if kind == "pipe.flac":
        content = bytearray(path.read_bytes())
        forget_length(content)
        path.write_bytes(content)
    clip = sha256(path) if is_known else None
    offsets = [0.0, 0.31, 0.5, 0.99999, 1.0]
    whole = load_audio(path, RATE)
    monkeypatch.setattr(decoding, "BLOCK_FRAMES", 4321)
    monkeypatch.setattr(loading, "WHOLE_SAMPLES", 10_000)
    monkeypatch.setattr(loading, "fit", lambda *of: pytest.fail("the clip was held as a whole"))
    crops, length = load_crops(path, RATE, 7000, offsets, clip_id=clip)
    assert length == len(whole)
    for crop, offset in zip(crops, offsets, strict=True):
        np.testing.assert_array_equal(crop, fit(whole, 7000, offset))


@given(st.integers(1, 300_000), st.integers(1000, 768_000), st.integers(8000, 48_000))
def test_the_length_of_a_resampled_clip_is_known_before(num_frames: int, rate: int, new_rate: int) -> None:
    num_frames = min(num_frames, 2_000_000 * rate // new_rate)
    made = soxr.resample(np.zeros(num_frames, np.float32), rate, new_rate, quality="HQ")
    assert loading.resampled_length(num_frames, rate, new_rate) == len(made)


def test_a_long_clip_that_is_cut_or_spoilt_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the id is not known, nothing says that the part behind the crop was ever looked at."""
    monkeypatch.setattr(loading, "WHOLE_SAMPLES", 10_000)
    samples = noise(30_000)
    samples[-1] = np.nan
    with pytest.raises(UnusableAudio, match="non finite"):
        load_crops(write(tmp_path / "a.wav", samples, subtype="FLOAT"), RATE, 1000, [0.0])
    with pytest.raises(UnusableAudio, match="truncated"):
        load_crops(cut(write(tmp_path / "b.flac", noise(30_000)), 0.8), RATE, 1000, [0.0])


# --- probe ---------------------------------------------------------------------------------------------------------


def test_a_good_file_is_described(tmp_path: Path) -> None:
    samples = noise(8000, 2)
    path = write(tmp_path / "a.wav", samples)
    pcm = np.rint(samples.mean(axis=1, dtype=np.float32) * 32768).astype("<i2")
    assert probe(path) == ClipInfo(
        clip_id=hashlib.sha256(path.read_bytes()).hexdigest(),
        pcm_sha256=hashlib.sha256(pcm.tobytes()).hexdigest(),
        duration_s=0.5,
        sample_rate=RATE,
        num_channels=2,
        bytes=8000 * 4 + 44,
    )


def test_the_hash_of_samples_is_that_of_the_int16_samples_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise())
    answer = probe(path)
    assert isinstance(answer, ClipInfo)
    assert answer.pcm_sha256 == hashlib.sha256(soundfile.read(path, dtype="int16")[0].tobytes()).hexdigest()


def test_the_same_sound_in_another_container_has_the_same_hash_of_samples(tmp_path: Path) -> None:
    """An evaluation clip that was packed as FLAC would enter the pool as a new sound."""
    files = [
        write(tmp_path / "a.wav", noise(), subtype="PCM_16"),
        write(tmp_path / "b.wav", noise(), subtype="FLOAT"),
        write(tmp_path / "c.flac", noise()),
        write(tmp_path / "d.aiff", noise()),
        write(tmp_path / "e.flac", noise(), subtype="PCM_24"),
    ]
    answers = [probe(file) for file in files]
    assert len({answer.pcm_sha256 for answer in answers if isinstance(answer, ClipInfo)}) == 1
    assert len({answer.clip_id for answer in answers if isinstance(answer, ClipInfo)}) == 5
    other = probe(write(tmp_path / "f.wav", noise(seed=1)))
    assert isinstance(other, ClipInfo) and isinstance(answers[0], ClipInfo)
    assert other.pcm_sha256 != answers[0].pcm_sha256


def test_a_file_is_named_by_its_bytes_and_not_by_its_place(tmp_path: Path) -> None:
    one = write(tmp_path / "a.wav", noise())
    two = tmp_path / "another name, much longer.dat"
    two.write_bytes(one.read_bytes())
    assert probe(one) == probe(two)


def test_missing_empty_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent.wav") == "missing"
    (tmp_path / "folder.wav").mkdir()
    assert reason(tmp_path / "folder.wav") == "unreadable"
    for name, content in {"a.wav": b"", "b.flac": b"", "c.raw": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name) == "empty"
    for name, content in {"d.wav": b"text", "e.mp3": b"<html>404</html>" * 50, "f.raw": bytes(999)}.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name) == "unreadable"
    assert reason(tmp_path / "a\0b.wav") == "missing", "no file can have this name"
    for kind in ("wav", "flac", "aiff"):
        assert reason(write(tmp_path / f"none.{kind}", noise(0))) == "empty", "a header without frames"


def test_a_disk_that_fails_while_a_file_is_read_is_a_problem_of_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad sector ends the ingest of a million clips."""

    def fails(file: object, name: str) -> None:
        raise OSError(5, "Input/output error")

    path = write(tmp_path / "a.wav", noise())
    monkeypatch.setattr(hashlib, "file_digest", fails)
    assert probe(path) == Problem("unreadable", "Input/output error")


@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "IMA_ADPCM"}),
        ("a.wav", {"format": "RF64"}),
        ("a.wav", {"endian": "BIG"}),
        ("a.aiff", {}),
        ("a.flac", {}),
        ("a.ogg", {"subtype": "VORBIS"}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_a_truncated_file_is_named(tmp_path: Path, name: str, kind: dict[str, str], share: float) -> None:
    """Libsndfile reads what is left of a cut WAV or Ogg file silently: half a clip with the whole's caption."""
    path = write(tmp_path / name, noise(5 * RATE), **kind)
    assert isinstance(probe(path), ClipInfo), "the whole file is good"
    assert reason(cut(path, share)) == "truncated"


@pytest.mark.parametrize("share", [0.98, 0.5, 0.02])
def test_no_container_passes_when_it_is_cut(tmp_path: Path, share: float) -> None:
    """Libsndfile reads what is left of most containers silently, and a table may name any of them."""
    samples = np.random.default_rng(0).integers(-8000, 8000, 40_000) / 32768
    accepted, passed = set(), []
    for kind in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(kind):
            path, rate = tmp_path / f"{kind}-{subtype}", 48_000 if subtype == "OPUS" else 8000
            try:
                soundfile.write(path, samples, rate, format=kind, subtype=subtype)
            except soundfile.LibsndfileError:  # libsndfile lists some that it does not write
                continue
            if isinstance(probe(path), ClipInfo):
                accepted.add(kind)
                answer = probe(cut(path, share))
                if not isinstance(answer, Problem) or answer.reason not in ("truncated", "unreadable"):
                    passed.append((kind, subtype, answer))
    slack = [("MP3", "MPEG_LAYER_III")] if share == 0.98 else []  # less than encoders disagree on
    assert [names[:2] for names in passed] == slack
    assert accepted == set("AIFF AU CAF FLAC HTK MP3 NIST OGG RF64 SVX VOC W64 WAV WAVEX".split())


def test_a_container_that_does_not_say_how_long_it_is_is_refused(tmp_path: Path) -> None:
    """Half of a file that states no length is the whole of another one: nothing could ever tell."""
    path = write(tmp_path / "a.sf", noise(), format="IRCAM", subtype="PCM_16")
    answer = probe(path)
    assert answer == Problem(
        "unreadable", "a truncated IRCAM file cannot be distinguished from a complete one; convert it to WAV or FLAC"
    )


@pytest.mark.parametrize("name", ["half_of_au.au", "half_of_w64.w64"])
def test_cut_files_of_the_collection_are_named(shared_data: Callable[[str], Path], name: str) -> None:
    assert reason(shared_data(f"odd_inputs/files/{name}")) == "truncated"


def test_a_tag_in_front_hides_no_cut(tmp_path: Path) -> None:
    """Taggers put ID3 before any container, libsndfile skips it, and a check of the first bytes sees nothing."""
    whole = b"ID3\x03\x00\x00\x00\x00\x00\x0a" + bytes(10) + write(tmp_path / "a.wav", noise()).read_bytes()
    (tmp_path / "b.wav").write_bytes(whole)
    assert isinstance(probe(tmp_path / "b.wav"), ClipInfo)
    assert reason(cut(tmp_path / "b.wav", 0.5)) == "truncated"


def pages(ogg: bytes) -> list[bytearray]:
    return [bytearray(b"OggS" + page) for page in ogg.split(b"OggS")[1:]]


def without_end_mark(ogg: bytes) -> bytes:
    """Clear the flag that marks the last page as the end of the stream; what is left is as recorders leave it."""
    *before, last = pages(ogg)
    last[5] &= 0xFB
    last[22:26] = bytes(4)
    last[22:26] = containers._ogg_checksum(last).to_bytes(4, "little")
    return b"".join(before) + last


def test_the_checksum_of_an_ogg_page_is_that_of_the_library_that_wrote_it(tmp_path: Path) -> None:
    for page in pages(write(tmp_path / "a.ogg", noise(5 * RATE)).read_bytes()):
        stated, page[22:26] = int.from_bytes(page[22:26], "little"), bytes(4)
        assert containers._ogg_checksum(page) == stated


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_the_mark_of_its_end_is_whole(tmp_path: Path, subtype: str) -> None:
    """A recorder that was stopped, or a stream, writes none: all pages are there, and each of them is whole."""
    path = write(tmp_path / "a.ogg", noise(5 * RATE), format="OGG", subtype=subtype)
    content, whole = path.read_bytes(), load_audio(path, RATE)
    path.write_bytes(without_end_mark(content))
    np.testing.assert_array_equal(load_audio(path, RATE), whole)
    answer = probe(path)
    assert isinstance(answer, ClipInfo) and answer.duration_s == 5
    for end in (-1, -len(pages(content)[-1]) + 5, len(content) // 2):
        path.write_bytes(without_end_mark(content)[:end])
        assert reason(path) == "truncated"


def test_an_ogg_that_ends_inside_a_packet_is_named(tmp_path: Path) -> None:
    """A last value of 255 in the page's table says that the packet continues in the next page, which is not there."""
    path = write(tmp_path / "a.ogg", noise(5 * RATE))
    *before, last = pages(path.read_bytes())
    last[26 + last[26]] = 255
    size = sum(last[27 : 27 + last[26]])
    path.write_bytes(b"".join(before) + last + bytes(size))
    assert probe(path) == Problem("truncated", "it ends inside an Ogg packet")


def test_what_taggers_put_behind_the_end_of_an_ogg_does_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", noise(5 * RATE))
    for content in (path.read_bytes(), without_end_mark(path.read_bytes())):
        path.write_bytes(content + b"TAG" + bytes(125))
        assert isinstance(probe(path), ClipInfo)


def test_an_ogg_of_the_collection_without_the_mark_is_whole(shared_data: Callable[[str], Path]) -> None:
    answer = probe(shared_data("odd_inputs/files/no_eos.ogg"))
    assert isinstance(answer, ClipInfo) and answer.duration_s * answer.sample_rate == 22_050


@pytest.mark.parametrize("junk", [bytes(1500), np.random.default_rng(1).bytes(9000), b"\xff" * 999])
def test_an_mp3_behind_other_bytes_is_found(tmp_path: Path, junk: bytes) -> None:
    """Libsndfile finds it by the name of the file, and a member of a tar or an object has no name."""
    content = write(tmp_path / "a.mp3", noise(5 * RATE)).read_bytes()
    (tmp_path / "b.mp3").write_bytes(junk + content)
    there, _ = soundfile.read(tmp_path / "b.mp3", dtype="float32")
    np.testing.assert_allclose(load_audio(tmp_path / "b.mp3", RATE), there, atol=1e-6)
    assert reason(cut(tmp_path / "b.mp3", 0.7)) == "truncated"


def test_the_mp3_of_the_collection_behind_zeros_is_found(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("odd_inputs/files/mp3_lead_garbage.mp3")
    waveform = load_audio(path, 22_050)
    assert len(waveform) == 22_050
    np.testing.assert_allclose(waveform, soundfile.read(path, dtype="float32")[0], atol=1e-6)


def test_a_truncated_mp3_with_a_stated_length_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", noise(5 * RATE))
    assert isinstance(probe(path), ClipInfo)
    tagged = tmp_path / "tagged.mp3"  # ID3v2.3 with 2 x 128 bytes of padding, as taggers leave it
    tagged.write_bytes(b"ID3\x03\x00\x00\x00\x00\x02\x00" + bytes(256) + path.read_bytes())
    assert isinstance(probe(tagged), ClipInfo)
    assert reason(cut(path, 0.5)) == "truncated"
    assert reason(cut(tagged, 0.5)) == "truncated"


def test_an_mp3_without_a_stated_length_is_not_called_truncated(tmp_path: Path) -> None:
    """The estimate from the first frame is too long when a file starts quietly: a good one would be refused."""
    samples = np.concatenate([np.zeros((RATE * 5, 1)), noise(RATE * 10), np.zeros((RATE * 10, 1))])
    content = write(tmp_path / "a.mp3", samples).read_bytes()
    # the frame that holds the Xing mark is the first of the stream: drop it
    start = content.index(content[:2], content.index(b"Xing"))
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(content[start:])
    assert soundfile.info(bare).frames > 1.2 * len(samples), "libsndfile only estimates it"
    assert isinstance(probe(bare), ClipInfo)


@pytest.mark.parametrize("states_length", [True, False])
def test_a_damaged_flac_is_named(tmp_path: Path, states_length: bool) -> None:
    """The part before the damage would pass for the clip, above all where the header does not know the length."""
    path = write(tmp_path / "a.flac", noise(20 * RATE))
    content = bytearray(path.read_bytes())
    if not states_length:
        forget_length(content)
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    path.write_bytes(content)
    assert reason(path) == "truncated"


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_is_whole_though_its_header_does_not_know_the_length(tmp_path: Path, stated: int) -> None:
    """FFmpeg and SoX cannot go back to fill in the size: such pools would be quarantined to the last clip."""
    path = write(tmp_path / "a.wav", noise())
    whole, content = probe(path), bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", stated)
    path.write_bytes(content)
    answer = probe(path)
    assert isinstance(answer, ClipInfo) and isinstance(whole, ClipInfo)
    assert (answer.duration_s, answer.pcm_sha256) == (whole.duration_s, whole.pcm_sha256)


def test_a_flac_from_a_pipe_is_whole_though_its_header_does_not_know_the_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise())
    content = bytearray(path.read_bytes())
    forget_length(content)
    path.write_bytes(content)
    answer = probe(path)
    assert isinstance(answer, ClipInfo) and answer.duration_s == 1
    np.testing.assert_allclose(load_audio(path, RATE), noise()[:, 0], atol=1e-7)


def test_chunks_around_the_samples_are_no_truncation(tmp_path: Path) -> None:
    """WAVs of sound libraries have notes before and after the samples, with odd lengths that are padded."""
    content = write(tmp_path / "a.wav", noise()).read_bytes()
    note = b"note" + struct.pack("<I", 3) + b"abc\0"
    body = content[12:36] + note + content[36:] + note
    (tmp_path / "b.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    assert isinstance(probe(tmp_path / "b.wav"), ClipInfo)


@pytest.mark.parametrize("level", [0, 5e-6])
def test_silence_is_named_also_when_it_comes_from_the_mean_of_channels(tmp_path: Path, level: float) -> None:
    """A silent clip is similar to every caption about silence, and to nothing it is labelled with."""
    assert reason(write(tmp_path / "a.wav", np.full(RATE, level, np.float32), subtype="FLOAT")) == "silent"
    opposite = noise() * [1, -1]
    assert reason(write(tmp_path / "b.wav", opposite, subtype="FLOAT")) == "silent"
    click = np.zeros(RATE)
    click[-1] = 1e-3
    assert isinstance(probe(write(tmp_path / "c.wav", click, subtype="FLOAT")), ClipInfo)


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (3e38, "out_of_range"),  # finite, and the sum of two channels is not
        (-1e20, "out_of_range"),
        (32_767, "out_of_range"),  # integers that were stored as floats
        (-129, "out_of_range"),
        (99, None),  # 40 dB over full scale
        (-0.0, None),
    ],
)
def test_samples_far_above_full_scale_are_named(tmp_path: Path, channel: int, samples: float, said: str | None) -> None:
    """One such sample makes a spectrum of NaN, and a NaN teacher that is cached for ever."""
    values = np.zeros((RATE, 2), np.float32) + 0.01
    values[RATE // 2, channel] = samples
    path = write(tmp_path / "a.wav", values, subtype="FLOAT")
    assert isinstance(probe(path), ClipInfo) if said is None else reason(path) == said
    if said is None or abs(samples) < 2**31:
        load_audio(path, RATE)
    else:
        with pytest.raises(UnusableAudio, match="a.wav: out of range: .* times full scale"):
            load_audio(path, RATE)


def test_the_largest_plausible_sample_is_in_the_config(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 32_000 * noise(), subtype="FLOAT")
    assert isinstance(probe(path, ProbeRules(max_peak=32_767)), ClipInfo)
    for wrong in (0.5, 1e10, float("nan")):
        with pytest.raises(ValueError, match="max_peak"):
            ProbeRules(max_peak=wrong)


def test_the_integers_at_both_ends_are_samples_like_others(tmp_path: Path) -> None:
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32"):
        path = write(tmp_path / "a.wav", np.tile([-1.0, 1.0], RATE), subtype=subtype)
        answer = probe(path)
        assert isinstance(answer, ClipInfo) and np.abs(load_audio(path, RATE)).max() == 1


def test_numbers_too_small_to_be_heard_are_silence(tmp_path: Path) -> None:
    assert reason(write(tmp_path / "a.wav", 1e-39 * noise(), subtype="FLOAT")) == "silent"
    assert reason(write(tmp_path / "b.wav", -0.0 * noise(), subtype="FLOAT")) == "silent"


@pytest.mark.parametrize("name", ["huge_float_1e20.wav", "one_huge_sample.wav", "int16_values_as_float.wav"])
def test_levels_of_the_collection_are_named(shared_data: Callable[[str], Path], name: str) -> None:
    assert reason(shared_data(f"odd_inputs/files/{name}")) == "out_of_range"


@pytest.mark.parametrize(("rate", "good"), [(1, False), (999, False), (1000, True), (768_000, True), (768_001, False)])
def test_rates_that_no_sound_has_are_named(tmp_path: Path, rate: int, good: bool) -> None:
    """A file of 160 kB that states 1 Hz becomes gigabytes at 32 kHz."""
    path = write(tmp_path / "a.wav", noise(80_000), rate)
    if good:
        assert isinstance(probe(path), ClipInfo)
        return
    assert reason(path) == "implausible_rate"
    with pytest.raises(UnusableAudio, match=f"{rate} Hz, expected 1000 to 768000"):
        load_audio(path, RATE)


def test_a_thousand_channels_come_in_short_blocks(tmp_path: Path) -> None:
    """The memory of a block must not grow with the number of channels."""
    path = write(tmp_path / "a.wav", np.tile(noise(3000), 1024), format="RF64")
    with decoding.open_audio(path) as file:
        blocks = list(decoding.Decoder(path, file))
    assert max(map(len, blocks)) == decoding.BLOCK_SAMPLES // 1024
    np.testing.assert_allclose(np.concatenate(blocks), noise(3000)[:, 0], atol=1e-6)


def test_no_clip_is_longer_than_a_day_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of megabytes can state years of silence, and would be decoded for hours."""
    monkeypatch.setattr(probing, "LONGEST_S", 0.5)
    path = write(tmp_path / "a.wav", noise(10 * RATE))
    assert probe(path) == Problem("too_long", "longer than 0.5 s (max_duration_s)")
    assert isinstance(probe(path, ProbeRules(max_duration_s=20)), ClipInfo)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    samples = noise(RATE, 2)
    samples[RATE // 2, 1] = value
    assert reason(write(tmp_path / "a.wav", samples, subtype="FLOAT")) == "non_finite"


def test_durations_are_held_to_the_rules(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(RATE // 10))
    assert isinstance(probe(path), ClipInfo)
    assert isinstance(probe(path, ProbeRules(min_duration_s=0.1, max_duration_s=0.2)), ClipInfo)
    assert reason(path, min_duration_s=0.2) == "too_short"
    assert reason(path, max_duration_s=0.09) == "too_long"


@pytest.mark.parametrize(
    "rules", [{"min_duration_s": 2, "max_duration_s": 1}, {"min_duration_s": -1}, {"silence_peak": 1}]
)
def test_rules_that_no_clip_could_meet_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        ProbeRules(**rules)


@pytest.mark.shared_data("esc10", "freesound_samples")
def test_real_clips_have_the_durations_that_their_manifest_states(shared_data) -> None:
    """Every Ogg file of a real corpus would be called truncated if the check of its last page were wrong."""
    import csv

    for folder, step in (("esc10", 40), ("freesound_samples", 3)):
        with open(shared_data(folder) / "manifest.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[::step]
        for row in rows:
            answer = probe(shared_data(folder) / row["path"])
            assert isinstance(answer, ClipInfo), f"{row['path']}: {answer}"
            assert answer.duration_s == pytest.approx(float(row["duration_s"]), abs=1e-3)
            assert answer.sample_rate == int(row["sample_rate"])
