"""Fixtures of every test."""

import zlib

import pytest
import torch


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own: the same in every run, another in every test and parameter."""
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture
def rng(seed: int) -> torch.Generator:
    """A generator on the CPU, seeded from the test's name."""
    return torch.Generator().manual_seed(seed)
