"""Programs compiled for TPUs that are not there: memory, and an estimate of the time."""
