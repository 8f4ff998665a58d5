"""How near a model comes to what its machine can do: derived from measurements, never stored as one.

The ceiling is the rate of a large matrix product in the same dtype, measured in the same process as the model.
"""

from reports.table import Row


def achieved(row: Row) -> float | None:
    """Multiply-adds per second of a row's forward pass: its count times its batch over its latency."""
    macs, milliseconds = row.value("macs"), row.value("latency")
    if macs is None or milliseconds is None or row.record is None:
        return None
    return macs * int(row.record.case.get("batch_size") or 1) / (milliseconds / 1e3)


def share(row: Row) -> float | None:
    """Of the ceiling, from 0 to about 1; None where the two were not measured on one machine."""
    rate, ceiling = achieved(row), row.value("matmul_ceiling")
    if rate is None or not ceiling:
        return None
    machines = [row.measurement(name).details.get("machine") for name in ("latency", "matmul_ceiling")]
    return rate / ceiling if machines[0] == machines[1] else None
