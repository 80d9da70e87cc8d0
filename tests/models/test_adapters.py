"""Low-rank adapters: nothing changes when they are added, few weights learn, and merged they are a model like any."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoints import gpt2_source
from tiny_clap import CAPTIONS
from tiny_clap import CONFIG as CNN14
from tiny_htsat import CONFIG as HTSAT
from tiny_yamnet import SMALL as YAMNET
from training_corpus import STUDENT, Corpus, weights

from clapcur.errors import CheckpointError
from clapcur.models.adapters import ADAPTER, add_adapters, copy_adapter, digest_of, merge_adapters, with_adapter
from clapcur.models.clap import Clap, load_model
from clapcur.models.config import LoraConfig, TextConfig
from clapcur.stages.adopt import AdoptConfig, stage_for
from clapcur.stages.train import STAGE, train
from clapcur.store.home import Home

LORA = dataclasses.replace(STUDENT, adapt="lora", lora=LoraConfig(rank=2), selection="last", learning_rate=1e-2)
BOTH = ("audio", "text")
TOWERS = pytest.mark.parametrize("config", [CNN14, HTSAT, YAMNET], ids=["cnn14", "htsat", "yamnet"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def student(corpus):
    return corpus.run(LORA, corpus.student_inputs())


def rows(model: Clap) -> torch.Tensor:
    """Return what a model makes of noise and of captions."""
    waveform = torch.randn(2, model.config.num_samples, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.cat([model.eval().encode_audio(waveform), model.encode_text(CAPTIONS)])


@TOWERS
def test_adapters_change_nothing_until_they_learn_and_the_same_once_merged(config):
    """A student must start from its teacher; and what is saved must be what was trained."""
    model = Clap.create(config, CAPTIONS)
    before, base = rows(model), model.state_dict()
    base = {name: value.clone() for name, value in base.items()}
    learning = add_adapters(model, LoraConfig(rank=2), BOTH)
    assert torch.equal(rows(model), before)
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in learned} == {
        "audio", "text", "audio_projection", "text_projection", "logit_scale"
    }  # fmt: skip
    assert all("lora_" in name for name in learned if name.split(".")[0] in BOTH)
    assert model.audio not in learning and model.text not in learning
    for name, value in learned.items():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    adapted = rows(model)
    assert not torch.allclose(adapted, before, atol=1e-2)
    merge_adapters(model)
    assert set(model.state_dict()) == set(base), "a merged model has the weights of any other"
    assert torch.allclose(rows(model), adapted, atol=1e-5)
    for name, value in model.state_dict().items():
        if value.ndim >= 2 and name.split(".")[0] in BOTH and not torch.equal(value, base[name]):
            change = (value - base[name]).flatten(1)
            change = change if value.ndim == 2 else change.reshape(len(value), -1)
            large = np.linalg.svd(change.double().numpy(), compute_uv=False)
            if value.ndim == 2 or value.shape[2:] == (1, 1):
                assert (large > 1e-5 * large[0]).sum() <= 2, f"{name} changed by more than the rank"


def test_a_text_encoder_with_transposed_weights_is_adapted(tmp_path):
    """GPT-2's layers, of Microsoft's CLAP 2023, are no `nn.Linear`: they would silently stay as they were."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    gpt2_source(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path, pad_token="<|endoftext|>").save_pretrained(tmp_path)
    AutoModel.from_config(AutoConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    model = Clap.create(
        dataclasses.replace(CNN14, text=TextConfig(source=str(tmp_path), pooling="last", max_tokens=20))
    )
    before = rows(model)
    add_adapters(model, LoraConfig(rank=2), ["text"])
    learned = [(name, value) for name, value in model.named_parameters() if "lora_B" in name]
    assert {"attn.c_attn", "mlp.c_fc"} <= {".".join(name.split(".")[-5:-3]) for name, _ in learned}
    for _, value in learned:
        torch.nn.init.normal_(value, std=0.1)
    adapted = rows(model)
    merge_adapters(model)
    assert torch.allclose(rows(model), adapted, atol=1e-5) and not torch.allclose(adapted, before, atol=1e-2)
    assert torch.equal(adapted[:2], before[:2]), "the audio tower was not to be adapted"


def test_what_is_no_adapter_and_no_projection_keeps_its_bits(corpus, student):
    """Batch norms take statistics in training mode, and the merged student would hear otherwise than it was trained."""
    before, after = weights(corpus.teacher()), weights(student)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if ".bn" in name or "running" in name or "LayerNorm" in name]
    assert {"audio.fc1.weight", "audio_projection.linear1.weight", "logit_scale"} <= changed
    assert any(name.startswith("text.") for name in changed)


def test_base_and_adapter_are_the_student(corpus, student, tmp_path):
    """What one sends to others is the small file."""
    base = load_model(corpus.teacher().path, device="cpu")
    copy_adapter(student.path, tmp_path / "sent" / "student.safetensors")
    made = with_adapter(base, tmp_path / "sent" / "student.safetensors")
    assert {name: value.tolist() for name, value in made.state_dict().items()} == {
        name: value.tolist() for name, value in load_model(student.path, device="cpu").state_dict().items()
    }
    assert digest_of(base) == digest_of(load_model(corpus.teacher().path, device="cpu")), "the base stays as it was"
    with safe_open(student.path / ADAPTER, framework="pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    whole = sum(value.numel() for value in weights(student).values())
    projections = sum(value.numel() for name, value in weights(student).items() if "projection" in name)
    assert sum(sizes.values()) - projections < whole / 5


def test_the_commands_send_a_student_and_make_it_again(corpus, student, tmp_path, answer):
    """Elsewhere there is the base alone."""
    sent, base = tmp_path / "student.safetensors", tmp_path / "base"
    here = ("--home", corpus.store.root.parent)
    assert answer("export", student.id, sent, "--format", "adapter", *here)[0] == 0
    assert answer("export", corpus.teacher().id, base, *here)[0] == 0
    adopting = ("adopt", base, "--home", tmp_path / "elsewhere", "--json")
    code, out, errors = answer(*adopting, "--adapter", sent)
    assert code == 0, errors
    made = load_file(Home(tmp_path / "elsewhere").store.find(json.loads(out)["id"]).path / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in weights(student).items())
    code, _, errors = answer(*adopting, "--adapter", tmp_path / "other.safetensors")
    assert code == 1 and "other.safetensors" in errors
    code, _, errors = answer("export", corpus.teacher().id, tmp_path / "x", "--format", "adapter", *here)
    assert code == 1 and "has no adapters" in errors


def test_an_adapter_enters_the_identity_and_its_absence_does_not(corpus, student):
    """Checkpoints that were adopted before there were adapters keep their ids."""
    config = AdoptConfig(source=str(corpus.teacher().path), adapter=str(student.path / ADAPTER))
    without = dataclasses.replace(config, adapter=None)
    assert stage_for(without)[1].keys() == stage_for(config)[1].keys() - {"adapter"}


def test_a_base_that_is_another_and_files_that_are_none_are_told(corpus, student, tmp_path):
    base = load_model(corpus.teacher().path, device="cpu")
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.audio.fc1.bias[0] += 1e-6
    with pytest.raises(CheckpointError, match="trained on another model"):
        with_adapter(other, student.path / ADAPTER)
    with pytest.raises(CheckpointError, match="not an adapter of clapcur"):
        with_adapter(base, student.path / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot read the adapter"):
        with_adapter(base, tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((student.path / ADAPTER).read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot read the adapter"):
        with_adapter(base, cut)
    with safe_open(student.path / ADAPTER, framework="pt") as file:
        header, whole = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in whole if name.endswith("lora_B"))
    for value, message in ((whole[name][:-1], "do not fit the base"), (whole[name] * math.nan, "not finite: .*lora_B")):
        save_file(whole | {name: value.contiguous()}, cut, header)
        with pytest.raises(CheckpointError, match=message):
            with_adapter(base, cut)
    save_file(whole, cut, {"clapcur": "{"})
    with pytest.raises(CheckpointError, match="cannot read the adapter"):
        with_adapter(base, cut)
    with pytest.raises(CheckpointError, match="has no adapters: only a training with adapt: lora or projections has"):
        copy_adapter(corpus.teacher().path, tmp_path / "out.safetensors")


def test_a_training_with_adapters_that_was_killed_ends_with_the_weights_of_one_that_was_not(corpus, student):
    inputs = corpus.student_inputs()
    work = corpus.store.open(dataclasses.replace(STAGE, version="resumed adapters").key(LORA, inputs))

    def fail(step, metrics):
        if step == 4 and "loss" in metrics:
            raise KeyboardInterrupt

    config, work.on_step = dataclasses.replace(LORA, save_every_s=0.0), fail
    with pytest.raises(KeyboardInterrupt):
        train(inputs, config, work)
    steps: list[int] = []
    work.on_step = lambda step, metrics: steps.append(step)
    train(inputs, config, work)
    assert min(steps) == 4
    for name in ("model.safetensors", ADAPTER):
        assert (work.path / name).read_bytes() == (student.path / name).read_bytes()


def test_projections_alone_are_what_two_frozen_towers_are(corpus):
    """`adapt` says in one word what `frozen_towers` says in two."""
    made = corpus.run(dataclasses.replace(STUDENT, adapt="projections"), corpus.student_inputs())
    one = weights(made)
    two = weights(corpus.run(dataclasses.replace(STUDENT, frozen_towers=BOTH), corpus.student_inputs()))
    assert all(torch.equal(one[name], two[name]) for name in two)
    before = weights(corpus.teacher())
    assert all(torch.equal(one[name], before[name]) for name in one if name.split(".")[0] in BOTH)
    sent = with_adapter(load_model(corpus.teacher().path, device="cpu"), made.path / ADAPTER).state_dict()
    assert all(torch.equal(sent[name], one[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": "lora", "frozen_towers": BOTH}, "needs a tower that is not frozen"),
        ({"adapt": "lora", "learns": ("audio_projection",)}, "either `learns` or `adapt`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDENT, **changes)
    with pytest.raises(ValueError, match="rank of an adapter"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match="alpha must be"):
        LoraConfig(alpha=0.0)


def test_a_new_model_cannot_be_adapted(corpus):
    """Adapters beside random weights would learn next to nothing."""
    with pytest.raises(ValueError, match="needs a checkpoint to start from"):
        corpus.run(dataclasses.replace(LORA, model=load_model(corpus.teacher().path).config), {
            "teacher_pairs": corpus.pairs
        })  # fmt: skip
