"""Files that are damaged or made to do harm: each gets a clear error, and nothing of it is run or read elsewhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from bridge_mcore.checkpoint.convert import Options, open_hf, open_megatron, to_hf, to_megatron
from bridge_mcore.checkpoint.safetensors_file import SafetensorsStream, SafetensorsWriter, read_header
from bridge_mcore.checkpoint.torch_zip import locate
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import CheckpointError
from tests.models import save_tiny


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "a header beyond the file": (b"{}", b"", 2**40),
    "a header of more than the format's limit": (b" " * 10, b"", 2**63),
    "no JSON": (b"{]", b"", None),
    "a list": (b"[]", b"", None),
    "depth without end": (b"[" * 100_000, b"", None),
    "no UTF-8": (b'{"\xff": 1}', b"", None),
    "no offsets": (json.dumps({"a": {"dtype": "F32", "shape": [2]}}).encode(), b"\0" * 8, None),
    "negative sizes": (json.dumps({"a": entry(shape=[-2])}).encode(), b"\0" * 8, None),
    "sizes that are no numbers": (json.dumps({"a": entry(shape=["2"])}).encode(), b"\0" * 8, None),
    "true for one": (json.dumps({"a": entry(shape=[True, 2])}).encode(), b"\0" * 8, None),
    "bytes that do not fit the shape": (json.dumps({"a": entry(shape=[3])}).encode(), b"\0" * 8, None),
    "a shape whose product overflows": (json.dumps({"a": entry(shape=[2**40, 2**40])}).encode(), b"\0" * 8, None),
    "data beyond the file": (json.dumps({"a": entry(shape=[4], offsets=(0, 16))}).encode(), b"\0" * 8, None),
    "data before the file": (json.dumps({"a": entry(offsets=(-8, 0))}).encode(), b"\0" * 8, None),
    "two tensors in one place": (json.dumps({"a": entry(), "b": entry()}).encode(), b"\0" * 8, None),
    "tensors that overlap": (
        json.dumps({"a": entry(), "b": entry(offsets=(4, 12))}).encode(), b"\0" * 12, None,
    ),
    "a gap": (json.dumps({"a": entry(), "b": entry(offsets=(12, 20))}).encode(), b"\0" * 20, None),
    "bytes behind the last tensor": (json.dumps({"a": entry()}).encode(), b"\0" * 9, None),
    "an unknown dtype": (json.dumps({"a": entry("F33")}).encode(), b"\0" * 8, None),
    "a name that comes twice": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"\0" * 8, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path, what):
    """Where the safetensors library refuses it too, it is no question of taste."""
    header, data, length = HOSTILE[what]
    write_raw(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is corrupt or truncated"):
        read_header(tmp_path / "x.safetensors")
    if what == "a name that comes twice":
        return  # the library keeps the last of two
    with pytest.raises(SafetensorError), safe_open(tmp_path / "x.safetensors", framework="pt"):
        pass


def test_any_truncated_or_flipped_header_is_refused_or_harmless(tmp_path, seed):
    """Files cut anywhere, and with a random byte of the header changed: an error, or tensors that lie in the file."""
    draw = random.Random(seed)
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.zeros(0, 4)}, path)
    good = path.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    for _ in range(300):
        if draw.random() < 0.5:
            bad = good[: draw.randrange(len(good))]
        else:
            at = draw.randrange(length)
            bad = good[:at] + bytes([draw.randrange(256)]) + good[at + 1 :]
        path.write_bytes(bad)
        try:
            found = read_header(path)
        except CheckpointError:
            continue
        assert len(bad) == len(good)
        assert all(length <= s.offset and s.offset + s.nbytes <= len(good) for s in found.values())


def test_what_is_written_is_what_the_library_reads(tmp_path, seed):
    """In random order, in pieces; and as a stream. A file that lacks rows is not finished."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float64, torch.uint8]
    shapes = [(), (5,), (3, 4), (2, 3, 4), (0, 3), (1, 1)]
    tensors = {f"t{i}": (torch.randn(draw.choice(shapes)) * 9).to(draw.choice(dtypes)) for i in range(20)}
    rows = [(n, r) for n, t in tensors.items() if t.dim() for r in range(t.shape[0])]
    draw.shuffle(rows)
    with SafetensorsWriter(tmp_path / "a", {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items() if t.dim()}) as w:
        for name, row in rows:
            w.write(name, row, tensors[name][row : row + 1])
    stream = SafetensorsStream(tmp_path / "b")
    for name, tensor in tensors.items():
        assert not stream.full(name, tensor)
        stream.append(name, tensor)
    stream.close()
    for file in ("a", "b"):
        found = load_file(tmp_path / file)
        assert found.keys() == {n for n, t in tensors.items() if file == "b" or t.dim()}
        assert all(torch.equal(t, tensors[n]) and t.dtype == tensors[n].dtype for n, t in found.items())
        assert read_header(tmp_path / file).keys() == found.keys()
    with pytest.raises(CheckpointError, match="t0"), SafetensorsWriter(tmp_path / "c", {"t0": (torch.int8, (2,))}) as w:
        w.write("t0", 0, torch.zeros(1, dtype=torch.int8))


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "..", "", "sub/model.safetensors", "config.json", "a\\b.safetensors"],
)
def test_an_index_leads_nowhere_else(tmp_path, name):
    save_tiny("qwen2", tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(weights), name)}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"outside its directory|no safetensors file"):
        open_hf(tmp_path / "hf")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 100_000])
def test_a_broken_index_is_named(tmp_path, content):
    save_tiny("qwen2", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json.*(not a valid index|invalid JSON|one JSON object|nested)"):
        open_hf(tmp_path / "hf")


class Evil:
    """A pickle that would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def converted(tmp_path) -> Path:
    save_tiny("qwen2", tmp_path / "hf")
    to_megatron(open_hf(tmp_path / "hf"), tmp_path / "m", Parallel(tensor=2), None, 1, Options())
    return tmp_path / "m"


def test_pickles_are_not_run(converted, tmp_path):
    """In the metadata, in a tensor's archive and in config.json's own code."""
    mark = tmp_path / "ran"
    original = (converted / ".metadata").read_bytes()
    (converted / ".metadata").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(CheckpointError, match="it names"):
        open_megatron(converted)
    (converted / ".metadata").write_bytes(original)
    evil = io.BytesIO()
    torch.save(Evil(mark), evil)
    (tmp_path / "evil").write_bytes(evil.getvalue())
    descriptor = os.open(tmp_path / "evil", os.O_RDONLY)
    with pytest.raises(ValueError, match="it names"):
        locate(descriptor, 0, len(evil.getvalue()))
    os.close(descriptor)
    config = converted / "hf" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(CheckpointError, match="auto_map"):
        open_megatron(converted)
    assert not mark.exists()


def test_metadata_that_points_elsewhere_is_refused(converted):
    """To another directory's file, or to bytes that the file does not have."""
    from bridge_mcore.checkpoint.sharded import read_metadata

    metadata, _ = read_metadata(converted, [p.name for p in converted.iterdir()], others=True)
    first = next(iter(metadata.storage_data.values()))
    for change, message in (
        ({"relative_path": "../hf/model.safetensors"}, "not of the checkpoint"),
        ({"offset": 2**40}, "is truncated: .metadata says that it has 1099511"),
        ({"length": 50}, "damaged at byte"),
    ):
        kept = dict(first.__dict__)
        first.__dict__.update(change)
        (converted / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError, match=message):
            to_hf(open_megatron(converted), converted.parent / "back", None, Options())
        first.__dict__.update(kept)
    assert not (converted.parent / "back").exists()


def test_metadata_that_cannot_be_is_refused_and_takes_no_memory(converted):
    """Sizes without end, pieces of other dimensions, no pieces, no dtype; and pieces that overlap over a gap."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    from bridge_mcore.checkpoint.sharded import read_metadata

    original = (converted / ".metadata").read_bytes()
    names = [p.name for p in converted.iterdir()]
    key = "decoder.layers.self_attention.linear_proj.weight"

    def damaged(change) -> None:
        (converted / ".metadata").write_bytes(original)
        metadata, _ = read_metadata(converted, names, others=True)
        change(metadata.state_dict_metadata[key])
        (converted / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError):
            to_hf(open_megatron(converted), converted.parent / "back", None, Options())

    huge = ChunkStorageMetadata(torch.Size([0, 0, 0]), torch.Size([10**12, 1, 1]))
    flat = ChunkStorageMetadata(torch.Size([0]), torch.Size([1]))
    damaged(lambda entry: entry.chunks.__setitem__(0, huge))
    damaged(lambda entry: entry.chunks.__setitem__(0, flat))
    damaged(lambda entry: entry.chunks.__setitem__(0, entry.chunks[1]))
    damaged(lambda entry: entry.chunks.clear())
    damaged(lambda entry: setattr(entry, "size", 3))
    damaged(lambda entry: setattr(entry, "properties", None))
    damaged(lambda entry: setattr(entry, "chunks", None))


def test_a_description_that_grows_is_not_unpacked(tmp_path):
    """A compressed data.pkl of a gigabyte fits a megabyte."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    descriptor = os.open(tmp_path / "bomb", os.O_RDONLY)
    with pytest.raises(ValueError, match="compressed, or far too long"):
        locate(descriptor, 0, (tmp_path / "bomb").stat().st_size)
    os.close(descriptor)


def test_two_sets_of_weights_or_unnamed_tensors_are_refused(tmp_path):
    save_tiny("qwen2", tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    save_file(tensors, tmp_path / "hf" / "other.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "other.safetensors")}))
    with pytest.raises(CheckpointError, match="which is meant"):
        open_hf(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    open_hf(tmp_path / "hf")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(list(tensors)[1:], "other.safetensors")}))
    with pytest.raises(CheckpointError, match="the index does not"):
        open_hf(tmp_path / "hf")


def test_damaged_megatron_files_are_errors_or_seen_by_their_checksums(converted, tmp_path, seed):
    """Cut anywhere, or with a byte changed: an error of the converter, or tensors that `--verify` tells apart."""
    from bridge_mcore.checkpoint.verify import compare_tensors

    draw = random.Random(seed)
    path = converted / "__0_0.distcp"
    good, model = path.read_bytes(), open_hf(tmp_path / "hf")
    unchanged = 0
    for _ in range(60):
        at = draw.randrange(len(good))
        cut = draw.random() < 0.4
        path.write_bytes(
            good[:at] if cut else good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :]
        )
        try:
            compare_tensors(model, open_megatron(converted))
            assert not cut
            unchanged += 1  # the byte was one of zip's own: dates, padding, checksums
        except CheckpointError:
            pass
    assert unchanged < 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_saved_tensor_is_found_where_it_lies(tmp_path, dtype, seed):
    """Whole, transposed, a part of a larger one: as `torch.load` sees it, from the middle of a file."""
    torch.manual_seed(seed)
    base = torch.randn(6, 8).to(dtype)
    for tensor in (base, base.T, base[2:5, 1:7], base[:, 3], base[None]):
        content = io.BytesIO()
        torch.save(tensor, content)
        (tmp_path / "x").write_bytes(b"before" + content.getvalue() + b"behind")
        descriptor = os.open(tmp_path / "x", os.O_RDONLY)
        found = locate(descriptor, 6, len(content.getvalue()))
        os.close(descriptor)
        raw = (tmp_path / "x").read_bytes()
        last = sum((n - 1) * s for n, s in zip(found.shape, found.stride, strict=True))
        data = raw[found.offset : found.offset + (last + 1) * dtype.itemsize]
        again = torch.frombuffer(bytearray(data), dtype=found.dtype).as_strided(found.shape, found.stride)
        assert torch.equal(again, tensor) and found.dtype == dtype
