"""What an engineer does around runs: list them, look after them, get to know a cluster."""
