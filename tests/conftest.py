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
