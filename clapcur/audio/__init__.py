"""Reading audio files: decoding to mono, resampling, fitting to a length, and diagnosing bad files.

A waveform is float32 of shape (T,), full scale 1, mono by the mean over channels (stereo is never flattened into one
long signal)::

    access        which addresses may be read
    addresses     where a clip is: a file, an object, a part of a tar or of a Parquet file
    stores        object stores, through fsspec
    cells         clips in Parquet files
    limits        how much memory one clip may take
    opening       an address -> a descriptor
    containers    detection of truncated files, where libsndfile does not report them
        decoding      file -> mono blocks, or an error
        loading       file -> waveform or crops; a cache; rejection of files that changed
        arrays        waveform in memory -> crops, as from a file
        probing       file -> hashes and facts, or the problem with the file
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
