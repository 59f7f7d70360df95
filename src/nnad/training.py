"""Train a torch network so that a killed run goes on where it was.

It ends in the same weights bit for bit on the CPU of one machine, with the same torch and number of
threads. On a GPU it does not: torch's sums there have no fixed order. A checkpoint also goes on
on another device or torch, rounded otherwise; from a CPU to a GPU with other random numbers.

A checkpoint is one safetensors file, replaced whole: the network's weights and buffers, the
optimizer's state, the state of the random numbers, the order of the epoch under way and the losses
so far; beside them, as JSON, whose run it is and how far it has come.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from nnad.backbones import check_device
from nnad.errors import BackboneError, TrainingError, first_line
from nnad.files import replacing
from nnad.operators.arguments import check_amount, check_count
from nnad.progress import track

_MODEL, _OPTIMIZER = "model/", "optimizer/"


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor], Tensor],
    items: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    on_epoch: Callable[[int], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    clip_norm: float | None = None,
    checkpoint: Path | None = None,
    run: Mapping[str, Any] | None = None,
    save_seconds: float = 60.0,
    label: str = "training",
    progress: bool = True,
) -> NDArray[np.float64]:
    """Lower the mean of `loss` over `items`, in a new random order each epoch.

    The random numbers are torch's, seeded here; the caller's go on as they were. The model ends in
    eval mode. Nothing is done if the checkpoint is that of the finished run.

    Args:
        model: the network; its weights and buffers are what a checkpoint keeps.
        optimizer: of the model's weights that are to be trained.
        loss: item numbers (B,) int64, on the CPU -> a scalar with a gradient.
        items: how many there are.
        epochs: passes over all items.
        batch_size: items a step. A last one alone joins the batch before it: batch norm needs two.
        seed: of the order, and of all that `loss` draws from torch.
        on_epoch: called with the epoch's number, from 0, before its first step and again when it is
            resumed: sets what belongs to it, such as train or eval mode and the learning rate.
            By default all modules are set to train mode.
        on_step: called before each step with its number, from 0, and the number of all steps: for a
            learning rate that changes with every step.
        clip_norm: largest norm of the gradient of all trained weights together; None: any.
        checkpoint: the file to resume from if it is there, and to write.
        run: what else makes this run this one, as JSON: settings, `digest` of the data.
        save_seconds: least time between two checkpoints; the last is written in any case.
        label, progress: the bar on a terminal.

    Returns:
        The loss (S,) of each step since the start of the run.

    Raises:
        InputError: an argument is out of range.
        TrainingError: a loss is not finite; or the checkpoint cannot be read, is another run's, or
            is being written by one.
    """
    for name, count in (("items", items), ("epochs", epochs), ("batch_size", batch_size)):
        check_count(name, count)
    if clip_norm is not None:
        check_amount("clip_norm", clip_norm)
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    device = weights[0].device
    numbers = {"items": items, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    told = _identity(model, optimizer, run or {}, {**numbers, "clip_norm": clip_norm})
    steps = len(_batches(torch.arange(items), batch_size))
    order = torch.empty(0, dtype=torch.int64)
    losses: list[float] = []

    with (
        _alone(checkpoint),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        if checkpoint is not None and checkpoint.exists():
            state = _read(checkpoint, told)
            order, losses = _restore(model, optimizer, state, device)
        saved = time.monotonic()
        left = range(len(losses), epochs * steps)
        batches: list[Tensor] = []
        for step in track(left, len(left), label, show=progress, unit="steps"):
            epoch, place = divmod(step, steps)
            if place == 0:
                order = torch.randperm(items)
            if place == 0 or not batches:
                batches = _batches(order, batch_size)
                model.train() if on_epoch is None else on_epoch(epoch)
            if on_step is not None:
                on_step(step, epochs * steps)
            value = loss(batches[place])
            if not torch.isfinite(value):
                raise TrainingError(
                    f"{label}: the loss is {value.item()} in step {step + 1} of epoch {epoch + 1}; "
                    f"lower the learning rate"
                )
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(weights, clip_norm)
            optimizer.step()
            losses.append(value.item())
            due = time.monotonic() - saved >= save_seconds or step + 1 == epochs * steps
            if checkpoint is not None and due:
                _write(checkpoint, told, model, optimizer, order, losses, device)
                saved = time.monotonic()
    model.eval()
    return np.array(losses)


def torch_device(device: str) -> torch.device:
    """The device `cpu`, `cuda` or `cuda:N` of torch.

    Raises:
        InputError: not such a name.
        BackboneError: torch has no such GPU.
    """
    found = torch.device(check_device(device))
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackboneError(
            f"device={device!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            f"it needs an NVIDIA GPU, its driver and a CUDA build of torch"
        )
    return found


def identity(run: Mapping[str, Any] | None, data: NDArray[Any]) -> dict[str, Any]:
    """`run` with the `digest` of the data; its own `data` instead, if it has one.

    So outputs of a network, which another device rounds otherwise, can be told by its pictures.
    """
    told = dict(run or {})
    return told if "data" in told else {**told, "data": digest(data)}


@contextmanager
def _alone(checkpoint: Path | None) -> Iterator[None]:
    """Keep other runs from the same checkpoint."""
    if checkpoint is None:
        yield
        return
    path = checkpoint.with_name(f".{checkpoint.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(f"{checkpoint}: another run is writing it; wait for its end") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 of arrays with their shapes and types, in hex: for `run`."""
    made = hashlib.sha256()
    for array in arrays:
        made.update(f"{array.dtype.str}{array.shape}".encode())
        made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()


def _batches(order: Tensor, size: int) -> list[Tensor]:
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _identity(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """What two runs must share, as it comes back from JSON."""
    shapes = {name: [str(t.dtype), *t.shape] for name, t in model.state_dict().items()}
    own = {
        **arguments,
        "network": hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest(),
        "optimizer": type(optimizer).__name__,
        "groups": [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
    }
    told: dict[str, Any] = json.loads(json.dumps({"run": run, "training": own}))
    return told


def _flat(told: Any, name: str = "") -> dict[str, Any]:
    """`{"a": {"b": [1, 2]}}` -> `{"a.b.0": 1, "a.b.1": 2}`."""
    if not isinstance(told, dict | list):
        return {name: told}
    inside = told.items() if isinstance(told, dict) else enumerate(told)
    flat: dict[str, Any] = {}
    for key, value in inside:
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat


def _write(
    path: Path,
    told: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: Tensor,
    losses: list[float],
    device: torch.device,
) -> None:
    state = optimizer.state_dict()
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for number, values in state["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value):
                tensors[f"{_OPTIMIZER}{number}/{name}"] = value
    tensors["order"] = order
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors["random"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(device)
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {"run": json.dumps(told), "groups": json.dumps(state["param_groups"])},
    )
    with replacing(path) as file:
        file.write(content)


def _read(path: Path, told: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors and the optimizer's groups of a checkpoint of the run `told`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            was, groups = json.loads(metadata["run"]), json.loads(metadata["groups"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path}: not a checkpoint, or a damaged one; delete it to begin anew "
            f"({first_line(error)})"
        ) from error
    theirs, ours = _flat(was), _flat(told)
    for key in dict.fromkeys([*ours, *theirs]):
        there, here = theirs.get(key), ours.get(key)
        if there != here:
            raise TrainingError(
                f"{path}: the checkpoint of another run: its {key} is {json.dumps(there)}, here "
                f"{json.dumps(here)}; name another file, or delete it to begin anew"
            )
    return tensors, groups


def _restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    read: tuple[dict[str, Tensor], list[dict[str, Any]]],
    device: torch.device,
) -> tuple[Tensor, list[float]]:
    """Set everything to where the checkpoint was; its order of items, and losses."""
    tensors, groups = read
    own = {n.removeprefix(_MODEL): t for n, t in tensors.items() if n.startswith(_MODEL)}
    model.load_state_dict(own)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            number, _, key = name.removeprefix(_OPTIMIZER).partition("/")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random"])
    if device.type == "cuda" and "random_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random_cuda"], device)
    return tensors["order"], tensors["losses"].tolist()
