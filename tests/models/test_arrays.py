"""Waveforms in memory: the same embedding as from a file, whatever their type, channels and rate."""

import warnings

import numpy as np
import pytest
import soundfile
import torch
from tiny_clap import CAPTIONS, CONFIG, RATE

from clapcur.audio.arrays import list_of_clips
from clapcur.errors import DataError
from clapcur.models.clap import Clap

SUBTYPES = {"float32": "FLOAT", "float64": "DOUBLE", "int16": "PCM_16", "int32": "PCM_32"}


@pytest.fixture(scope="module")
def model():
    return Clap.create(CONFIG, CAPTIONS).eval()


def noise(*shape):
    return np.random.default_rng(len(shape)).uniform(-0.5, 0.5, shape)


@pytest.mark.parametrize("kind", SUBTYPES)
@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("shape", [(3_000,), (60_000,), (30_000, 1), (30_000, 2), (30_000, 6)])
def test_an_array_gives_the_embedding_of_its_file(model, kind, rate, shape, tmp_path):
    """A user who moves from files to arrays would get other classes without noticing."""
    soundfile.write(tmp_path / "a.wav", noise(*shape), rate, subtype=SUBTYPES[kind])
    array, _ = soundfile.read(tmp_path / "a.wav", dtype=kind)
    from_file = model.embed_audio([tmp_path / "a.wav"], num_crops=3)
    assert np.array_equal(model.embed_audio([array], num_crops=3, sample_rate=rate), from_file)
    assert np.array_equal(model.embed_audio([(array, rate)], num_crops=3), from_file)


def test_files_arrays_and_tensors_mix_in_one_call(model, tmp_path):
    """Rows come in the order of the clips, each with its own rate."""
    clips = [noise(9_000), noise(20_000, 2), noise(4_000)]
    for index, (clip, rate) in enumerate(zip(clips, (RATE, 48_000, 8_000), strict=True)):
        soundfile.write(tmp_path / f"{index}.wav", clip, rate, subtype="FLOAT")
    files = [tmp_path / f"{index}.wav" for index in range(3)]
    given = [files[0], (torch.tensor(clips[1], requires_grad=True), 48_000), clips[2].astype(np.float32)]
    np.testing.assert_allclose(model.embed_audio(given, sample_rate=8_000), model.embed_audio(files), atol=1e-6)
    table = model.classify(given, ["dog", "rain"], sample_rate=8_000)
    assert table.path.tolist() == [str(files[0]), "clips[1]", "clips[2]"]
    expected = model.classify(files, ["dog", "rain"])
    np.testing.assert_allclose(table[["dog", "rain"]], expected[["dog", "rain"]], atol=1e-6)


def test_channels_are_averaged_from_any_layout(model):
    """The transpose of an array with channels first is not contiguous."""
    stereo = noise(2, 9_000).astype(np.float32)
    mean, transposed = model.embed_audio([stereo.mean(axis=0), stereo.T], sample_rate=RATE)
    assert np.array_equal(mean, transposed)


@pytest.mark.parametrize(
    ("clip", "rate", "error", "message"),
    [
        (noise(900), None, TypeError, r"clips\[0\] is an array and needs a sample_rate in Hz"),
        (noise(900), 16_000.5, TypeError, "a whole number such as 48000; got the sample_rate 16000.5"),
        (noise(900), 0, ValueError, "must be 1000 to 768000 Hz, got 0"),
        (noise(2, 900), RATE, ValueError, r"got shape \(2, 900\); if its channels come first, pass its transpose"),
        (noise(2, 30, 2), RATE, ValueError, r"shape \(T,\) or \(T, channels\), got shape \(2, 30, 2\)"),
        (noise(900).astype(np.uint8), RATE, TypeError, "must be floats with full scale 1, int16 or int32, got uint8"),
        (noise(900).astype(np.int64), RATE, TypeError, "int16 or int32, got int64"),
        (noise(900) * 1j, RATE, TypeError, "got complex128"),
        (np.array(["a", "b"]), RATE, TypeError, "got <U1"),
        (torch.zeros(900, dtype=torch.bfloat16), RATE, TypeError, "cannot be converted to a numpy array"),
        (np.full(900, np.nan), RATE, DataError, r"clips\[0\]: non finite: has NaN or infinite samples"),
        (np.full(900, 1e300), RATE, DataError, "has NaN or infinite samples"),
        (np.full(900, 1e12), RATE, DataError, "out of range: has a sample of 1e"),
        (np.zeros(0), RATE, DataError, r"clips\[0\]: empty: 0 samples"),
        (np.zeros((0, 2)), RATE, DataError, "empty: 0 samples"),
        (0.5, RATE, TypeError, r"must be a path, an array or a pair.*got '0.5' \(float\)"),
        (np.float32(0.5), RATE, TypeError, r"must be a path, an array or a pair"),
        ([0.1, 0.2], RATE, TypeError, r"must be a path, an array or a pair"),
        (None, RATE, TypeError, "must be a path, an array or a pair"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if isinstance(value, type) else "",
)
def test_what_is_no_sound_is_refused_in_one_line(model, clip, rate, error, message):
    """A wrong shape or type is otherwise embedded as noise."""
    with warnings.catch_warnings(), pytest.raises(error, match=message) as raised:
        warnings.simplefilter("error")
        model.embed_audio([clip], sample_rate=rate)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("batch", [noise(4, 9_000), torch.zeros(4, 9_000)], ids=["numpy", "torch"])
def test_a_single_array_of_two_dimensions_is_refused(model, batch):
    """It may be one clip of four channels or four clips; guessing would be wrong half the time."""
    with pytest.raises(TypeError, match=r"single array of shape \(4, 9000\): wrap one clip in a list"):
        model.embed_audio(batch, sample_rate=RATE)
    assert len(model.embed_audio(list(batch), sample_rate=RATE)) == 4
    with pytest.raises(TypeError, match="or a single waveform"):
        model.embed_audio(noise(900), sample_rate=RATE)


def test_a_list_that_was_checked_is_left_as_it_is():
    (sound,) = list_of_clips("clips", [(noise(90), RATE)])
    assert list_of_clips("other", [sound]) == [sound]


def test_a_model_is_shown_in_one_line(model):
    """The modules of a large model fill several screens."""
    assert repr(model) == (
        "Clap(audio='Cnn14 tiny', text='bert-tiny', embedding_dim=24, sample_rate=16000, window_s=0.5)"
    )
