"""A refresh: new rows become part of a trained workdir without training from the start."""
