import numpy as np
import pytest

from rnp_deploy.dtypes import storage_dtype


@pytest.mark.parametrize(
    ("name", "stored"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", np.uint16), ("int64", np.int64)],
)
def test_each_type_has_a_place_in_numpy(name: str, stored: type) -> None:
    assert storage_dtype(name) == np.dtype(stored)
