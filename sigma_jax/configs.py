"""The config files as a package: `from sigma_jax.configs import sft`.

In the repository the files are in `configs/` beside `sigma_jax/`, and this module points there.
In a wheel the files are in `sigma_jax/configs/`. Python then imports that folder, not this module.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "configs")]
