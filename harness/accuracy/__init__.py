"""The accuracy half of a table: which trainings an ablation's rows need, done side by side, and gathered into records.

`budget` says how much may be spent on a row, `plan` turns rows and seeds into jobs, `pool` runs them on this machine's
devices, `cluster` hands them to a queue instead, and `sweep` puts the results into the records of the cases.
"""
