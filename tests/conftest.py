"""One thread for every test: results do not depend on the machine, and small models are fastest so.

`pytest -m hypothesis --hypothesis-profile=nightly` tries the properties of statistics, policies and gradients with
10 000 examples each, new ones every time.
"""

import os
from contextlib import suppress

import torch

torch.set_num_threads(1)
os.unsetenv("COLUMNS")  # readline, which pytest imports, sets it for the processes that tests start

with suppress(ImportError):  # not everywhere where tests run
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "nightly",
        max_examples=10_000,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
