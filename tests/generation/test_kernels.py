"""The Triton kernels beside the plain functions that they replace, by Triton's interpreter: no GPU is needed for it."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

COMPARED = """
import torch
from service.generation import blocks, kernels

torch.manual_seed(0)


def apart(found, wanted):
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


for dtype, most in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
    for batch, heads, kv_heads, positions, held in ((1, 8, 2, 10, 53), (2, 4, 4, 1, 17), (3, 8, 2, 19, 300)):
        q = torch.randn(batch, heads, positions, 32).to(dtype)
        keys, values = torch.randn(2, 2, batch, kv_heads, held, 32).to(dtype)[:, 1]
        seen = torch.rand(batch, positions, held) < 0.5
        seen[..., 0] = True
        for own in (seen, seen[:1], seen[:, :1]):
            found = kernels.attend(q, keys, values, own, 0.2)
            assert apart(found, blocks.attend(q, keys, values, own, 0.2)) < most
        found = kernels._attended(q, keys, values, None, 0.2)
        assert apart(found, blocks.attend_causally(q, keys, values, 0.2)) < most

        total = heads + 2 * kv_heads
        projected = torch.randn(batch * positions, total * 32).to(dtype)
        angle = torch.randn(batch, positions, 16)
        written = torch.zeros(2, 2, batch, kv_heads, held, 32, dtype=dtype)
        queries = []
        for way, cache in zip((blocks.remember, kernels.remember), written, strict=True):
            new = (part[:, :, 3 : 3 + positions] for part in cache)
            queries.append(way(projected, angle.cos(), angle.sin(), *new))
        assert apart(*queries) < most
        assert apart(*written) < most
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: torch's builds for GPUs bring it")
def test_they_compute_what_the_plain_functions_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPARED],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert not done.returncode, done.stderr[-3000:]
