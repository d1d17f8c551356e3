"""Rank program: two shares whose verdicts differ; both ranks must hear the same reason and stop alike."""

from __future__ import annotations

from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import RunStopped
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.rewards.verdict import Verdict
from bridge_mcore.training.undecided import WINDOW, UndecidedWatch

RIGHT, SLEPT = Verdict("correct", "yes"), Verdict("timeout", "slept", own_doing=True)


def main() -> None:
    platform = setup_device("cpu")
    with joined_world(platform), layout_groups(Parallel(data=2), 0) as layout:
        broken = Verdict("error", f"broken on share {layout.share}")
        watch = UndecidedWatch(0.5, layout)
        assert watch.see(["math"], [layout.share], [RIGHT], 0, 2) is None  # nothing is gathered
        one = [broken] if layout.share == 1 else [RIGHT]  # of one share alone
        assert watch.see(["math"], [layout.share], one, 1, 2) == "by math: error: broken on share 1"
        keys = [7] if layout.share == 0 else [5]  # the first answer by its number, whoever holds it
        slept = [SLEPT] if layout.share == 1 else [broken]
        assert watch.see(["math"], keys, slept, 2, 2) == "by math: error: broken on share 0"
        for _ in range(WINDOW - 2):  # dead on one of the two: exactly half of all answers
            watch.see(["math"], keys, one, 1, 2)
        try:
            watch.see(["math"], keys, one, 1, 2)
        except RunStopped as error:
            assert "has judged nothing on share 1 of 2" in str(error)
        else:
            raise AssertionError("it goes on")
        try:
            watch.see(["math"], keys, [broken], 2, 2)
        except RunStopped as error:
            assert "none of the step's 2 answers" in str(error) and "broken on share 1" in str(error)
        else:
            raise AssertionError("it goes on")


if __name__ == "__main__":
    main()
