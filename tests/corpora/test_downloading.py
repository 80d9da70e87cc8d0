"""Fetching corpora: the call that reaches aac-datasets and soundata, without a network and without them."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from clapcur.corpora import CORPORA
from clapcur.corpora.downloading import AAC_FOLDERS, AAC_SUBSETS, SOUNDATA, _names_that_torchaudio_lost, download
from clapcur.errors import DataError, ManifestError


# the signatures of aac-datasets 0.7.0 and soundata 1.0.1, as far as both sides share them
def fetch_audiocaps(root=None, subset="train", force=False, verbose=0, verify_files=False, *, sr=32_000): ...
def fetch_clotho(root=None, subset="dev", force=False, verbose=0, verify_files=True, *, version="v2.1"): ...
def fetch_macs(root=None, subset="full", force=False, verbose=0, verify_files=True, *, clean_archives=True): ...
def initialize(dataset_name, data_home=None, version="default"): ...
def fetch(partial_download=None, force_overwrite=False, cleanup=False): ...
def validate(verbose=True): ...


FETCH = {"audiocaps": fetch_audiocaps, "clotho": fetch_clotho, "macs": fetch_macs}


class Calls(list[tuple[Any, ...]]):
    """Functions of the packages that note with what they are called, and refuse what the real ones would."""

    def noting(self, name: str, like: Any, answer: Any = None) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.append((name, dict(inspect.signature(like).bind(*arguments, **options).arguments)))
            return answer

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    for name in ("aac_datasets", "aac_datasets.datasets", "aac_datasets.datasets.functional"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, like in FETCH.items():
        module = ModuleType(name)
        vars(module)[f"download_{name}_dataset"] = made.noting(name, like)
        monkeypatch.setitem(sys.modules, f"aac_datasets.datasets.functional.{name}", module)
    dataset = SimpleNamespace(
        download=made.noting("download", fetch),
        validate=made.noting("validate", validate, ({"clips": {}}, {"clips": {}})),
    )
    soundata = ModuleType("soundata")
    vars(soundata).update(initialize=made.noting("initialize", initialize, dataset), dataset=dataset)
    monkeypatch.setitem(sys.modules, "soundata", soundata)
    return made


def test_aac_datasets_is_asked_for_the_splits_under_its_own_names(calls: Calls, tmp_path: Path) -> None:
    """Its `eval` is Clotho's evaluation; asked for `evaluation` it would stop after gigabytes."""
    assert download("clotho", tmp_path, ("development", "evaluation")) == tmp_path / "CLOTHO_v2.1"
    assert calls == [
        ("clotho", {"root": tmp_path, "subset": "dev", "verbose": 1}),
        ("clotho", {"root": tmp_path, "subset": "eval", "verbose": 1}),
    ]


@pytest.mark.parametrize("name", AAC_SUBSETS)
def test_every_split_has_a_name_in_aac_datasets(calls: Calls, name: str, tmp_path: Path) -> None:
    assert set(AAC_SUBSETS[name]) == set(CORPORA[name].clips)
    download(name, tmp_path)
    assert [said["subset"] for _, said in calls] == [AAC_SUBSETS[name][fold] for fold in CORPORA[name].folds]


@pytest.mark.parametrize("name", SOUNDATA)
def test_soundata_fetches_and_then_compares_every_file(calls: Calls, name: str, tmp_path: Path) -> None:
    assert download(name, tmp_path) == tmp_path / name
    assert calls == [
        ("initialize", {"dataset_name": name, "data_home": str(tmp_path / name)}),
        ("download", {}),
        ("validate", {"verbose": False}),
    ]


def test_a_file_with_another_checksum_is_an_error(calls: Calls, tmp_path: Path) -> None:
    """A broken download would be quarantined clip by clip, or score as another sound."""
    bad = ({"clips": {}}, {"clips": {"1-100032-A-0": ["audio/1-100032-A-0.wav"]}})
    sys.modules["soundata"].dataset.validate = lambda verbose: bad
    with pytest.raises(
        DataError, match="1 files of ESC-50 are missing or differ from the published ones: audio/1-100032-A-0.wav"
    ):
        download("esc50", tmp_path)


@pytest.mark.parametrize("name", ["audioset", "tut2017"])
def test_a_corpus_that_nobody_can_fetch_says_what_to_lay_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="cannot be downloaded automatically: make a copy with .* and give its folder as `source`"
    ):
        download(name, tmp_path)
    with pytest.raises(ManifestError, match="unknown corpus 'esc'"):
        download("esc", tmp_path)


@pytest.mark.parametrize(("name", "package"), [("esc50", "soundata"), ("macs", "aac_datasets")])
def test_a_missing_package_names_the_extra(name: str, package: str, tmp_path: Path, monkeypatch) -> None:
    """A ModuleNotFoundError leaves people to guess the package's name, and its version."""

    def find_spec(wanted: str, *others: Any) -> None:
        if wanted.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=package)

    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find_spec), *sys.meta_path])
    with pytest.raises(DataError, match=rf"{package} is not installed; run `pip install 'clapcur\[corpora\]'`"):
        download(name, tmp_path)


def test_torchaudio_is_left_as_it_was() -> None:
    """A class that appears in another package makes other code believe in an older version."""
    import torchaudio

    before = hasattr(torchaudio, "AudioMetaData")
    with _names_that_torchaudio_lost():
        assert hasattr(torchaudio, "AudioMetaData")
    assert hasattr(torchaudio, "AudioMetaData") == before


@pytest.mark.skipif(importlib.util.find_spec("aac_datasets") is None, reason="the extra clapcur[corpora] is not there")
@pytest.mark.parametrize("name", FETCH)
def test_the_functions_of_aac_datasets_are_as_these_tests_have_them(name: str) -> None:
    with _names_that_torchaudio_lost():
        module = importlib.import_module(f"aac_datasets.datasets.functional.{name}")
    real = inspect.signature(getattr(module, f"download_{name}_dataset")).parameters
    for item in inspect.signature(FETCH[name]).parameters.values():
        assert (real[item.name].kind, real[item.name].default) == (item.kind, item.default)
    assert (
        AAC_FOLDERS[name] in inspect.getsource(module) or name == "clotho" and 'f"CLOTHO_{' in inspect.getsource(module)
    )


@pytest.mark.skipif(importlib.util.find_spec("soundata") is None, reason="the extra clapcur[corpora] is not there")
@pytest.mark.parametrize("name", SOUNDATA)
def test_the_functions_of_soundata_are_as_these_tests_have_them(name: str, tmp_path: Path) -> None:
    import soundata

    dataset = soundata.initialize(name, data_home=str(tmp_path))
    for real, own in ((soundata.initialize, initialize), (dataset.download, fetch), (dataset.validate, validate)):
        assert str(inspect.signature(real)) == str(inspect.signature(own))
