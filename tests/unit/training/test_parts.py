"""Parts of a training state, written by any number of ranks and read by any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from spin_components.errors import IntegrityError
from spin_components.training import parts as parts_module
from spin_components.training.parts import Part, Parts, share_of, write_parts

TENSORS = {"exp_avg/a": torch.arange(35.0).reshape(5, 7), "exp_avg/b": torch.arange(3.0), "weight/c": torch.tensor(2.5)}


def written(folder: Path, ranks: int) -> list[Path]:
    """Files of ranks that each write an even share."""
    for rank in range(ranks):
        shares = {name: share_of(tensor.numel(), rank, ranks) for name, tensor in TENSORS.items()}
        write_parts(
            folder / str(rank),
            "optimizer",
            (
                Part(name, TENSORS[name].flatten()[begin:end], begin, tuple(TENSORS[name].shape))
                for name, (begin, end) in shares.items()
                if end > begin
            ),
        )
    return sorted(folder.rglob("*.safetensors"))


@settings(max_examples=30)
@given(ranks=st.integers(1, 9), readers=st.integers(1, 9))
def test_any_number_of_ranks_reads_what_any_other_wrote(
    ranks: int, readers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts = Parts(written(tmp_path_factory.mktemp("parts"), ranks))
    assert set(parts) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(parts.whole(name), tensor)
        for reader in range(readers):
            begin, end = share_of(tensor.numel(), reader, readers)
            if end > begin:
                assert torch.equal(parts.read(name, begin, end), tensor.flatten()[begin:end])


def test_whole_tensors_are_files_of_named_tensors(tmp_path: Path) -> None:
    write_parts(tmp_path / "found", "optimizer", (Part(name, tensor) for name, tensor in TENSORS.items()))
    save_file(TENSORS, tmp_path / "expected.safetensors")
    (found,) = (tmp_path / "found").iterdir()
    assert found.name == "optimizer-00000.safetensors"
    assert found.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    parts = Parts([found])
    assert torch.equal(parts.read("exp_avg/a", 3, 20), torch.arange(3.0, 20.0))


def test_parts_go_to_numbered_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_MAX_FILE_BYTES", 8)
    rows: list[Part] = [
        Part("exp_avg/a", torch.tensor([1.0, 2.0], dtype=torch.bfloat16)),
        Part("exp_avg/b", torch.ones(4, 2).T[:1]),  # no contiguous memory
        Part("exp_avg/c", torch.ones(1)),
    ]
    write_parts(tmp_path, "optimizer", rows)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"optimizer-0000{number}.safetensors" for number in range(3)]
    parts = Parts(paths)
    assert {name: parts.whole(name).tolist() for name in parts} == {
        "exp_avg/a": [1.0, 2.0],
        "exp_avg/b": [[1.0, 1.0, 1.0, 1.0]],
        "exp_avg/c": [1.0],
    }


def test_a_part_that_is_missing_or_twice_there_is_an_error(tmp_path: Path) -> None:
    files = written(tmp_path, 3)
    with pytest.raises(IntegrityError, match=r"exp_avg/a of \(5, 7\) is stored in the ranges 0:11, 23:35.*not make"):
        Parts([files[0], files[2]])
    with pytest.raises(IntegrityError, match="do not make a whole"):
        Parts([*files, files[1]])


@pytest.mark.parametrize(
    ("tensor", "ranges"),
    [
        (torch.ones(4), '{"a": [-1, 4]}'),
        (torch.ones(4), '{"a": "4"}'),
        (torch.ones(4), '["a"]'),
        (torch.ones(4), '{"a": [0, -4]}'),
        (torch.ones(2, 2), '{"a": [0, 4]}'),
        (torch.ones(4), "{"),
    ],
)
def test_a_range_that_is_none_is_an_error(tensor: Tensor, ranges: str, tmp_path: Path) -> None:
    path = tmp_path / "optimizer-00000.safetensors"
    save_file({"a": tensor}, path, {"ranges": ranges})
    with pytest.raises(IntegrityError):
        Parts([path])


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "optimizer-00000.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(IntegrityError, match="is not a part of a training state"):
        Parts([path])


def test_a_parameter_of_another_shape_is_an_error(tmp_path: Path) -> None:
    parts = Parts(written(tmp_path, 2))
    parts.check_shape("exp_avg/a", (5, 7))
    with pytest.raises(IntegrityError, match=r"has exp_avg/a of \(5, 7\), expected \(7, 5\)"):
        parts.check_shape("exp_avg/a", (7, 5))
    with pytest.raises(IntegrityError, match=r"has exp_avg/z of None"):
        parts.check_shape("exp_avg/z", (1,))
