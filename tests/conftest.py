"""The same surroundings for every test: no network for the hub, no windows, few threads."""

from __future__ import annotations

import os

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
os.environ.setdefault("OMP_NUM_THREADS", "2")  # read when torch is imported, here and in the processes that tests start
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # on a busy machine, threads that spin while they wait stand in the way
