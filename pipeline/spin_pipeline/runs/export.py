"""Exports a published policy as a Hugging Face model folder with a model card."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from spin_components.errors import ConfigError, IntegrityError
from spin_components.model.lora.files import BASE, CONFIG, Base, write_adapter
from spin_components.model.stored import adapter_chain, open_model
from spin_components.store import layout
from spin_components.store.addresses import parse_address
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.keys import place
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_pipeline.runs.published import Published, find_published, published_iterations

CARD = "README.md"


_LAST = "config.json"
_BLOCK_BYTES = 1 << 20


_SPIN = "self-play fine-tuning (SPIN, [arXiv:2401.01335](https://arxiv.org/abs/2401.01335))"


_TRAINED = f"Trained by {_SPIN}"


_UNCHANGED = f"The base model, unchanged: no iteration was better on the held-out answers, by {_SPIN}"


def export_model(
    run_uri: str, which: str, destination: str, *, as_adapter: bool = False, trust_remote_code: bool = False
) -> tuple[Published, str]:
    """Write a policy to an empty folder or prefix, after checking its digests; its configuration is written last.

    Args:
        run_uri: the run.
        which: number of the iteration; or `best`, which is the base model if no iteration is better.
        destination: a path or `s3://bucket/prefix`.
        as_adapter: write a peft adapter for the run's base model instead of a whole model.
        trust_remote_code: whether code in the base model's folder may run, where adapters are merged into it.

    Returns: the exported model, and its address.

    Raises:
        ConfigError: there is no such run or iteration, or the destination is not empty.
        IntegrityError: the policy's files do not match its manifest.
        StorageAccessError, StorageError: storage denies access, or does not answer.
    """
    address = str(parse_address(destination, what="DEST"))
    parent, _, name = address.rpartition("/")
    if not name or parent in ("", "s3:/"):
        raise ConfigError(f"DEST = {destination!r}: expected a folder below a path, or s3://bucket/prefix")
    with open_run(run_uri) as run, open_run(parent) as target:
        published = find_published(run, which)
        if existing := target.sizes(name):
            raise ConfigError(f"{address} has {len(existing)} files already; choose another DEST, or remove them first")
        if as_adapter:
            folder, last = joined_adapter(run, published), CONFIG
        else:
            folder = open_model(run, published.uri, what="the policy to export", trust_remote_code=trust_remote_code)
            last = _LAST
        with target.staged(name) as staged:
            staged.path.mkdir()
            is_stored = all((folder / each).is_file() for each in published.files)
            expected = published.files if is_stored else dict.fromkeys(_all_of(folder))
            for each, digest in expected.items():
                if each not in (CARD, last):
                    _copy(folder / each, place(staged.path, each, where=str(folder)), digest)
            closing = _read(folder / last, expected.get(last))
            (staged.path / CARD).write_text(model_card(run, published, as_adapter=as_adapter), encoding="utf-8")
        target.write(f"{name}/{last}", closing)
    return published, address


def _all_of(folder: Path) -> list[str]:
    """Names of the files in a folder that was made for this export.

    A base model may share its folder with other files, of which only its own are exported.
    """
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _copy(path: Path, to: Path, digest: FileDigest | None) -> None:
    """Copy a file, and check that what was copied is what was verified before.

    Raises:
        IntegrityError: the file changed meanwhile.
    """
    sha256, num_bytes = hashlib.sha256(), 0
    to.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, to.open("wb") as target:
        while block := source.read(_BLOCK_BYTES):
            sha256.update(block)
            num_bytes += target.write(block)
    _check(path, FileDigest(num_bytes=num_bytes, sha256=sha256.hexdigest()), digest)


def _read(path: Path, digest: FileDigest | None) -> bytes:
    """Read a small file; otherwise as `_copy`."""
    content = path.read_bytes()
    _check(path, FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()), digest)
    return content


def _check(path: Path, copied: FileDigest, digest: FileDigest | None) -> None:
    if digest is not None and copied != digest:
        raise IntegrityError(
            f"{path} changed while it was exported: it has SHA-256 {copied.sha256:.12}…, expected "
            f"{digest.sha256:.12}…. Nothing was exported; run the same command again once nothing writes there"
        )


def model_card(run: RunStore, published: Published, *, as_adapter: bool = False) -> str:
    """Model card in Markdown: losses of each iteration, base model, data, lineage and settings."""
    record = run.read_json(layout.RUN)
    settings, base = record["settings"], record["base_model"]
    data = read_manifest(run, layout.DATA_MANIFEST)
    is_base = published.iteration == layout.BASE
    losses: list[tuple[str, float | None, dict[str, Any] | None]] = [
        ("base", read_manifest(run, layout.validation(layout.BASE, 0)).facts["val_loss"], None)
    ]
    if run.exists(layout.WARM_UP_MANIFEST):
        losses.append(("warm-up", read_manifest(run, layout.WARM_UP_MANIFEST).facts["val_loss"], None))
    for t in published_iterations(run):
        if is_base or t <= published.iteration:
            facts = read_manifest(run, layout.checkpoint(t)).facts
            losses.append((f"iteration {t}", facts["val_loss"], facts))
    return "\n".join(
        [
            "---",
            f"library_name: {'peft' if as_adapter else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags: [spin, self-play-fine-tuning]",
            "---",
            "",
            f"# {settings['run']['name']}, {published.name}",
            "",
            f"{_UNCHANGED if is_base else _TRAINED} with SPIN pipelines {record['version']}.",
            *(_adapter_note(settings, base) if as_adapter else ()),
            "",
            "| | val_loss (nats a token) | change from the base | pairs | beta | peak lr |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_row(name, loss, facts) for name, loss, facts in losses),
            "",
            "## Lineage",
            "",
            *_lineage(run, published, record, base, data.facts),
            "",
            "## Settings",
            "",
            *_tables(settings),
            "",
        ]
    )


def _adapter_note(settings: dict[str, Any], base: dict[str, Any]) -> list[str]:
    quantize = settings["lora"]["quantize"]
    on = f"`{base['uri']}`" if quantize == "none" else f"`{base['uri']}`, quantised to {quantize} as in training"
    return ["", f"A LoRA adapter, merged from those of all iterations: load it with peft on {on}."]


def _row(name: str, loss: float | None, facts: dict[str, Any] | None) -> str:
    measured = "not finite" if loss is None else f"{loss:.4f}"
    if facts is None:
        return f"| {name} | {measured} | | | | |"
    change = facts.get("from_base")
    changed = f"{change['mean']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})" if change else ""
    old = facts.get("num_history", 0)
    pairs = f"{facts['num_pairs']}, {old} of them from earlier iterations" if old else facts["num_pairs"]
    cells = (changed, pairs, facts["ref_policy_kl_penalty"], facts["peak_lr"])
    return f"| {name} | {measured} | {' | '.join(f'{cell}' for cell in cells)} |"


def _lineage(
    run: RunStore, published: Published, record: dict[str, Any], base: dict[str, Any], data: dict[str, Any]
) -> list[str]:
    facts, trained = published.facts, list[str]()
    if facts:
        trained = [
            f"- optimizer steps: {facts['step']}, pairs seen: {facts['consumed_samples']}",
            f"- reference of this iteration: `{facts['reference_uri']}`",
        ]
    forked = record["settings"]["model"].get("forked_from")
    return [
        f"- run: `{run.uri}`, started {record['created_at']}, seed {record['seed']}",
        f"- base model: `{base['uri']}`" + (f", forked from {forked}" if forked else ""),
        *(f"- {name} data: `{source['uri']}`" for name, source in record["data"].items()),
        f"- prompts: {data['num_train']} for training, {data['num_validation']} held out",
        *trained,
        f"- SHA-256 over the files of this model: `{published.sha256}`",
        f"- packages: {', '.join(f'{name} {version}' for name, version in record['packages'].items())}",
    ]


def _tables(settings: dict[str, Any]) -> list[str]:
    lines = ["```toml"]
    for section, table in settings.items():
        if section not in ("hardware", "run"):
            lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in table.items()), ""]
    return [*lines[:-1], "```"]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def joined_adapter(run: RunStore, published: Published) -> Path:
    """Write the merged adapter to a folder that peft can load, which is deleted when the run is closed.

    Raises:
        ConfigError: the run trains all weights, or the policy is the base model itself.
        IntegrityError: an adapter is missing or altered.
    """
    record = run.read_json(layout.RUN)
    if not record["settings"].get("lora", {}).get("r"):
        raise ConfigError(f"{run.uri} trains all weights (lora.r = 0), so there is no adapter; leave --adapter out")
    from spin_components.model.lora.merging import joined

    base = record["base_model"]
    chain = adapter_chain(run, published.uri)
    if not chain:
        raise ConfigError(
            f"{published.name} of {run.uri} has no adapter: it is {base['uri']} itself; name an --iteration that was "
            "trained, or leave --adapter out"
        )
    digests = {name: FileDigest.model_validate(file) for name, file in base["files"].items()}
    folder = run.scratch_folder()
    base_model = Base(uri=base["uri"], sha256=digest_of(digests))
    write_adapter(folder, *joined(chain), base_model, like=chain[-1])
    (folder / BASE).unlink()  # this file is not part of peft's format; the model card names the base model
    return folder
