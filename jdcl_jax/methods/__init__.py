"""Continual-learning methods, a file each. A method is a sequence of phases per task; the loop knows nothing else."""
