"""Frame in, instances out: numpy and C, no torch."""
