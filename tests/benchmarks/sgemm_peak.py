"""One float32 matrix product 2048 x 2048 x 2048 in NumPy, timed on request (protocol.py): what these cores can do.

    env -u OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS=2 python tests/benchmarks/sgemm_peak.py --threads 2 --steps 5

OPENBLAS_CORETYPE, where set, may hold OpenBLAS to an older instruction set: the driver starts this process without it.
"""

from __future__ import annotations

import numpy as np
import protocol

SIZE = 2048

args = protocol.arguments(__doc__)
a, b = (np.random.default_rng(seed).standard_normal((SIZE, SIZE), dtype=np.float32) for seed in (0, 1))
out = np.empty_like(a)
protocol.serve(lambda: np.matmul(a, b, out=out), args.steps, flops=2 * SIZE**3, versions={"numpy": np.__version__})
