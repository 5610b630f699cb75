from contextlib import suppress

import pytest

from datamodules.errors import InputError
from datamodules.sources.llvm import use_llvm
from tests.data.deepmimo.data import write_scenario

# Some tests import Sionna on their own: whichever comes first in a process, its LLVM must be ours.
with suppress(InputError):
    use_llvm()


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
