"""Every place in a Python tree where text can become an import, a call, a process, an object or an attribute's name."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

#: What is looked for, by its whole name; a name that ends in a dot stands for all that is below it.
WATCHED = (
    "importlib.import_module", "importlib.util.", "importlib.machinery.", "runpy.", "pkgutil.", "imp.",
    "subprocess.Popen", "subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output",
    "subprocess.getoutput", "subprocess.getstatusoutput", "multiprocessing.Process", "multiprocessing.Pool",
    "os.system", "os.popen", "os.fork", "os.forkpty", "os.exec", "os.spawn", "os.posix_spawn", "pty.",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.", "shelve.", "dill.", "joblib.", "cloudpickle.",
    "torch.load", "torch.jit.load", "torch.hub.", "numpy.load", "numpy.fromfile", "pandas.",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.safe_load", "yaml.SafeLoader", "yaml.Loader",
    "yaml.FullLoader", "yaml.UnsafeLoader", "datasets.load_dataset", "datasets.load_from_disk", "huggingface_hub.",
    "jinja2.", "transformers.utils.chat_template_utils.",
    "string.Template", "ctypes.CDLL", "ctypes.PyDLL", "ctypes.util.", "cffi.", "zipfile.", "tarfile.",
    "shutil.unpack_archive", "webbrowser.", "code.", "codeop.",
)  # fmt: skip
#: Methods, whatever object they are called on.
METHODS = ("from_pretrained", "apply_chat_template", "format_map")
BUILTINS = ("eval", "exec", "compile", "__import__")


def doors_of(source: str) -> set[str]:
    """The doors in a module: what of `WATCHED` it mentions, called or handed on, and computed names and formats."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            whole = _whole(node, names)
            if _watched(whole) or (whole in BUILTINS and whole not in names):
                found.add(whole)
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module:  # `from pickle import loads as fine`
            found |= {whole for a in node.names if _watched(whole := f"{node.module}.{a.name}")}
        if isinstance(node, ast.Call):
            found |= _computed(node)
    return found


def _computed(call: ast.Call) -> set[str]:
    """`getattr` and its kin with a name that is no constant; `format` of a text that is none."""
    if isinstance(call.func, ast.Name) and call.func.id in ("getattr", "setattr", "delattr"):
        return set() if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else {call.func.id}
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("__getattribute__", "__getattr__", "__dict__"):
        return {"getattr"}
    if isinstance(call.func, ast.Attribute) and call.func.attr == "format":
        return set() if isinstance(call.func.value, ast.Constant) else {"format"}
    return set()


def _watched(whole: str) -> bool:
    return any(
        whole.startswith(name) if name.endswith((".", "os.exec", "os.spawn", "os.posix_spawn")) else whole == name
        for name in WATCHED
    )


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a module's names stand for, wherever in it they are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names
            )
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((a.asname or a.name, f"{node.module}.{a.name}") for a in node.names)


def _whole(node: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    head = names.get(node.id, node.id if hasattr(builtins, node.id) else "") if isinstance(node, ast.Name) else ""
    return ".".join([head, *reversed(parts)]) if head else ""


def doors_in(root: Path) -> dict[str, set[str]]:
    """Doors by file below a directory, where a file has any."""
    found = {str(path.relative_to(root)): doors_of(path.read_text("utf-8")) for path in sorted(root.rglob("*.py"))}
    return {name: doors for name, doors in found.items() if doors}
