"""One readable file a question."""
