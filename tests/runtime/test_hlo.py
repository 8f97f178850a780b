"""Costs of a compiled program: loops and kernels count, and so do the bytes between chips."""

from pathlib import Path

import pytest

from sigma_jax.runtime.preflight.hlo import Kernel, kernel_seconds, read_program

TEXT = (Path(__file__).parents[1] / "golden" / "program.hlo").read_text()


def test_loops_count_as_often_as_they_run():
    program = read_program(TEXT)
    assert program.cycles == {"layer/dot": 28 * 150, "copied": 6, "end": 7}
    assert program.product_cycles == 28 * 50  # of the fusion that holds the product


def test_a_loop_that_depends_on_the_data_counts_loop_trips():
    text = TEXT.replace("constant(28)", "get-tuple-element(%state), index=1")
    assert text != TEXT
    assert read_program(text).cycles["layer/dot"] == 150
    assert read_program(text, 5).cycles == {"layer/dot": 5 * 150, "copied": 6, "end": 7}


def test_kernels_count_with_the_costs_that_they_declare():
    [[kernel]] = read_program(TEXT).kernels.values()
    assert kernel == Kernel(28 * 4000, 28 * 2048, 28 * 10)
    # The products take 28 s; each 1,024 scores add 8 cycles, at 100 cycles a second.
    assert kernel_seconds(kernel, 4000, 1000, 100) == pytest.approx(28 + 28 * 2 * 8 / 100)
    assert kernel_seconds(kernel, 4000, 1, 100) == pytest.approx(280 + 28 * 2 * 8 / 100)


def test_bytes_between_chips_count_once_and_tell_what_is_waited_for():
    program = read_program(TEXT)
    gathered = 64 * 128 * 2
    assert program.collectives == {"all-gather": 28 * gathered + gathered, "all-reduce": 80}
    assert program.waited_for == {"all-reduce": 80}


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="not that of a compiled program"):
        read_program("nothing")
