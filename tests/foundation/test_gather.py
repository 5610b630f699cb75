import torch

from foundation.gather import gather_rows, interleaved
from foundation.runtime.figures import _LINKS, Sample


def test_one_process_has_all_rows():
    rows = {"a": torch.arange(3)}
    assert gather_rows(rows) is rows


def test_rows_come_in_the_order_of_the_links():
    links = torch.arange(11)
    for processes in (1, 2, 3, 12):
        shares = [{"a": links[rank::processes], "b": links[rank::processes] * 2} for rank in range(processes)]
        joined = interleaved(shares)
        assert torch.equal(joined["a"], links)
        assert torch.equal(joined["b"], links * 2)


def sampled(rows, batch=64):
    sample = Sample()
    for part in zip(*(value.split(batch) for value in rows.values()), strict=True):
        sample.add(dict(zip(rows, part, strict=True)))
    return sample


def test_pictures_are_of_all_links_of_a_small_side():
    rows = {"link": torch.arange(200), "los": torch.zeros(200, dtype=torch.int8)}
    found = sampled(rows).gathered()
    assert all(torch.equal(found[key], value) for key, value in rows.items())


def test_pictures_are_of_an_even_sample_of_a_large_side():
    found = sampled({"link": torch.arange(100_000)}, 1000).gathered()["link"]
    assert len(found) == _LINKS
    assert torch.equal(found, found.sort().values)
    share = torch.histc(found.float(), 20) / _LINKS
    assert (share - 0.05).abs().max() < 0.001, "spread over the side"
    assert (found % 2).float().mean().sub(0.5).abs() < 0.01, "a grid is not seen column by column"


def test_whole_channels_are_not_kept():
    row = torch.zeros(2**18, dtype=torch.complex64)  # 2 MiB
    sample, most = Sample(), 0
    for start in range(0, 1600, 16):
        sample.add({"link": torch.arange(start, start + 16), "csi": row.expand(16, -1)})
        most = max(most, sum(len(part["link"]) for part in sample._parts))
    found = sample.gathered()
    assert len(found["link"]) == 127
    assert most <= 2 * 127 + 16
    assert found["link"].max() > 1500, "the first links alone"
