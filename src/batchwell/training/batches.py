"""The user's loader, batch by batch, from any position of an epoch and in sizes that may change.

Two knobs: the loader's own batches as micro-batches to accumulate (`Batches`), or index batches
drawn anew at the size that the schedule wants (`Resized`). Both take the order of examples from
the user's own sampler and give the same random numbers to it as the plain loader would.
"""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, require
from ._torch import torch

from torch.utils.data import BatchSampler, DataLoader, IterableDataset  # isort: skip


class MicroBatch(NamedTuple):
    """What the loop gets next, and whether the optimiser is to be called after it."""

    data: Any
    examples: int
    last_of_epoch: bool


def check_loader(loader: Any) -> None:
    """Refuse what has no length, or no order that could be taken up again.

    Raises
    ------
    InputError
        Names the loader.
    """
    try:
        batches = len(loader)
    except TypeError:
        raise InputError(
            "loader",
            type(loader).__name__,
            "has no length: give the dataset a __len__, so that the end of an epoch is known",
        ) from None
    require(batches > 0, "loader", type(loader).__name__, "has no batches")


def is_map_style(loader: Any) -> bool:
    """Whether batches are made of indices by torch's own DataLoader."""
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def examples_in(data: Any) -> int:
    """Examples in a batch: the length of the first tensor found in it.

    Raises
    ------
    InputError
        There is none.
    """
    if isinstance(data, torch.Tensor):
        return int(data.shape[0]) if data.ndim else 1
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        for item in data:
            if isinstance(item, torch.Tensor | Mapping | list | tuple):
                return examples_in(item)
    raise InputError("batch", type(data).__name__, "holds no tensor: its size is unknown")


def _packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


def _unpacked(text: str) -> bytearray:
    return bytearray(zlib.decompress(base64.b64decode(text)))


class Randomness:
    """All the generators that an epoch draws from.

    Torch's own, the loader's and the sampler's, and those of Python and NumPy, which augmentations use.
    """

    def __init__(self, loader: Any) -> None:
        sampler = getattr(loader, "sampler", None)
        found = [getattr(loader, "generator", None), getattr(sampler, "generator", None)]
        named = [item for item in found if isinstance(item, torch.Generator)]
        unique = named[:1] if len(named) == 2 and named[0] is named[1] else named
        self._generators: list[torch.Generator] = [torch.default_generator, *unique]

    def read(self) -> dict[str, Any]:
        """States, packed and JSON-safe."""
        states = [generator.get_state() for generator in self._generators]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states += [torch.cuda.get_rng_state(k) for k in range(torch.cuda.device_count())]
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that others use
        others = {"python": random.getstate(), "numpy": _plain(numpy_state)}
        return {
            "torch": [_packed(state.numpy().tobytes()) for state in states],
            **{name: _packed(json.dumps(state).encode()) for name, state in others.items()},
        }

    def write(self, states: Mapping[str, Any]) -> None:
        """Set all generators."""
        known = [torch.frombuffer(_unpacked(s), dtype=torch.uint8) for s in states["torch"]]
        count = len(self._generators)
        require(len(known) >= count, "state", len(known), f"needs {count} generators' states")
        for state, generator in zip(known, self._generators, strict=False):
            generator.set_state(state)
        for device, state in enumerate(known[count:]):
            torch.cuda.set_rng_state(state, device)
        version, words, gauss = json.loads(_unpacked(states["python"]))
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(json.loads(_unpacked(states["numpy"])))  # noqa: NPY002


def _plain(state: Any) -> Any:
    """NumPy's state without arrays."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


class _Drawn(NamedTuple):
    """Indices of a batch that was sent to be loaded, and the size that was wanted for it."""

    indices: list[Any]
    wanted: int


class Batches:
    """The loader's own batches, in its own order; may begin amid an epoch.

    Attributes
    ----------
    epoch
        Epochs completed.
    position
        Batches (of `Resized`: examples) of the running epoch handed out so far.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.epoch = self.position = 0
        self._randomness = Randomness(loader)
        self._begun: dict[str, Any] | None = None  # generators as workers were given their seed
        self._opened: dict[str, Any] | None = None  # generators as the epoch's order was drawn
        self._now: dict[str, Any] | None = None  # generators as the state to go on from was saved
        self._items: Iterator[Any] | None = None
        self._flying: deque[_Drawn] = deque()
        self._copy = _copy_of(loader, self._index_batches()) if is_map_style(loader) else None
        # Workers draw too: what they drew comes again by loading again what they had loaded.
        self._replays = getattr(loader, "num_workers", 0) > 0 and not loader.persistent_workers

    def epoch_batches(self) -> Iterator[MicroBatch]:
        """The rest of the running epoch, or all of a new one."""
        if self._now is None:
            self.position, self._opened = 0, None
        self._items = None
        self._flying.clear()
        batches = self._start()
        if self._now is not None:
            self._randomness.write(self._now)
            self._now = None
        yield from batches
        self.epoch, self.position, self._opened = self.epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe state, at a step boundary."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "begun": self._begun,
            "opened": self._opened,
            "now": self._randomness.read(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; torch's generators are set."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._begun, self._opened = state["begun"], state["opened"]
        self._now = None if self._opened is None else state["now"]
        self._randomness.write(state["now"])

    @property
    def workers_begin_anew(self) -> bool:
        """Whether what workers drew from generators of their own cannot be had back."""
        if not getattr(self.loader, "num_workers", 0):
            return False
        amid = self._now is not None
        return self.loader.persistent_workers or (amid and not self._replays)

    def _start(self) -> Iterator[MicroBatch]:
        """Batches from `position` on; when taken up amid an epoch, the order is drawn at once."""
        if self._copy is None:
            return self._deliver_as_they_are(self._ordered(self.loader))
        if self._replays:
            if self._now is not None:
                return self._deliver(self._loaded_again())
            self._begun = self._randomness.read()
        # The loader draws its seed, then the sampler draws its own: as without this class.
        batches = iter(self._copy)
        if self._now is not None and self._items is None:
            self._items = self._ordered(self._order())
        return self._deliver(batches)

    def _loaded_again(self) -> Iterator[Any]:
        """Workers begin the epoch anew, and what had been handed out before is left out."""
        assert self._copy is not None
        assert self._begun is not None
        done, self.position, self._opened = self.position, 0, None
        self._randomness.write(self._begun)
        batches = iter(self._copy)
        for _ in islice(batches, done):
            self._flying.popleft()
        self.position = done
        return batches

    def _ordered(self, items: Any) -> Iterator[Any]:
        """Items from `position` on, in the order that was, or is now, drawn."""
        if self._opened is None:
            self._opened = self._randomness.read()
        else:
            self._randomness.write(self._opened)
        rest = iter(items)
        for _ in islice(rest, self.position):
            pass
        return rest

    def _deliver_as_they_are(self, batches: Iterator[Any]) -> Iterator[MicroBatch]:
        total = len(self.loader)
        for data in batches:
            self.position += 1
            yield MicroBatch(data, examples_in(data), self.position >= total)

    def _order(self) -> Any:
        return self.loader.batch_sampler

    def _index_batches(self) -> _IndexBatches:
        return _IndexBatches(self._draw)

    def _draw(self) -> list[Any]:
        """Indices of the next batch to be loaded."""
        if self._items is None:
            self._items = self._ordered(self._order())
        indices = list(next(self._items))
        self._flying.append(_Drawn(indices, len(indices)))
        return indices

    def _deliver(self, batches: Iterator[Any]) -> Iterator[MicroBatch]:
        total = len(self.loader)
        for data in batches:
            self.position += 1
            yield MicroBatch(data, len(self._flying.popleft().indices), self.position >= total)


class Resized(Batches):
    """Batches of the size that is wanted when they are handed out, from the loader's sampler.

    Workers load ahead, at the sizes that the schedule plans for; when a measurement changes
    the plan, what they have loaded is dropped and its indices are drawn again at the new size: no
    batch of an old size is handed out, and no example is lost or seen twice.

    Parameters
    ----------
    size
        () -> size wanted now, of this process.
    sizes_ahead
        () -> sizes from now on, as planned.
    """

    def __init__(
        self, loader: Any, size: Callable[[], int], sizes_ahead: Callable[[], Iterator[int]]
    ) -> None:
        require(
            is_map_style(loader) and type(loader.batch_sampler) is BatchSampler,
            "knob",
            "sampler",
            "needs a torch DataLoader of indexed data without a batch sampler of its own: "
            "use knob='accumulation'",
        )
        super().__init__(loader)
        self._replays = False  # which worker loaded what is not known any more
        self._size, self._sizes_ahead = size, sizes_ahead
        self._planned: Iterator[int] = iter(())
        self._again: deque[Any] = deque()  # indices drawn before, at an old size

    def _start(self) -> Iterator[MicroBatch]:
        self._again.clear()
        return super()._start()

    def _order(self) -> Any:
        return self.loader.sampler

    def _draw(self) -> list[Any]:
        if not self._flying:
            self._planned = self._sizes_ahead()
        if self._items is None:
            self._items = self._ordered(self._order())
        wanted = next(self._planned)
        indices = [self._again.popleft() for _ in range(min(wanted, len(self._again)))]
        indices += islice(self._items, wanted - len(indices))
        if not indices or (self.loader.drop_last and len(indices) < wanted):
            # Given back: at a smaller size they may make a batch yet.
            self._again.extend(indices)
            raise StopIteration
        self._flying.append(_Drawn(indices, wanted))
        return indices

    def _deliver(self, batches: Iterator[Any]) -> Iterator[MicroBatch]:
        while True:
            if self._flying and self._flying[0].wanted != self._size():
                batches = self._load_again()
            try:
                data = next(batches)
            except StopIteration:
                return
            count = len(self._flying.popleft().indices)
            self.position += count
            yield MicroBatch(data, count, True)

    def _load_again(self) -> Iterator[Any]:
        """Workers begin anew with what they had not delivered; no generator is moved by that."""
        undelivered = [index for drawn in self._flying for index in drawn.indices]
        self._again.extendleft(reversed(undelivered))
        self._flying.clear()
        states = self._randomness.read()
        batches = iter(self._copy) if self._copy is not None else iter(())
        self._randomness.write(states)
        return batches


class _IndexBatches:
    """The batch sampler of the copied loader: asks for indices as late as the loader does."""

    def __init__(self, draw: Callable[[], list[Any]]) -> None:
        self._draw = draw

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        return self._draw()


def _copy_of(loader: DataLoader, batch_sampler: Any) -> DataLoader:
    """The user's loader with another batch sampler."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
