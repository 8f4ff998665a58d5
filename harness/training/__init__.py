"""Training: published recipes as data, the optimizer they ask for, token labels, and the loop that runs them.

`recipe` imports no torch, so that a slip on a command line is answered at once.
"""
