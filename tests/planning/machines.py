"""A calibration of a machine that does not exist, whose numbers are known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hyena_ds.cost.devices import GIB, Cluster
from hyena_ds.planning.calibration import STEPS, Fit, calibration_case
from hyena_ds.planning.forecast import predict

FITS = (Fit(1, 2e10, 0.02, 0.4, 0.5), Fit(2, 1.5e10, 0.03, 0.45, 0.4))


def calibration(fits: tuple[Fit, ...] = FITS) -> dict[str, Any]:
    """Ceilings of 1, 2 and 4 ranks on two cores."""
    ceiling = {"gemm_float32": 8e10, "gemm_bfloat16": 2e11, "filter": 3e10, "copy": 2e10, "kernel": 2e-6}
    ceiling |= {"transforms": [[1024, 2e10], [65536, 1.6e10], [1 << 20, 1e10]]}
    links = {"1": {}, "2": {"exchange": 1.2e9, "latency": 2e-4}, "4": {"exchange": 4e8, "latency": 1e-3}}
    return {
        "format": 1,
        "date": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "torch": "2"},
        "width": 128,
        "ceilings": {count: ceiling | link for count, link in links.items()},
        "steps": [],
        "fits": [asdict(fit) for fit in fits],
    }


def steps_of(calibration: dict[str, Any], machine_device: Any) -> list[dict[str, Any]]:
    """What the steps of a calibration would measure on this machine."""
    steps = []
    for ranks in (1, 2):
        for length, policy in STEPS:
            case = calibration_case(length, ranks, policy)
            found = predict(case, Cluster(1, ranks, machine_device(calibration, ranks)))
            steps.append(
                {
                    **case.columns(),
                    "wall_seconds": {"median": found.time.seconds},
                    "peak_memory_gib": found.memory.total / GIB,
                }
            )
    return steps
