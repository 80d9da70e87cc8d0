"""The old name of `clapcur.tracking.serving`: models that were registered before it moved are loaded by this one."""

from clapcur.tracking.serving import _load_pyfunc as _load_pyfunc
