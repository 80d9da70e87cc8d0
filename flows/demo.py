"""The demo: generate a synthetic corpus, then run the real comparison on it."""

from pathlib import Path

from prefect import flow

from clapcur.corpora.synthetic.procedural import ProceduralConfig, generate
from clapcur.experiments.config import demo_experiment
from clapcur.flows.compare import compare
from clapcur.store.artifacts import Artifact
from clapcur.store.home import Home


@flow(name="demo", flow_run_name="demo-seed{seed}")
def demo(seed: int = 0) -> Artifact:
    """Generate synthetic everyday sounds, compare all strategies on them, and return the report."""
    folder: Path = Home.open().root / "demo" / f"seed{seed}"
    corpus = generate(folder, ProceduralConfig(seed=seed))
    return compare(demo_experiment(corpus, seed))
