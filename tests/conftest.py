import pytest

from tests.data.deepmimo.data import write_scenario


@pytest.fixture(scope="session")
def street(tmp_path_factory):
    """A DeepMIMO scenario of a street, made by the image method in a blink: the data of whole-program tests."""
    root = tmp_path_factory.mktemp("deepmimo")
    write_scenario(root, "street", num_users=160, seed=0)
    return root


@pytest.fixture
def street_data(street, tmp_path):
    """Arguments that put the street in the place of an experiment's data."""
    source = f"{{class_path: DeepMIMO, init_args: {{scenario: street, root: {street}, cache: {tmp_path / 'sites'}}}}}"
    return ["--data.source", source, "--data.batch_size", "16", "--data.block", "5.0"]
