"""One Prefect task per stage: open the artifacts, make one call into clapcur, return the artifact.

No science here. Prefect's own cache is off: the store decides what is done (`clapcur.store.runner.run`).
"""
