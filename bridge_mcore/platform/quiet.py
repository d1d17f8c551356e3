"""Keep the screen for what the user should read."""

from __future__ import annotations

import os
import warnings


def quieten() -> None:
    """Silence what Megatron and torch warn about missing kernels: `Platform.describe` says it once, in one line.

    Call it before they are imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(megatron|torch)\b.*")
