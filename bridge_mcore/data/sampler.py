"""An endless, shuffled, resumable order over a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge_mcore.errors import DataError


class ShuffledSampler:
    """Draws indices 0..size-1 epoch after epoch, each epoch in a new order that (seed, epoch) alone decide.

    The order of an epoch is the stable argsort of `size` raw 64-bit words of Philox, seeded by SeedSequence((seed,
    epoch)). NumPy guarantees both streams across versions and machines (NEP 19), which it does not for `permutation`.
    So a run resumed elsewhere goes on with the same data. Memory is O(size), one epoch at a time.

    Every data-parallel replica holds the same sampler, takes the whole step's indices and uses its own part.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise DataError("cannot sample from an empty data set")
        self.size, self.seed = size, seed
        self.epoch, self.position = 0, 0
        self._order = self._permutation(0)

    def take(self, n: int) -> list[int]:
        """The next `n` indices; `n` may exceed the size, and runs over into as many epochs as it needs."""
        if n < 0:
            raise ValueError(f"cannot take {n} indices")
        taken: list[int] = []
        while len(taken) < n:
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation(self.epoch)
            part = self._order[self.position : self.position + n - len(taken)]
            taken += part.tolist()
            self.position += len(part)
        return taken

    def state_dict(self) -> dict[str, int]:
        """Everything that the continuation depends on, as JSON-able whole numbers."""
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError if it is of another data set or seed."""
        for key, now in (("size", self.size), ("seed", self.seed)):
            if state[key] != now:
                what = "number of problems" if key == "size" else "shuffling seed (run.seed)"
                raise DataError(
                    f"the checkpoint's data position does not fit: its {what} was {state[key]}, now it is {now}; "
                    "resume with the data and seed that the run was started with"
                )
        if not 0 <= state["position"] <= self.size or state["epoch"] < 0:
            raise DataError(f"the checkpoint's data position is damaged: {state}")
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation(self.epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        words = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(self.size)
        return np.argsort(words, kind="stable")
