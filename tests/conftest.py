"""Settings for every test: how many examples hypothesis draws, how many threads torch takes, what needs a GPU."""

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from records import provenance

# A first call may compile or import for seconds, so no example has a deadline; the examples are the same in every run.
COMMON = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile("few", max_examples=15, **COMMON)
settings.register_profile("many", max_examples=200, **(COMMON | dict(derandomize=False, phases=tuple(Phase))))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none here"))


@pytest.fixture(autouse=True)
def _one_thread():
    """What a run takes where it is told nothing: the same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "default_threads", lambda: 1)
        yield
