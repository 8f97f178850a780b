"""The README promises only what is there."""

import re
from pathlib import Path

from sigma_jax.configs.common import PRESETS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_commands_and_configs_exist():
    commands = set(re.findall(r"python -m sigma_jax\.(\w+)", TEXT))
    assert {"train", "prepare", "evaluate", "recommend", "export", "catalogue"} <= commands
    assert all((ROOT / "sigma_jax" / f"{name}.py").exists() for name in commands)
    assert all((ROOT / path).exists() for path in re.findall(r"configs/\w+\.py", TEXT))


def test_every_preset_is_explained():
    assert all(f"`{preset}`" in TEXT for preset in PRESETS)


def test_ci_runs_the_two_commands():
    """CI runs the first command from a wheel, in an empty folder, with a preset of a minute."""
    script = (ROOT / ".ci" / "run").read_text()
    blocks = re.findall(r"```bash\n(pip install .*)\n```", TEXT)
    assert blocks[0].split(" && ")[1] in script and '[demo]"' in script
    assert all(command in script for command in blocks[1].split(" && "))
