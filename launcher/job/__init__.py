"""What runs: one job from its settings to the text of its script."""
