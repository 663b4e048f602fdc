"""Which sizes make a job fastest: candidates, what they need and how long they take."""
