"""Real images: from a name to uint8 arrays (`datasets`), from arrays to tasks (`tasks`)."""
