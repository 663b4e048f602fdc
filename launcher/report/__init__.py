"""The report of a run: how fast it was, by its log."""
