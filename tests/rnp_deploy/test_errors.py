"""The error tree is as drawn."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from rnp_deploy import errors
from rnp_deploy.errors import RnpError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}


def drawn_tree() -> dict[str, str | None]:
    """Class → the class it is drawn under."""
    tree: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"[ │├└─]*([A-Z]\w*Error)\b", line)
        if found:
            indent = found.start(1)
            path = [(at, name) for at, name in path if at < indent]
            tree[found[1]] = path[-1][1] if path else None
            path.append((indent, found[1]))
    return tree


def test_every_class_is_public_and_the_list_is_sorted():
    assert list(errors.__all__) == sorted(CLASSES)


def test_the_docstring_draws_every_class_under_its_base():
    assert drawn_tree() == {
        name: next((base.__name__ for base in error.__bases__ if base.__name__ in CLASSES), None)
        for name, error in CLASSES.items()
    }


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_can_be_caught_by_the_root_and_says_what_it_is(name):
    assert issubclass(CLASSES[name], RnpError)
    assert CLASSES[name].__doc__
    assert str(CLASSES[name]("message")) == "message"


def test_wrong_values_are_value_errors_too():
    assert [name for name, error in CLASSES.items() if issubclass(error, ValueError)] == ["InputError"]


@pytest.mark.parametrize("name", CLASSES)
def test_a_code_is_the_classs_or_the_errors_own_and_survives_pickling(name):
    usual, special = CLASSES[name]("message"), CLASSES[name]("message", code="link")
    assert re.fullmatch("[a-z]+(-[a-z]+)*", usual.code)
    assert usual.code == CLASSES[name].code
    for error in (usual, special):
        again = pickle.loads(pickle.dumps(error))  # as it comes back from another process
        assert (type(again), str(again), again.code) == (type(error), "message", error.code)
    assert special.code == "link"


def test_classes_of_their_own_have_codes_of_their_own():
    assert len({error.code for error in CLASSES.values()}) == len(CLASSES)
