"""The machinery of a run: config, artifacts, mesh, state, optimizer, checkpoints, metrics."""
