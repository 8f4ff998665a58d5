"""The count of fvcore itself, the tool of many papers: a third count beside the counter's and the closed form.

By its rule a multiply-add is one operation, an element of a LayerNorm five, one of a BatchNorm two, and all else none:
it equals `macs` + 5 `layernorm_elements` + 2 `batchnorm_elements`, classifier excluded, where nothing is wrong.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.cost.build import build, example
from harness.cost.metrics import register
from harness.cost.workload import Workload
from harness.packages import late
from records.record import Measurement, Quantity

FVCORE = Quantity("fvcore_macs", "counted", "operations as fvcore counts", "MAC", "lower")


@register("fvcore_macs", FVCORE, timed=True, process="fvcore_macs", once=True)
def fvcore_macs(workload: Workload) -> list[Measurement]:
    """Of one view on the CPU with the reference kernel, whose products fvcore sees.

    fvcore traces a model that runs on real tensors, so this takes the memory of explicit scores, in a process of its
    own: where they do not fit, that is the result.
    """
    case = replace(workload.case, num_classes=0, dtype="float32")
    model = build(case, device="cpu", kernel="reference")
    with torch.inference_mode():
        analysis = late("fvcore.nn").FlopCountAnalysis(model, example(case, batch_size=1, device="cpu"))
        total = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    return [FVCORE.of([int(total)], {"counter": "fvcore FlopCountAnalysis on the CPU, kernel reference"})]
