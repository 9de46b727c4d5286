"""An update is held against the weights that it changes."""

import numpy as np
import pytest

from service.adapters.lora import PEFT_PREFIX, Dimensions, check_update
from service.errors import ArtifactError


def test_a_weight_that_is_not_changed_bounds_nothing() -> None:
    dimensions = Dimensions({"layer.a": (2, 2), "layer.b": (2, 2)}, norms={"layer.a": 1.0, "layer.b": 1.0})
    pair = {f"{PEFT_PREFIX}layer.b.lora_{side}.weight": np.full((2, 2), 1e6, np.float32) for side in "AB"}
    check_update({}, 1.0, dimensions)
    with pytest.raises(ArtifactError, match=r"layer\.b"):
        check_update(pair, 1.0, dimensions)
