import numpy as np
import pytest
import torch

from datamodules.channel.codebook import cosine, noise_power, precoder, rate


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed)) * 1e-5


@pytest.mark.parametrize("receive", [1, 2])
def test_rate_of_a_precoder_equals_numpys(receive):
    csi, known = draw(3, receive, 4, 5), draw(3, receive, 4, 5, seed=1)
    noise = noise_power(csi, 7.0)
    ours = rate(csi, precoder(known), noise)
    for b in range(3):
        h, w = csi[b].numpy(), known[b].numpy()
        variance = (np.abs(h) ** 2).mean() / 10**0.7
        assert noise[b].item() == pytest.approx(variance, rel=1e-5)
        rates = []
        for k in range(5):
            f = np.linalg.svd(w[:, :, k])[2][0].conj()
            rates.append(np.log2(1 + np.linalg.norm(h[:, :, k] @ f) ** 2 / variance))
        assert ours[b].item() == pytest.approx(np.mean(rates), rel=1e-4)


@pytest.mark.parametrize("receive", [1, 2])
def test_no_precoder_beats_that_of_the_channel_itself(receive):
    csi = draw(50, receive, 4, 3)
    noise = noise_power(csi, 10.0)
    best = rate(csi, precoder(csi), noise)
    assert (rate(csi, precoder(draw(50, receive, 4, 3, seed=1)), noise) < best).all()
    if receive == 1:  # all power arrives: SNR times T
        power = csi.abs().square().sum((1, 2))
        assert torch.allclose(best, (1 + power / noise[:, None]).log2().mean(1), rtol=1e-5)


def test_cosine_equals_numpys_and_ignores_scale_and_phase():
    csi, known = draw(3, 1, 4, 1), draw(3, 1, 4, 1, seed=1)
    h, w = csi.numpy().reshape(3, 4), known.numpy().reshape(3, 4)
    expected = [abs(np.vdot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(h, w, strict=True)]
    assert cosine(csi, known).tolist() == pytest.approx(expected, rel=1e-5)
    assert cosine(csi, 7j * csi).tolist() == pytest.approx([1] * 3)
    wide = torch.cat([csi, known], dim=3)
    assert cosine(wide, wide * torch.tensor([1, 1j])).tolist() == pytest.approx([1] * 3), "a phase a subcarrier"
    assert cosine(csi, torch.zeros_like(csi)).tolist() == [0] * 3
    csi, known = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1)
    for b, (h, w) in enumerate(zip(csi.numpy(), known.numpy(), strict=True)):
        each = [abs(np.vdot(h[r, :, k], w[r, :, k])) / np.linalg.norm(h[r, :, k]) / np.linalg.norm(w[r, :, k])
                for r in range(2) for k in range(5)]  # fmt: skip
        assert cosine(csi, known)[b].item() == pytest.approx(np.mean(each), rel=1e-5)
