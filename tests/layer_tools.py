"""Which layer a module is in."""

from source_tree import ROOT

# From the bottom up. A module imports from its own folder and from folders above it in this list.
FOLDERS = (
    "store",  # artifacts on disk, records, catalog, leases, the workspace, the runner that makes an artifact once
    "audio",  # decoding, containers, addresses, limits
    "data",  # the kinds of data: manifests, tables, embeddings, Improvement-Sets, champions, take-downs
    "corpora",  # one reader for each public corpus; synthetic/ makes the demo's
    "methods",  # pure functions: losses, metrics, similarity, thresholds, contamination, plots
    "models",  # CLAP: audio towers, text encoders, checkpoint formats
    "stages",  # one folder or file for each stage; stages never import each other
    "listening",  # pages for listening to the hits of a search and to the clips of a set
    "experiments",  # the config of an experiment, its defaults, its checks before the first training
    "tracking",  # MLflow
    "lineage",  # trace, impact, pools, collection, verification, the graph page
    "servers",  # Prefect's and MLflow's servers: plan, guard, supervisor
    "tasks",  # one Prefect task for each stage
    "flows",  # one Prefect flow for each experiment
    "cli",  # the command line
)


SHIMS = ("contamination", "serving")  # old names that outlive a release: what was saved with them finds what has moved
ABOVE = (
    *SHIMS,
    "api",  # what `import clapcur` offers
    "testing",  # makes small artifacts for the tests of any folder
)  # modules above all folders


BASE = tuple(sorted({path.stem for path in (ROOT / "clapcur").glob("[!_]*.py")} - {*ABOVE}))  # below every folder


LAYERS = ("base", *FOLDERS)


def layer_of(name: str) -> str | None:
    """Return the layer of a module, or of a name in it; None for what has no place in the list."""
    parts = name.split(".")
    if name == "clapcur.__version__" or (parts[1:] and parts[1] in BASE):
        return "base"
    if parts[1:] and parts[1] in ABOVE:
        return LAYERS[-1]
    return parts[1] if parts[1:] and parts[1] in FOLDERS else None
