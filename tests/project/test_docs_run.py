"""Every command and every piece of Python in README and docs runs, in the order and to the letter of its page.

Each page has a folder of its own with the files that it names: sounds of half a second, and checkpoints of other
projects in their forms with towers of next to nothing, on disk and in a cache of the Hub. Trainings are short
(tests/brief). What cannot run here is listed with the reason, and only what the pages hold may be listed.
"""

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import soundfile
import torch
from checkpoint_families import CONTAINERS, FAMILIES, cnn14, stored_filters
from doc_pages import TEXT
from hugging_face_models import write_hugging_face
from safetensors.torch import save_file
from source_tree import ROOT
from tiny_checkpoints import bert_source, from_shapes, gpt2_source, roberta_source

from clapcur.models.config import YamnetConfig
from clapcur.models.taggers import YamnetTagger
from clapcur.store.home import Home
from clapcur.testing import write_tone

PAGES = {path.relative_to(ROOT).as_posix(): text for path, text in TEXT.items()}
GENERATED = ("docs/commands.md", "docs/config.md")  # usage and fields, no lines to type
PROGRAMS = r"(?:\.venv/bin/)?clapcur|mlflow|python|make|docker|torchrun|ray|cp|editor|mkdir|git|pip|for|done"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ +)*(?:{PROGRAMS})\s.*|done")

NETWORK, SERVER, DOCKER = "it needs a network", "it runs until somebody ends it", "it needs Docker"
MACHINES, LONG, DATA = "it needs several machines or GPUs", "it takes minutes", "it needs data that are not here"
NOT_RUN = [  # (what a line begins with, why)
    ("make ", LONG), ("clapcur up", SERVER), ("clapcur watch", SERVER), ("mlflow models serve", SERVER),
    ("clapcur push", NETWORK), ("clapcur pull", NETWORK), ("clapcur ingest s3://", NETWORK),
    ("clapcur compare --recipe", DATA), ("clapcur init table2.yaml", DATA), ("python benchmarks/", DATA),
    ("docker ", DOCKER), ("cp .env.example", DOCKER),
    ("for name in", DOCKER), ("editor .env", DOCKER), ("mkdir -p /srv", DOCKER), ("mkdir -p backup", DOCKER),
    ("git pull", DOCKER), ("done", DOCKER), ("torchrun ", MACHINES), ("ray start", MACHINES),
    ("RAY_ADDRESS=", MACHINES), ("pip install", NETWORK), ("clapcur post-train", LONG),
    ("clapcur compare my-sounds.yaml --strategies", LONG), ("clapcur tag $PAIRS", LONG),
    ("clapcur train-captioner", LONG), ("clapcur caption $TAGS --way captioner", LONG),
    ("python tests/", LONG),
    ("python -m flows.register", "it needs servers of your own; test_deployments calls it"),
]  # fmt: skip
NOT_RUN_PYTHON = {"docs/corpora.md": NETWORK}  # it downloads


@dataclass(frozen=True)
class Step:
    """One thing to run."""

    page: str
    language: str  # sh or python
    text: str

    @property
    def why_not(self) -> str:
        """Why it is not run; empty where it is."""
        if self.language == "python":
            return NOT_RUN_PYTHON.get(self.page, "")
        return next((why for start, why in NOT_RUN if self.text.startswith(start)), "")


def steps_of(page: str) -> Iterator[Step]:
    """Yield what a page shows, in its order: lines of fenced blocks, commands between backticks, pieces of Python."""
    pattern = re.compile(r"^```(\w*)\n(.*?)^```|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
    for language, block, inline in pattern.findall(PAGES[page]):
        if language == "python":
            yield Step(page, "python", block)
        elif language in ("", "sh"):
            lines = block.replace("\\\n", " ").splitlines() if block else [inline]
            stripped = (re.sub(r"\s+#.*", "", line).strip() for line in lines)
            for line in stripped:
                is_named_only = inline and len(line.split()) < 3 and line != "clapcur sync"
                if COMMAND.fullmatch(line) and not is_named_only and "..." not in line:
                    yield Step(page, "sh", line)


STEPS = [step for page in PAGES if page not in GENERATED for step in steps_of(page)]
RUN = list(dict.fromkeys(step.page for step in STEPS if not step.why_not))  # README comes first


def test_only_what_is_in_the_docs_is_listed_as_not_run():
    """A reason that outlives its line covers the next one that begins alike."""
    lines = [step.text for step in STEPS if step.language == "sh"]
    assert [start for start, _ in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    assert [
        page for page in NOT_RUN_PYTHON if page not in {one.page for one in STEPS if one.language == "python"}
    ] == []


def test_what_is_listed_keeps_no_page_from_being_run():
    assert {"README.md", "docs/checkpoints.md", "docs/shards.md", "docs/operations.md"} <= set(RUN)
    runs = [step.text for step in STEPS if not step.why_not]
    assert any("mlflow models predict" in text for text in runs) and len(runs) > 25


# -- the files that the pages name

CLASSES = {"dog": 300, "rain": 1200, "siren": 4000}  # Hz


def bert_with_weights(folder: Path) -> None:
    """Write a tiny BERT as the Hub has it; PANNs brings no text tower, and starts from these weights."""
    from transformers import BertConfig, BertModel

    bert_source(folder)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a cache of the Hub with tiny models of the names in the docs."""
    root = tmp_path_factory.mktemp("hub")
    for name, write in {
        "laion/clap-htsat-unfused": write_hugging_face, "laion/larger_clap_general": write_hugging_face,
        "roberta-base": lambda folder: roberta_source(folder, max_length=77), "bert-base-uncased": bert_with_weights,
        "gpt2": gpt2_source, "prajjwal1/bert-medium": bert_source,
    }.items():  # fmt: skip
        repository = root / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        write(repository / "snapshots" / ("0" * 40))
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Write the sounds, tables, classes and checkpoints that the pages name into a fresh folder."""
    folder = tmp_path / "my project"
    seeds = iter(range(1000))

    def sounds(where: str, count: int) -> list[tuple[str, str]]:
        made = []
        for index in range(count):
            name = list(CLASSES)[index % 3]
            path = f"{where}/{index}.wav"
            write_tone(folder / path, CLASSES[name], seed=next(seeds))
            made.append((path, name))
        return made

    pairs = [
        # one caption of each class is its prompt, so that it is near to it for a model that has learned nothing
        (path, f"this is a sound of {name}" if n < len(CLASSES) else f"a {name}, take {n}", f"p{n}")
        for n, (path, name) in enumerate(sounds("paired", 24))
    ]
    pd.DataFrame(pairs, columns=["path", "caption", "recording_id"]).to_csv(folder / "pairs.csv", index=False)
    labelled = pd.DataFrame(sounds("labelled", 12), columns=["path", "label"])
    labelled.to_csv(folder / "labelled.csv", index=False)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for month in ("2026-11", "2026-12"):
        sounds(f"recordings/{month}", 9)
    pd.DataFrame({"path": [f"{folder}/recordings/2026-12/{n}.wav" for n in range(3)]}).to_csv(folder / "clips.csv")
    recordings = folder / "recordings" / "2026-11"
    for name, path in {"recording": recordings / "1.wav", "dog": recordings / "0.wav"}.items():
        (folder / f"{name}.wav").write_bytes(path.read_bytes())
    soundfile.write(folder / "rain.flac", *soundfile.read(recordings / "1.wav", dtype="int16"))
    write_shards(folder)
    write_checkpoints(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def write_shards(folder: Path) -> None:
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "shard-000123.tar", "w") as tar:
        for path in sorted((folder / "recordings" / "2026-12").iterdir()):
            tar.add(path, path.name)


def write_checkpoints(folder: Path) -> None:
    """Write files of other projects, under the names that their releases have."""
    names = {
        "CLAP_weights_2022.pth": "msclap-2022", "CLAP_weights_2023.pth": "msclap-2023",
        "630k-audioset-best.pt": "laion", "blat_cnn14_bertm.pth": "blat",
        "save/CKPT+2023-01-01+00-00-00+00/clap.ckpt": "msclap-2022",
    }  # fmt: skip
    for name, family in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tensors = FAMILIES[family](folder / ".source" / family)
        torch.save(tensors if name.endswith(".ckpt") else {CONTAINERS[family]: tensors, "epoch": 3}, folder / name)
    panns = from_shapes(cnn14()) | {"logmel_extractor.melW": stored_filters(32000)}
    torch.save({"iteration": 1, "model": panns}, folder / "Cnn14_mAP=0.431.pth")
    write_tagger(folder)
    (folder / "book.txt").write_text("A dog barks at the gate. The party met in March. Rain falls on the metal roof.")


def write_tagger(folder: Path) -> None:
    """Write a tiny YAMNet with its head, and the list of its classes."""
    torch.manual_seed(0)
    model = YamnetTagger(3, YamnetConfig(channels=4))
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # of random features all classes are alike
    tensors = {name.removeprefix("tower."): value for name, value in model.state_dict().items()}
    save_file(tensors, folder / "yamnet.safetensors")
    names = (f'{index},/m/{index},"{name.title()}, {name} far away, loud {name}"' for index, name in enumerate(CLASSES))
    (folder / "class_map.csv").write_text("\n".join(["index,mid,display_name", *names]))


# -- what people do between the lines


def before(step: Step, folder: Path) -> None:
    """Do what the page tells in words before this line: put the own values into a config, name the pool."""
    config = folder / "my-sounds.yaml"
    if step.text.endswith("improve my-sounds.yaml"):
        rows = "rows: [{strategy: teacher}, {strategy: continued}, {strategy: ads, soft_labels: true}]"
        config.write_text(f"{re.sub(r'count: [0-9]+', 'count: 12', config.read_text())}{rows}\n")
    if step.text == "clapcur recurate my-sounds.yaml":
        config.write_text(config.read_text().replace("pool: recordings/", "pool: pool:field"))
    if step.text.endswith("clapcur label recordings/ --classes classes.txt"):  # two pages have it
        (folder / "label.html").unlink(missing_ok=True)
    if step.text.startswith("clapcur marks anna.csv"):
        for name, mark in (("anna", "right"), ("ben", "wrong")):
            (folder / f"{name}.csv").write_text(
                f"clip_id,caption_id,mark,similarity,class\na,k,right,,\nb,k,{mark},,\n"
            )


EFFECTS: dict[str, Callable[[Path, str], bool]] = {  # what is in a line: whether what it promises came
    ".venv/bin/clapcur improve": lambda folder, out: "vs teacher" in out and "continued" in out,
    ".venv/bin/clapcur init": lambda folder, out: (folder / "my-sounds.yaml").is_file(),
    ".venv/bin/clapcur compare": lambda folder, out: "ADS+SL" in out,
    "clapcur improve": lambda folder, out: "vs teacher" in out,
    "clapcur export $STUDENT my-clap/": lambda folder, out: (folder / "my-clap" / "preprocessor_config.json").is_file(),
    "clapcur export $STUDENT student.pth": lambda folder, out: (folder / "student.pth").is_file(),
    "clapcur recurate": lambda folder, out: "decision" in out and "champion" in out,
    "clapcur recurate my-sounds.yaml --dry-run": lambda folder, out: "Due: " in out or "Not due yet: " in out,
    "clapcur label": lambda folder, out: "at most one of each" in out,
    "clapcur plan": lambda folder, out: "embed pool" in out,
    "clapcur forget": lambda folder, out: "is forgotten" in out,
    "clapcur trace $STUDENT --html": lambda folder, out: (folder / "tree.html").is_file(),
    "clapcur trace clapcur-my-sounds@champion": lambda folder, out: re.match(r"[0-9a-f]{12}  train ", out) is not None,
    "clapcur map": lambda folder, out: (folder / "map.html").is_file(),
    "clapcur search": lambda folder, out: ".wav" in out,
    "clapcur search dog.wav pairs.csv --captions": lambda folder, out: "similarity   caption" in out,
    "clapcur marks": lambda folder, out: "1 pairs with a majority" in out and "1 ties are left out" in out,
    "clapcur audition $SET --label-studio": lambda folder, out: (folder / "tasks" / "tasks.json").is_file(),
    "clapcur verify --all": lambda folder, out: "damaged" in out or "whole" in out,
    "mlflow models predict": lambda folder, out: out.count("recordings/2026-12/") == 3,
}


def ids(folder: Path) -> dict[str, str]:
    """Return the newest ids of a home under the words that represent them in the docs."""
    store = Home(folder / ".clapcur").store
    found: dict[str, str] = {}
    sets = [one.id for one in store.of_kind("improvement_set")] if store.root.is_dir() else []
    if sets:
        students = [one for one in store.of_kind("checkpoint") if "improvement_set" in one.record.inputs]
        pool = [one for one in store.of_kind("manifest") if "pool" in str(one.record.tags.get("role"))]
        found = {"SET": sets[-1], "OTHER": sets[0], "STUDENT": students[-1].id, "CHECKPOINT": students[-1].id}
        found |= {"MANIFEST": pool[-1].id} if pool else {}
        tags = [one.id for one in store.of_kind("tags") if "tagger" in one.record.inputs]
        found |= {"TAGS": tags[-1]} if tags else {}
        found["CLIP"] = pd.read_parquet(store.find(sets[-1]).path / "pairs.parquet").clip_id.iloc[0]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_pages_run_as_they_are_written(project, hub):
    """README's `mlflow models predict` failed, and left a database where it was typed."""
    program = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if name != "CLAPCUR_HOME"} | {
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}", "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT / 'tests' / 'brief'}",
    }  # fmt: skip
    snippets: list[Step] = []
    for step in [one for page in RUN for one in steps_of(page) if not one.why_not]:
        page = step.page
        before(step, project)
        if step.language == "python":
            snippets = [one for one in snippets if one.page == page] + [step]
            command = [sys.executable, "-c", "\n".join(one.text for one in snippets)]
        else:
            command = ["bash", "-euc", step.text]
        done = subprocess.run(
            command, cwd=project, env=environment | ids(project), capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"{page}: {step.text}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        if promised := max((part for part in EFFECTS if part in step.text), key=len, default=""):
            assert EFFECTS[promised](project, done.stdout), f"{page}: {step.text}\n{done.stdout}{done.stderr}"
        stray = [name for name in ("mlflow.db", "mlruns", "mlartifacts", "prefect.db") if (project / name).exists()]
        assert stray == [], f"{page}: {step.text} left {stray}"
