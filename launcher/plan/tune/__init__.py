"""The search for the sizes that make a job fastest: candidates, their memory and their time."""
