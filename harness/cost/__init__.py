"""What a model costs: built, counted, timed in processes of its own."""
