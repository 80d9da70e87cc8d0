"""Makes the flow runs of a test send signs of life more often than Prefect allows, so that no test takes minutes.

Only the pause between two signs is divided, by `CLAPCUR_TEST_HASTE`: whether a run sends any, and how often in real
life, is still what its settings say. A Python process loads a module of this name from PYTHONPATH when it starts; the
one in tests/offline is loaded too.
"""

import importlib.util
import os
import sys
from pathlib import Path

HASTE = "CLAPCUR_TEST_HASTE"

_offline = importlib.util.spec_from_file_location(
    "clapcur_offline_guard", Path(__file__).resolve().parents[1] / "offline" / "sitecustomize.py"
)
assert _offline is not None and _offline.loader is not None
_offline.loader.exec_module(importlib.util.module_from_spec(_offline))


def hasten(times: int) -> None:
    """Divide the pause between two signs of life."""
    from prefect import flow_engine

    of_settings = flow_engine.BaseFlowRunEngine.heartbeat_seconds.fget
    assert of_settings is not None and flow_engine.MINIMUM_HEARTBEAT_INTERVAL == 30

    def hastened(engine: "flow_engine.BaseFlowRunEngine") -> int | None:  # type: ignore[type-arg]
        seconds = of_settings(engine)
        return None if seconds is None else seconds // times

    flow_engine.MINIMUM_HEARTBEAT_INTERVAL = 30 // times
    flow_engine.BaseFlowRunEngine.heartbeat_seconds = property(hastened)  # type: ignore[assignment,method-assign]


if "prefect.engine" in sys.orig_argv:  # the process of a flow run; a server would only start later
    hasten(int(os.environ[HASTE]))
