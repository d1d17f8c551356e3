"""A run's accuracy beside the range that its configuration is known to end with (`expected`)."""

from __future__ import annotations

from bridge_mcore.config.expected import settings_digest
from bridge_mcore.config.schema import Config
from bridge_mcore.monitoring.curves import wilson


def expectation(config: Config, accuracy: float | None, problems: int) -> str | None:
    """One line that compares the accuracy after the last step with `expected`; None where the two are not comparable:
    nothing is expected, nothing was evaluated, or the run's settings are not those that were measured.
    """
    expected = config.expected
    if expected is None or accuracy is None or not problems or settings_digest(config) != expected.settings:
        return None
    low, high = expected.accuracy
    known = f"the range {100 * low:.1f} to {100 * high:.1f} % measured over {expected.measured}"
    if accuracy > high:
        verdict = f"above {known}"
    elif accuracy >= low:
        verdict = f"within {known}"
    elif wilson(accuracy, problems)[1] >= low:
        verdict = f"below {known}, but by no more than {problems} problems leave to chance"
    else:
        verdict = f"below {known}: something differs here; run `bridge-mcore selftest`"
    return f"accuracy {100 * accuracy:.1f} %: {verdict}"
