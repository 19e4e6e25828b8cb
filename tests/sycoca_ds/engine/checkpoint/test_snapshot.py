"""What a snapshot holds is what was to be saved, however large."""

from __future__ import annotations

import os

import pytest
import torch

from sycoca_ds.engine.checkpoint.snapshot import WholeFile


@pytest.mark.slow
def test_a_tensor_above_what_the_system_writes_at_once_is_whole_and_so_is_what_follows() -> None:
    """Linux writes at most 0x7ffff000 bytes a call and says so by the number that it returns."""
    large = torch.zeros((1 << 31) + 4096, dtype=torch.uint8)
    large[-1], after = 7, torch.arange(5)
    file = WholeFile(os.memfd_create("large"), "r+b")
    torch.save({"large": large, "after": after}, file)
    assert file.tell() == os.fstat(file.fileno()).st_size > large.numel()
    del large
    found = torch.load(f"/proc/self/fd/{file.fileno()}", mmap=True)
    assert found["large"].numel() == (1 << 31) + 4096 and found["large"][-1] == 7 and not found["large"][:4096].any()
    assert found["after"].tolist() == [0, 1, 2, 3, 4]
