"""Promises of rankers on several devices."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

pytestmark = pytest.mark.slow


def test_eight_devices_recommend_the_same_items_as_one():
    """It covers prefixes on several devices, one prefix, features, and seen and inactive items."""
    script = Path(__file__).with_name("sharded_items.py")
    run = subprocess.run(
        [sys.executable, script], env=environment(8), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
