"""Settings of every test here."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are tiny: a second thread would only wait for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
