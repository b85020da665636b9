import numpy as np
import pytest

from rnp_deploy.dtypes import as_float32, storage_dtype


@pytest.mark.parametrize(
    ("name", "stored"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", np.uint16), ("int64", np.int64)],
)
def test_each_type_has_a_place_in_numpy(name: str, stored: type) -> None:
    assert storage_dtype(name) == np.dtype(stored)


@pytest.mark.parametrize(
    "stored",
    [
        np.array([1.0, -2.5, np.inf], np.float32),
        np.array([1.0, -2.5, np.inf], np.float16),
        np.array([0x3F80, 0xC020, 0x7F80], np.uint16),  # bfloat16: the upper half of a float32
    ],
)
def test_the_numbers_of_each_type(stored: np.ndarray) -> None:
    numbers = as_float32(stored)
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [1.0, -2.5, np.inf]
