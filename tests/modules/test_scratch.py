"""Memory for a moment: shapes, reuse, and a block of its own for each thread and dtype."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from emmental.modules.scratch import scratch


def test_shape_and_dtype():
    tensor = scratch((3, 5), torch.float64)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, 5), torch.float64, True)


def test_the_same_memory_again_also_for_smaller_tensors():
    large = scratch((100, 10), torch.float32)
    assert scratch((7,), torch.float32).data_ptr() == large.data_ptr()
    assert scratch((100, 10), torch.float32).data_ptr() == large.data_ptr()


def test_dtypes_and_threads_do_not_share():
    here = scratch((10,), torch.float32).fill_(1.0)
    scratch((10,), torch.float64).fill_(2.0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: scratch((10,), torch.float32).fill_(3.0)).result()
    assert here.tolist() == [1.0] * 10


def test_what_inference_mode_made_serves_training_too():
    with ThreadPoolExecutor(1) as pool:

        def use() -> bool:
            with torch.inference_mode():
                scratch((4,), torch.float32)
            return scratch((4,), torch.float32).fill_(1.0).is_inference()

        assert pool.submit(use).result() is False
