"""Runs ablations: from a question on the command line to one record per measured case.

`python -m harness.run` is the door; below it there is no configuration object, only `Case` values and keyword
arguments. What a run leaves behind is read by `reports`, never the other way round.
"""

import os

os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi numbers cards; CUDA would by their speed
