"""What happens to a job: its directory, its submission, its progress and its end."""
