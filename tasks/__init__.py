"""One Prefect task per stage: open the artifacts, make one call into clapcur, return the artifact.

Tasks contain no science. Prefect's cache is off: the store decides what is reused (`clapcur.store.runner.run`).
"""
