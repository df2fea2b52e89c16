"""Rounds of active learning: who trains, who asks, who answers, and what it came to."""
