"""TFDS builders of data sets that TFDS's own catalogue lacks; imported by who prepares them, and by nothing else."""
