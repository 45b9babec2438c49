import jaxtyping
import pytest


@pytest.fixture(scope="session")
def skn():
    """The package, imported once the shape checker is on."""
    import tl_skillneurons

    return tl_skillneurons


@pytest.fixture(scope="session")
def tiny_task():
    from tiny import task

    return task()


@pytest.fixture
def unchecked(monkeypatch):
    """Types are not checked at run time, as users have it: what is refused then is refused by the package itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


LONGEST = ("test_real.py", "test_types.py", "test_processes.py", "test_readme.py")
"""Few tests that take long: begun first, so that no process ends up waiting for them."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
