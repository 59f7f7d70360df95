"""MHRot: its three heads, its first step and its falling rate."""

import numpy as np
import pytest
import torch
from tiny_baselines import GOOD, TEST, check_step, fitted_once, steps, weights_at_first

from nnad.baselines import make_baseline
from nnad.baselines.geometric import FAMILY_36, Transform, apply
from nnad.baselines.mhrot import MHRot
from nnad.errors import InputError

pytestmark = pytest.mark.usefixtures("few_steps")


def test_mhrots_score_is_minus_the_sum_of_true_probabilities():
    baseline = fitted_once("mhrot")
    inputs = baseline._inputs(TEST)
    expected = np.zeros(len(TEST))
    with torch.no_grad():
        for across, down, turn in ((a, d, r) for a in range(3) for d in range(3) for r in range(4)):
            made = apply(
                inputs,
                Transform(False, (0, -1, 1)[across], (0, -1, 1)[down], turn),
                4,
                repeat_edge=False,
            )
            outputs = baseline.network(made)
            for head, label in (
                (outputs[:, :3], across),
                (outputs[:, 3:6], down),
                (outputs[:, 6:], turn),
            ):
                expected -= head.softmax(dim=1)[:, label].numpy()
    scores = baseline.score(TEST)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (scores >= -108).all() and (scores <= 0).all()


def test_mhrots_labels_and_presets():
    assert MHRot().settings["network"] == "resnet18"
    assert MHRot("32px reconstruction").full_title == "MHRot (32px reconstruction)"
    assert MHRot("small").full_title == "MHRot (32px reconstruction, small)"


def test_the_first_step_of_mhrot_by_hand():
    """Half of the images mirrored; the mean of three heads; SGD with Nesterov momentum."""
    few = GOOD[:2]
    baseline = make_baseline("mhrot", "small", epochs=1, batch_size=72)
    (told,) = steps(baseline, few)
    assert told[0] == "SGD"
    expected = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "dampening": 0, "weight_decay": 5e-4}
    assert told[1].items() >= expected.items()
    network = weights_at_first(baseline).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows, mirrored = torch.randperm(72), torch.rand(72) < 0.5
    assert 20 < mirrored.sum() < 52
    place = {0: 0, -1: 1, 1: 2}
    made, labels = [], []
    for row, mirror in zip(rows.tolist(), mirrored.tolist(), strict=True):
        image, transform = baseline._inputs(few[row // 36][None]), FAMILY_36[row % 36]
        image = image.flip(3) if mirror else image
        made.append(apply(image, transform, 4, repeat_edge=False))
        labels.append((place[transform.across], place[transform.down], transform.turn))
    outputs = network(torch.cat(made))
    parts = [
        -outputs[:, start:end].log_softmax(dim=1)[range(72), [own[head] for own in labels]].mean()
        for head, (start, end) in enumerate([(0, 3), (3, 6), (6, 10)])
    ]
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    check_step(baseline, network, sum(parts) / 3, optimizer)


def test_mhrots_rate_falls_by_a_cosine():
    taken = steps(make_baseline("mhrot", "small", epochs=2, batch_size=36), GOOD[:2])
    expected = [0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.05 * (1 - 0.5**0.5)]
    assert [told["lr"] for _, told in taken] == pytest.approx(expected)


@pytest.mark.parametrize(("change", "told"), [({}, "depth=None"), ({"depth": 10}, "widen=None")])
def test_a_wide_network_needs_its_size(change, told):
    with pytest.raises(InputError, match=told):
        MHRot(network="wrn", **change).fit(GOOD)
