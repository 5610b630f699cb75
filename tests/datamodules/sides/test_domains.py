import math
import zlib

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.sides.domains import AXES, UNKNOWN, Worlds, domain_labels, site_domains, speed_spans
from datamodules.sites.environment import Environment
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from tests.datamodules.rays import random_site


def recorded(**facts) -> Site:
    links = Recording.build(torch.ones(3, 1, 1, 2, dtype=torch.complex64), torch.zeros(3, 3), torch.tensor([1, 0, -1]))
    return Site("r", links, torch.zeros(3), 28e9, "r", "r", Environment.empty(links.position.numpy()), **facts)


def test_codes() -> None:
    turned = torch.tensor([1.0, math.radians(5), 0.0])
    sites = [
        random_site("a", 3, city="munich", bs_orientation=turned, domain={"scenario": "munich"}),
        random_site("b", 3, domain={"scenario": "uma", "mobility": "vehicular", "speed": [10.0, 20.0]}),
        recorded(domain={"scenario": "inh", "mobility": "static", "tilt": math.radians(15)}),
        recorded(bs_orientation=turned),
    ]
    table = site_domains(sites, Array(orientation=(0.0, math.radians(10), 0.0)))
    assert table.tolist() == [
        [zlib.crc32(b"munich"), UNKNOWN, UNKNOWN, 15, 3500],
        [1, UNKNOWN, 2, 10, 3500],
        # a recording keeps the tilt that it was made with, whatever the array of the datamodule
        [3, UNKNOWN, 0, 15, 28000],
        [zlib.crc32(b"r"), UNKNOWN, UNKNOWN, 5, 28000],
    ]
    assert len(AXES) == table.shape[1]
    spans = speed_spans(sites)
    assert spans[1].tolist() == [10, 20]
    assert spans[[0, 2, 3]].isnan().all()


@pytest.mark.parametrize("degrees", [-1, -90, 1])
def test_no_tilt_reads_as_unknown(degrees: int) -> None:
    table = site_domains([random_site("a", 3)], Array(orientation=(0.0, math.radians(degrees), 0.0)))
    assert table[0, AXES.index("tilt")] == degrees != UNKNOWN


def test_rows_of_several_links_have_the_labels_that_all_of_them_have() -> None:
    facts = [{"variant": "twin"}, {"variant": "twin"}, {"variant": "target"}]
    sites = [random_site(name, 3, i, domain=domain) for i, (name, domain) in enumerate(zip("abc", facts, strict=True))]
    rows = np.array([[0, 3], [0, 6], [4, 1]])
    los = torch.cat([site.paths.los for site in sites]).tolist()
    worlds = Worlds(sites, rows, Array())

    def labels(axis):
        codes, names = worlds.codes(axis)
        assert names == sorted(names), "by which the best of several lines of sight is found"
        return [names[code] for code in codes]

    assert labels("variant") == ["twin", "", "twin"]
    assert labels("frequency") == ["3500"] * 3
    assert labels("los") == [str(best) if (best := max(los[i] for i in row)) >= 0 else "" for row in rows]


def test_labels_of_links() -> None:
    table = torch.tensor([[0, UNKNOWN, 2, 0, 3500], [3, UNKNOWN, UNKNOWN, 15, 28000]])
    site, los = torch.tensor([1, 0, 1]), torch.tensor([1, 0, -1], dtype=torch.int8)
    assert domain_labels(table, site, los).tolist() == [
        [3, 1, UNKNOWN, 15, 28000],
        [0, 0, 2, 0, 3500],
        [3, UNKNOWN, UNKNOWN, 15, 28000],
    ]
    assert domain_labels(table, site, los, torch.tensor([0, 1, 2]))[:, 2].tolist() == [0, 1, 2]
    assert table[:, 1].tolist() == [UNKNOWN, UNKNOWN]
