"""A whole volume streamed through a run's members: the job, its checks, its end."""
