"""Scores of generated images against held-out real ones, and what they say about forgetting."""
