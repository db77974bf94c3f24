"""One process of DDP trainings over gloo; writes their parameters. Run by test_ddp.py."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
import torch
import torch.distributed as dist
from loops import Indexed, mean_loss, network, parameters
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from batchwell.errors import Divergence
from batchwell.training.accumulate import AccumulationProbe
from batchwell.training.loop import attach
from batchwell.training.measure import Probe
from batchwell.training.schedules import SCHEDULES


def counted(state: dict[str, int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's own averaging, and how often it was called for."""
    state["calls"] += 1
    tensor = bucket.buffer().div_(dist.get_world_size())
    future = dist.all_reduce(tensor, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def train(logdir: Path, knob: str, poison_at: int) -> dict[str, Any]:
    model = DistributedDataParallel(network(dropout=0.0))
    reduced = {"calls": 0}
    model.register_comm_hook(reduced, counted)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data, error = Indexed(104), ""
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, shuffle=False))
    training = attach(model, optimizer, loader, "0:16 32:48", knob=knob, logdir=logdir)
    try:
        for batch in training:
            loss = mean_loss(model, batch)
            bad = dist.get_rank() == 1 and training.course.updates == poison_at
            training.step(loss * float("nan") if bad else loss)
    except Divergence as caught:
        error = str(caught)
    return {
        "parameters": parameters(model).tolist(),
        "updates": training.course.updates,
        "examples": training.course.examples,
        "reduced": reduced["calls"],
        "error": error,
    }


def follow(logdir: Path, free: bool) -> dict[str, Any]:
    """Every process must come to the same sizes, or they would wait for each other for ever.

    Noise from the examples' norms, or, free of cost, from what the processes sum up anyway.
    """
    model = DistributedDataParallel(network(dropout=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Indexed(104)
    loader = DataLoader(data, 8, sampler=DistributedSampler(data))
    plan = SCHEDULES["noise_scale"](16, ratio=8.0)
    if free:
        probe = AccumulationProbe(model, data_size=104, micro_batches="by_size", window=3)
    else:
        probe = Probe(model, data_size=104, micro_batches="by_size", examples=None, window=3)
    training = attach(model, optimizer, loader, plan, probe=probe, logdir=logdir)
    sizes = []
    for _ in range(3):
        for batch in training:
            if training.step(mean_loss(model, batch)):
                sizes.append(training.batch_size)
    return {"sizes": sizes}


EXAMPLES, MICRO, STEPS = 24, 3, 200


def accumulated(rank: int, world: int, ragged: bool, data_size: int | None) -> dict[str, Any]:
    """Every step's noise at fixed parameters, of random subsets shared out among the processes.

    Two micro-batches a process, the first without all-reduce; if ragged, the last process's second
    one is of a single example, and each loss weighs by its examples.
    """
    model = DistributedDataParallel(network(dropout=0.0))
    probe = AccumulationProbe(
        model, data_size=data_size, sampling="without_replacement", micro_batches="by_size"
    )
    data, generator = Indexed(EXAMPLES), torch.Generator().manual_seed(5)
    rows = []
    for _ in range(STEPS):
        order = torch.randperm(EXAMPLES, generator=generator)
        mine = order[2 * MICRO * rank : 2 * MICRO * (rank + 1)]
        first, second = mine[:MICRO], mine[MICRO:]
        if ragged and rank == world - 1:
            second = second[:1]
        count = len(first) + len(second)
        for part in (first, second):
            loss = mean_loss(model, (data.inputs[part], data.targets[part])) * len(part)
            with model.no_sync() if part is first else nullcontext():
                # Over the same number in all processes, as `attach` does.
                (loss / MICRO).backward()
        row = probe.step(loss / count, scale=count / MICRO)
        rows.append((row.gradient_norm_squared, row.noise_trace, row.batch_size))
        model.zero_grad()
    probe.close()
    return {"rows": rows}


def main(rank: int, world: int, folder: Path) -> None:
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    out = {knob: train(folder / knob, knob, -1) for knob in ("accumulation", "sampler")}
    out["noise"] = follow(folder / "noise", free=False)
    out["free"] = follow(folder / "free", free=True)
    out["even"] = accumulated(rank, world, False, EXAMPLES)
    out["ragged"] = accumulated(rank, world, True, EXAMPLES)
    out["stream"] = accumulated(rank, world, False, None)
    out["nan"] = train(folder / "nan", "accumulation", 2)
    (folder / f"out{rank}.json").write_text(json.dumps(out))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
