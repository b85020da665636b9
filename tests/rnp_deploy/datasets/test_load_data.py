"""Data sets by name."""

import sys

import pytest

from rnp_deploy import datasets
from rnp_deploy.datasets import load_data
from rnp_deploy.errors import InputError, MissingRuntimeError

KNOWN = "known: digits, cifar10:DIR, cifar100:DIR, folder:DIR"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("letters", f"'letters'; {KNOWN}"),
        ("", KNOWN),
        ("digits:there", KNOWN),
        ("CIFAR10:there", KNOWN),
        ("cifar10", "pass cifar10:DIR"),
        ("cifar100:", "pass cifar100:DIR"),
        ("folder", "pass folder:DIR"),
        ("folder:/nowhere", "/nowhere is not a folder"),
        ("cifar10:/nowhere", "/nowhere/batches.meta cannot be read: No such file"),
    ],
)
def test_names_that_lead_to_no_data_are_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        load_data(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean": (0.5, 0.5)}, "need 1 values for colour L"),
        ({"colour": "RGB", "std": (0.5,)}, "need 3 values for colour RGB"),
        ({"std": (0.0,)}, "greater than 0"),
        ({"size": (0, 4)}, "greater than or equal to 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, words) -> None:
    with pytest.raises(InputError, match=words):
        load_data("digits", **arguments)


@pytest.mark.parametrize("module", ["sklearn", "PIL"])
def test_a_missing_package_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRuntimeError, match=r"pip install rnp-deploy\[train\]"):
        load_data("digits")


def test_public_names_exist_and_are_sorted() -> None:
    assert sorted(datasets.__all__) == datasets.__all__
    assert all(hasattr(datasets, name) for name in datasets.__all__)
