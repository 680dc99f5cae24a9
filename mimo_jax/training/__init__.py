"""State, optimiser, schedule, checkpoints, metrics and the loop that every stage shares."""
