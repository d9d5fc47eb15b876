"""nbval's kernels are forked, which saves each its imports."""

import pytest

from tools.kernels import forked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    with forked():
        return (yield)
