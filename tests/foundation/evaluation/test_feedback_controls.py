"""Controls of the feedback head: on the very links that it is tested on, with as many numbers as its code."""

import pytest
from lightning.pytorch import Trainer

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from foundation.adaptation.finetune import FineTune
from foundation.baselines.feedback import PrincipalComponents, matching_pursuit
from foundation.models.csifeedback import nmse
from heads import Feedback
from heads.feedback import target_channel
from tests.datamodules.test_module import build
from tests.foundation.towers import TinyEncoder


@pytest.mark.parametrize(("code_size", "bs"), [(7, Array(1, 4)), (2, Array(1, 4)), (7, Array(2, 2))])
def test_a_test_of_feedback_tells_what_needs_no_network(code_size, bs, tmp_path):
    data = build(tmp_path / "sites", bs=bs, ofdm=OFDM(8))
    data.setup("test")
    head = {"patch": (4, 4), "width": 8, "layers": 1, "heads": 2, "code_size": code_size}
    model = FineTune(lambda n: Feedback(n, 4, 8, **head), TinyEncoder(), mode="scratch")
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    [found] = trainer.test(model, datamodule=data, verbose=False)
    side = data.sides["test"]
    target = target_channel(data.finish(side.__getitems__(list(range(len(side))))))
    learned = PrincipalComponents.fit(target_channel(data.sample()), code_size)
    level = {"pca": learned.rebuild(target)}
    if code_size >= 3 and bs.rows == 1:  # the paths of the pursuit are those of a linear array
        level["pursuit"] = matching_pursuit(target.mT, code_size // 3, 8).mT
    expected = {
        f"test/feedback/{name}_nmse_db": float(10 * nmse(v, target).mean().log10()) for name, v in level.items()
    }
    expected["test/feedback/chance_nmse_db"] = 3.0103
    controls = {key: value for key, value in found.items() if key.count("_") > 1 and key.endswith("nmse_db")}
    assert controls == pytest.approx(expected, abs=1e-3)
