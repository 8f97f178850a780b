"""How a run runs: config, artifacts, mesh, state, optimizer, checkpoints, metrics."""
