"""What torch says of itself and of the card, for records."""

from __future__ import annotations

from typing import Any

import torch


def of_torch(device: str) -> dict[str, Any]:
    """What the measuring process itself sees: versions, precision flags and, on CUDA, the card."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        facts |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "l2_bytes": properties.L2_cache_size,
        }
    else:
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    return facts
