"""Comparisons with implementations of others, which are optional. Nothing of the project imports these."""
