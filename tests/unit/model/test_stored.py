from __future__ import annotations

import shutil
from pathlib import Path

from spin_components.model.stored import fetch_model
from spin_components.store import layout
from spin_components.store.local import LocalRun
from support.safetensors_files import write_zeros


def test_a_base_model_is_fetched_without_what_lies_beside_it(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    write_zeros(folder / "adapter_model.safetensors", {"a": [1]})
    run = LocalRun(tmp_path / "run")
    with run:
        source = run.sources.open_model(str(folder), what="model.base")
        files = {name: digest.model_dump() for name, digest in source.digests.items()}
        run.write_json(layout.RUN, {"base_model": {"uri": str(folder), "files": files}})
        fetched = fetch_model(run, str(folder), what="the reference")
        assert {path.name for path in fetched.iterdir()} == {path.name for path in tiny_llama.iterdir()}
        assert (fetched / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not fetched.exists()
    assert (folder / "adapter_config.json").is_file()
