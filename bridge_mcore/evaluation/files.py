"""The files of an evaluation's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
