"""The training loop: what it lowers, what a checkpoint keeps, what it refuses."""

import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from tiny_network import same_weights
from torch import nn

from nnad.errors import InputError, TrainingError
from nnad.training import digest, train

torch.set_num_threads(1)
X = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))
Y = X @ torch.arange(6.0) / 10 + 1


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1)
        )


def run(path=None, *, stop=None, optimizer=torch.optim.Adam, model=None, pause=0.0, **changes):
    """Train; `stop` raises KeyboardInterrupt in that call of the loss, as Ctrl-C would."""
    model = model or network()
    calls = [0]

    def loss(rows):
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        time.sleep(pause)
        return ((model(X[rows])[:, 0] - Y[rows]) ** 2).mean()

    arguments = {"epochs": 4, "batch_size": 5, "seed": 3, "save_seconds": 0} | changes
    told = {key: arguments.pop(key) for key in ("lr", "betas") if key in arguments}
    made = optimizer(model.parameters(), **{"lr": 0.01, **told})
    losses = train(model, made, loss, 23, checkpoint=path, **arguments)
    return model, losses


def sgd(weights, lr):
    return torch.optim.SGD(weights, lr=lr, momentum=0.9)


def test_losses_fall_and_every_weight_moves():
    model, losses = run(epochs=30)
    assert losses.shape == (30 * 5,)
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    before = dict(network().named_parameters())
    assert all(not torch.equal(w, before[name]) for name, w in model.named_parameters())
    assert not model.training


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, sgd])
@pytest.mark.parametrize("stop", [1, 3, 5, 6, 17])
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path, stop, optimizer):
    whole, losses = run(optimizer=optimizer)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(path, stop=stop, optimizer=optimizer)
    model, again = run(path, optimizer=optimizer)
    assert same_weights(model, whole)
    np.testing.assert_array_equal(again, losses)


def test_a_killed_process_ends_in_the_same_weights(tmp_path):
    path = tmp_path / "run.safetensors"
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import test_training as t; t.run(pathlib.Path({str(path)!r}), pause=0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.12)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(load_file(path)["losses"]) < 20
    assert same_weights(run(path)[0], run()[0])


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "run.safetensors"
    whole, losses = run(path)
    model, again = run(path, stop=1)
    assert same_weights(model, whole)
    np.testing.assert_array_equal(again, losses)


def test_seeds():
    assert same_weights(run()[0], run()[0])
    assert not same_weights(run()[0], run(seed=4)[0])


def test_the_callers_random_numbers_go_on_as_they_were():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [4, 11, 22, 23, 50])
def test_every_item_once_an_epoch_and_never_one_alone(size):
    seen, epochs, model = [], [], network()

    def loss(rows):
        seen.append(rows.tolist())
        return model(X[rows]).mean()

    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, loss, 23, epochs=2, batch_size=size, on_epoch=epochs.append)
    assert epochs == [0, 1]
    half = len(seen) // 2
    for epoch in (seen[:half], seen[half:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(23))
        assert min(map(len, epoch)) > 1
    assert seen[:half] != seen[half:]


def test_a_rate_set_at_each_epoch_survives_a_resume(tmp_path):
    def trained(path=None, stop=None):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)

        def on_epoch(epoch):
            model.train()
            optimizer.param_groups[0]["lr"] = 0.01 * 0.1**epoch

        return run(
            path, stop=stop, model=model, optimizer=lambda *_, **__: optimizer, on_epoch=on_epoch
        )[0]

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(path, stop=8)
    assert same_weights(trained(path), trained())


def test_the_gradient_is_clipped():
    model = nn.Linear(6, 1)
    before = torch.cat([w.detach().flatten() for w in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train(
        model,
        optimizer,
        lambda rows: (1000 * model(X[rows])).mean(),
        23,
        epochs=1,
        batch_size=23,
        clip_norm=1e-3,
    )
    after = torch.cat([w.detach().flatten() for w in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 4}, "training.seed is 3, here 4"),
        ({"epochs": 5}, "training.epochs is 4, here 5"),
        ({"batch_size": 6}, "training.batch_size is 5, here 6"),
        ({"clip_norm": 0.5}, "training.clip_norm is null, here 0.5"),
        ({"optimizer": sgd}, 'training.optimizer is "Adam", here "SGD"'),
        ({"lr": 0.02}, "training.groups.0.lr is 0.01, here 0.02"),
        ({"betas": (0.9, 0.99)}, "training.groups.0.betas.1 is 0.999, here 0.99"),
        ({"run": {"data": digest(X.numpy() + 1)}}, "run.data is"),
        ({"run": {"data": digest(X.numpy()), "seed": 3}}, "run.seed is null, here 3"),
        ({"model": nn.Linear(6, 1)}, "training.network is"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, told):
    path = tmp_path / "run.safetensors"
    mine = {"run": {"data": digest(X.numpy())}}
    run(path, **mine)
    content = path.read_bytes()
    told = re.escape(f"another run: its {told}")
    with pytest.raises(TrainingError, match=rf"run\.safetensors: .* {told}"):
        run(path, **(mine | change))
    assert path.read_bytes() == content


@pytest.mark.parametrize("cut", [0, 5, 500])
def test_a_damaged_checkpoint_is_refused(tmp_path, cut):
    path = tmp_path / "run.safetensors"
    run(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        TrainingError, match=r"run\.safetensors: not a checkpoint, or a damaged one"
    ):
        run(path)


def test_a_second_run_of_the_same_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    with (
        FileLock(tmp_path / ".run.safetensors.lock"),
        pytest.raises(TrainingError, match="another run is writing it; wait for its end"),
    ):
        run(path)
    run(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TrainingError, match="the loss is inf in step 1 of epoch 1"):
        train(
            model,
            optimizer,
            lambda rows: model(X[rows]).square().sum() * torch.inf,
            23,
            epochs=1,
            batch_size=4,
        )


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": "2"}, {"batch_size": 0}, {"clip_norm": -1.0}]
)
def test_wrong_arguments(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        run(**wrong)


def test_a_digest_tells_shapes_and_types_apart():
    a = np.zeros((2, 6), np.uint8)
    assert len({digest(a), digest(a.reshape(3, 4)), digest(a.astype(np.int8)), digest(a, a)}) == 4
