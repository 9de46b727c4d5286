"""The test suite. Kernels this small only wait for one another's threads, so all of it computes on one."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when numpy and torch are imported, which is later
    os.environ.setdefault(_name, "1")
