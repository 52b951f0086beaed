"""Both backends run the same program; how far their results are apart."""

from __future__ import annotations

import numpy as np


def both(cpu, twin, rows, record):
    """Results of record(program) -> array on both backends, after one run of `rows`."""
    results = []
    for backend in (cpu, twin):
        program = backend.program(rows)
        result = record(program)
        program.run(rows)
        results.append(result[:rows].copy())
    return results


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()
