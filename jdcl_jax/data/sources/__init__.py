"""One file per place that images come from; each has a `read` that returns a `Dataset`."""
