"""What a run's log says."""
