"""Learning from pictures: the tasks of supervised and contrastive classification."""
