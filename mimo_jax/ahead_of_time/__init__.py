"""What a step will need and how long it may take on machines that are not there."""
