"""The old name of `clapcur.tracking.serving`, which models registered before the move still load."""

from clapcur.tracking.serving import _load_pyfunc as _load_pyfunc
