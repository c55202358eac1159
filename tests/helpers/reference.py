"""Where the recorded run of the published code is, and the mark that skips a test without it."""

import os
import pathlib

import pytest

BESIDE = pathlib.Path(__file__).parents[3] / "shared" / "reference" / "anyres_tiny"
REFERENCE = pathlib.Path(os.environ.get("UNITOKEN_REFERENCE") or BESIDE)
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "golden.npz").is_file(),
    reason="the recorded run is not here: set UNITOKEN_REFERENCE to its folder (anyres_tiny)",
)
