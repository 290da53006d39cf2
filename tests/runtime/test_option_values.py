"""Several values after one option are the same as the option before each value."""

import pytest

from uumamba.runtime.option_values import repeat_option

VALUED = ("--input", "--out", "--device")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("acdc --input a b c --out o", "acdc --input a --input b --input c --out o"),
        ("acdc --input a --input b --out o", "acdc --input a --input b --out o"),
        ("acdc --input a b --out o --input c d", "acdc --input a --input b --out o --input c --input d"),
        ("--input a b --out o acdc", "--input a --input b --out o acdc"),
        ("--out o acdc --input a b", "--out o acdc --input a --input b"),
        ("--input a acdc --out o", "--input a acdc --out o"),
        ("--out o --input a b acdc", "--out o --input a --input b acdc"),
        ("--input a b --no-mirror acdc", "--input a --input b --no-mirror acdc"),
        ("--input a b --device cpu", "--input a b --device cpu"),
        ("--input=a acdc", "--input=a acdc"),
        ("acdc --input a b -- x", "acdc --input a --input b -- x"),
        ("--input -a b --device=cpu acdc", "--input -a --input b --device=cpu acdc"),
        ("acdc --input", "acdc --input"),
        ("acdc --out", "acdc --out"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_values_after_an_option_are_spread_without_the_model(given: str, expected: str) -> None:
    """The last value is the model if that is nowhere else."""
    assert repeat_option(given.split(), "--input", valued=VALUED) == expected.split()
