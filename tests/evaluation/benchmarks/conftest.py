import pytest

from tests.evaluation.benchmarks.stand_ins import write_data


@pytest.fixture(scope="session")
def data(golden, tmp_path_factory):
    """Folder of the benchmarks' data, with recordings."""
    return write_data(golden, tmp_path_factory.mktemp("benchmarks") / "data")
