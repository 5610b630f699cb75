import numpy as np
import torch

from datamodules.sites.numbering import content_keys, number_rows, rows_by_number


def test_rows_are_numbered_as_numpy_does():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(-3, 3, 500), rng.integers(0, 4, 500) - 2.5, rng.choice([-0.0, 0.0, 1.0], 500)])
    expected = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    assert np.array_equal(number_rows(*rows.T), expected)
    assert number_rows(np.zeros(0), np.zeros(0)).shape == (0,)


def test_rows_of_a_number_are_those_of_a_search():
    for number in (np.array([3, 1, 3, 2, 1, 1]), np.array(["b", "a", "b"]), np.zeros(0, dtype=int)):
        found = rows_by_number(number)
        expected = [np.flatnonzero(number == each) for each in np.unique(number)]
        assert len(found) == len(expected)
        assert all(map(np.array_equal, found, expected))


def test_keys_are_equal_for_equal_content_alone():
    generator = torch.Generator().manual_seed(0)
    gain, level = torch.randn(70_000, 3, 2, generator=generator), torch.randn(70_000, 4, generator=generator).half()
    gain[69_999], level[69_999] = gain[1], level[1]  # in another part
    gain[2], level[2] = gain[3], level[3]
    level[3, 0] = 0.0
    level[2, 0] = -0.0
    gain[4:6] = 1.0  # differ in the last bits of one value
    level[4:6] = 1.0
    gain[5, 2, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    keys = content_keys([gain, level])
    assert keys[69_999] == keys[1]
    assert len(np.unique(keys)) == 69_999
    swapped = content_keys([gain[:, [1, 0, 2]], level])
    assert not np.isin(swapped[:4], keys).any()
    assert np.array_equal(content_keys([gain[:10], level[:10]]), keys[:10])
