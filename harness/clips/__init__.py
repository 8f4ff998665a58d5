"""Clips of videos: which frames are taken, how they are decoded, and what is done to them before a model sees them."""
