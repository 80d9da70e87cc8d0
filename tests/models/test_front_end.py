"""The log-mel front end against numbers nobody here wrote: from Hugging Face and from MATLAB."""

import json

import numpy as np
import pytest
import soundfile
import torch
from source_tree import ROOT

from clapcur.models.config import FrontEndConfig
from clapcur.models.front_end import LogMel, mel_filters

GOLDEN = ROOT.parent / "shared" / "data" / "golden"


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    """One waveform, shape (1, T)."""
    return torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.shared_data("golden/hf_clap")
@pytest.mark.parametrize("row", range(5))
def test_log_mel_equals_the_rows_that_hugging_faces_clap_test_expects(row: int) -> None:
    """A wrong window, padding, mel formula or dB floor moves every embedding and raises nothing."""
    expected = json.loads((GOLDEN / "hf_clap" / "expected_logmel.json").read_text())["rows"][row]
    clip, _ = soundfile.read(GOLDEN / "hf_clap" / "1272-128104-0001.wav", dtype="float32")
    clip = np.trunc(clip * 32767).astype(np.int16).astype(np.float32) / 32767
    whole_copies = {"repeat": 480000 / len(clip), "repeatpad": 480000 // len(clip), "zeros": 1}
    copied = np.tile(clip, int(np.ceil(whole_copies[expected["pad"]])))[:480000]
    waveform_BT = torch.from_numpy(np.pad(copied, (0, 480000 - len(copied))))[None]
    config = FrontEndConfig(
        sample_rate=48000,
        hop_samples=480,
        mel_scale=expected["mel_scale"],
        mel_norm=expected["norm"],
    )
    log_mel = LogMel(config)(waveform_BT)[0]
    assert log_mel.shape == (1001, 64)
    for frame in expected["frames_matching"]:
        np.testing.assert_allclose(log_mel[frame].numpy(), expected["values"], rtol=0, atol=1e-4)


def test_log_mel_equals_hugging_faces_own_extractor() -> None:
    """The same comparison on any machine, with the code that made the golden rows."""
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc", padding="repeatpad")
    waveform_BT = 0.1 * noise(480000)
    theirs = extractor(waveform_BT[0].numpy(), sampling_rate=48000, return_tensors="pt")["input_features"][0, 0]
    ours = LogMel(FrontEndConfig(sample_rate=48000, hop_samples=480))(waveform_BT)[0]
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-4)


@pytest.mark.shared_data("golden/mel_filters")
def test_mel_filters_equal_144_matlab_filterbanks() -> None:
    """A filterbank with a shifted edge sounds right and scores a little worse."""
    golden = np.load(GOLDEN / "mel_filters" / "matlab_melfb_144.npz")
    assert len(golden["params"]) == 144
    for i, (rate, n_fft, num_mels, f_min, f_max, htk) in enumerate(golden["params"]):
        config = FrontEndConfig(
            sample_rate=int(rate),
            n_fft=int(n_fft),
            num_mels=int(num_mels),
            f_min=f_min,
            f_max=f_max,
            mel_scale="htk" if htk else "slaney",
        )
        expected_MF = golden[f"wts_{i:03d}"]
        np.testing.assert_allclose(mel_filters(config).numpy().T, expected_MF, rtol=0, atol=1e-12)


@pytest.mark.shared_data("golden/stft")
def test_power_spectrogram_equals_matlabs_of_real_music() -> None:
    """An off-by-one in centring or a symmetric window blurs every onset unnoticed."""
    golden = np.load(GOLDEN / "stft" / "matlab_stft_018.npz")
    hop, every = int(golden["hop"]), int(golden["every"])
    stereo, rate = soundfile.read(GOLDEN / "stft" / "test1_22050.wav", dtype="float32")
    config = FrontEndConfig(sample_rate=rate, n_fft=1024, hop_samples=hop, f_max=11025)
    power_LF = LogMel(config).power(torch.from_numpy(stereo.mean(axis=1))[None])[0].numpy()
    expected_FL = np.abs(golden["D"]) ** 2
    first = (1024 // 2) // hop  # our frame whose window starts at sample 0
    ours_FL = power_LF[first::every].T[:, : expected_FL.shape[1]]
    assert ours_FL.shape == expected_FL.shape
    peak = np.sqrt(expected_FL.max())
    np.testing.assert_allclose(np.sqrt(ours_FL), np.sqrt(expected_FL), rtol=0, atol=1e-5 * peak)


@pytest.mark.shared_data("golden/stft")
def test_power_spectrogram_equals_a_hann_smoothed_rectangular_stft() -> None:
    """A window that is not the periodic Hann leaks energy between bands without any error.

    The stored STFT has no window; a periodic Hann window in time is D[k]/2 - (D[k-1] + D[k+1])/4
    in frequency.
    """
    golden = np.load(GOLDEN / "stft" / "matlab_stft_005.npz")
    assert golden["hann_periodic_length"] == 0
    n_fft, hop, every = int(golden["n_fft"]), int(golden["hop"]), int(golden["every"])
    D_FL = golden["D"]
    below = np.vstack([D_FL[1:2].conj(), D_FL[:-1]])
    above = np.vstack([D_FL[1:], D_FL[-2:-1].conj()])
    expected_FL = np.abs(D_FL / 2 - (below + above) / 4)
    stereo, rate = soundfile.read(GOLDEN / "stft" / "test1_22050.wav", dtype="float32")
    config = FrontEndConfig(sample_rate=rate, n_fft=n_fft, hop_samples=hop, num_mels=8, f_max=11025)
    shifted = stereo.mean(axis=1)[n_fft // 2 :]  # so that our centred frames start where theirs do
    ours_FL = LogMel(config).power(torch.from_numpy(shifted)[None])[0, ::every].sqrt().numpy().T
    ours_FL = ours_FL[:, : expected_FL.shape[1]]
    # The first of our frames is reflected at its left end, theirs is not.
    tolerance = 1e-5 * expected_FL.max()
    np.testing.assert_allclose(ours_FL[:, 1:], expected_FL[:, 1:], rtol=0, atol=tolerance)


def test_filters_of_another_rate_hear_a_stretched_band() -> None:
    """The filters of PANNs' 32 kHz at 44.1 kHz hear 69-19 294 Hz: what a release was trained with must be sayable."""
    stretched = mel_filters(FrontEndConfig(sample_rate=44100, filter_rate=32000))
    assert torch.equal(stretched, mel_filters(FrontEndConfig(sample_rate=32000)))
    assert torch.equal(mel_filters(FrontEndConfig(filter_rate=32000)), mel_filters(FrontEndConfig()))
    heard = torch.nonzero(stretched.sum(dim=1))[:, 0] * 44100 / 1024
    assert 69 <= heard.min() < 69 + 44.1 and 19294 - 44.1 < heard.max() <= 19294
    log_mel = LogMel(FrontEndConfig(sample_rate=44100, filter_rate=32000))
    assert torch.equal(log_mel.mel_filters, stretched.float())


def test_rounding_to_16_bits_is_that_of_laion_clap() -> None:
    """In quiet bands the steps are louder than the sound: one rounding off and LAION's embeddings are others."""
    rough, exact = LogMel(FrontEndConfig(int16=True)), LogMel(FrontEndConfig())
    wave = torch.cat([0.3 * noise(16000), torch.tensor([[2.0, -2.0, 0.99999, -0.99999, 1e-5, -1e-5]])], dim=1)
    steps = (np.clip(wave.numpy(), -1, 1) * 32767.0).astype(np.int16)  # as its training/data.py does
    torch.testing.assert_close(rough(wave), exact(torch.from_numpy((steps / 32767.0).astype(np.float32))))
    assert not torch.allclose(rough(wave), exact(wave), atol=1e-2)


def test_the_front_end_leaves_nothing_in_a_checkpoint() -> None:
    """A stored filterbank of 32 kHz overwrites the one of 44.1 kHz at the next strict load."""
    log_mel = LogMel(FrontEndConfig())
    assert log_mel.state_dict() == {}
    assert list(log_mel.parameters()) == []
    assert {name for name, _ in log_mel.named_buffers()} == {"window", "mel_filters"}


def test_log_mel_stays_float32_under_autocast() -> None:
    """In bfloat16 a dB value has steps of 0.25 to 0.5, and quiet bands are quantised away."""
    log_mel = LogMel(FrontEndConfig(n_fft=256, num_mels=8))
    waveform_BT = noise(4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = log_mel(waveform_BT)
        assert (waveform_BT @ waveform_BT.T).dtype == torch.bfloat16  # autocast was on
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, log_mel(waveform_BT))


def test_a_front_end_cast_to_half_precision_is_refused() -> None:
    """model.bfloat16() would round the filterbank and shift its bands for good."""
    log_mel = LogMel(FrontEndConfig(n_fft=256, num_mels=8)).bfloat16()
    with pytest.raises(TypeError, match="autocast"):
        log_mel(noise(4000))


def test_doubling_the_waveform_adds_six_db_and_silence_is_the_floor() -> None:
    """Amplitude in place of power halves every dB value; a zero would be -inf and end in NaN."""
    log_mel = LogMel(FrontEndConfig())
    once, twice = log_mel(noise(32000)), log_mel(2 * noise(32000))
    six_db = torch.full_like(once, 20 * np.log10(2))
    torch.testing.assert_close(twice - once, six_db, atol=1e-4, rtol=0)
    assert torch.equal(log_mel(torch.zeros(1, 32000)), torch.full((1, 101, 64), -100.0))


@pytest.mark.parametrize("num_samples", [513, 3199, 3200, 3201, 16000])
def test_num_frames_says_how_many_frames_come(num_samples: int) -> None:
    """The least window is computed from it: off by one is a crash inside the last pooling."""
    config = FrontEndConfig()
    assert LogMel(config)(noise(num_samples)).shape == (1, config.num_frames(num_samples), 64)


def test_a_batch_gives_what_each_clip_gives_alone() -> None:
    """Normalising over the batch would make an embedding depend on its neighbours."""
    log_mel = LogMel(FrontEndConfig())
    loud, quiet = noise(8000), 0.01 * noise(8000, seed=1)
    together = log_mel(torch.cat([loud, quiet]))
    torch.testing.assert_close(together[0:1], log_mel(loud), atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1:2], log_mel(quiet), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_rate": 16000}, r"f_max is 14000 Hz.*set f_max to 8000 or less"),
        ({"f_min": 15000.0}, "f_min < f_max"),
        ({"hop_samples": 0}, "hop_samples must be a whole number"),
        ({"n_fft": 1024.0}, "n_fft must be a whole number"),
        ({"mel_norm": "area"}, "mel_norm"),
        ({"mel_scale": "bark"}, "mel_scale"),
        ({"amin": 0.0}, "amin"),
        ({"filter_rate": 16000}, "f_max is 14000 Hz, above half of filter_rate 16000"),
        ({"filter_rate": 0}, "filter_rate must be"),
    ],
)
def test_a_front_end_that_cannot_work_is_refused(fields: dict, message: str) -> None:
    """A band above half the sample rate is a constant, and no later step would notice."""
    with pytest.raises(ValueError, match=message):
        FrontEndConfig(**fields)


def test_a_band_between_two_bins_is_refused() -> None:
    """An empty band is -100 dB for every clip: 120 bands would be fewer than they look."""
    with pytest.raises(ValueError, match="always be silent; raise n_fft"):
        LogMel(FrontEndConfig(n_fft=256, num_mels=120))


def test_a_clip_too_short_to_reflect_is_refused() -> None:
    """The message of torch names padding sizes, not the clip."""
    with pytest.raises(ValueError, match="more than 512 samples"):
        LogMel(FrontEndConfig())(noise(512))
    with pytest.raises(ValueError, match=r"got \(32000,\)"):
        LogMel(FrontEndConfig())(noise(32000)[0])
