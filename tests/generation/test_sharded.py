"""Promises of rankers on several devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_eight_devices_recommend_the_same_items_as_one():
    """It covers prefixes on several devices, one prefix, features, and seen and inactive items."""
    folders = (ROOT, ROOT / "tests")
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    script = Path(__file__).with_name("sharded_items.py")
    run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
