"""Tables and plots made from files alone: records written by the harness beside the numbers that papers printed.

`python -m reports.build outputs/pyramid_scales` reads the manifest and the records of one ablation, and the
published table that the manifest names, and writes `report.md`, `table.csv` and the figures next to them. Nothing
here imports torch or another room of the project.
"""
