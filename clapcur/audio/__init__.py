"""Audio files: to a mono waveform at a rate, to a fixed length, and what is wrong with a bad one.

A waveform is float32 of shape (T,), mono by the mean over channels (stereo is never flattened into one long signal),
full scale 1::

    access        which addresses may be read
    addresses     where a clip lies: a file, an object, a part of a tar or of a Parquet file
    stores        object stores, through fsspec
    cells         clips in Parquet files
    limits        how much memory one clip may take
    opening       an address -> a descriptor
    containers    what the bytes of a file promise, where libsndfile does not say
    decoding      file -> mono blocks, or the reason why not
    loading       file -> waveform or crops; a cache; refusing what is another clip now
    probing       file -> its hashes and facts, or the problem with it
"""

from clapcur.audio.decoding import UnusableAudio
from clapcur.audio.loading import WaveformCache, fit, load_audio, load_crops
from clapcur.audio.probing import ClipInfo, ProbeRules, Problem, probe

__all__ = [
    "ClipInfo",
    "ProbeRules",
    "Problem",
    "UnusableAudio",
    "WaveformCache",
    "fit",
    "load_audio",
    "load_crops",
    "probe",
]
