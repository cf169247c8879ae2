"""Time and memory of `prepare` by the number of records; `reading.py` has those of the steps after it.

    python tests/benchmarks/scale.py [--records 10000 100000] [--tokens 100 1000] [--json FILE]

Records are synthetic chats of `--tokens` tokens of the tiny model's tokenizer. Each size runs in a process of its own,
for a peak of its own; a small run before it pays for imports. Beside it stands the rate of `tokenizers.encode_batch`
alone on the same cores, over the rendered records, each encoded once and its ids left where they are.
The exponent is that of processor time over the number of records, between neighbouring sizes: a busy machine does not
change it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.small import small_settings

_LINES = (
    "the value of a list is read and written in order when each item has one name",
    "that returns true or false for another object given by its class method argument",
)
_WORDS = [word for line in _LINES for word in line.split()]
_WORDS_A_TOKEN = 0.48
"""Of these words in the tiny model's tokenizer, without what the template adds."""
_ENCODED = 5000
"""Records that `encode_batch` alone is timed on."""
_BATCH = 512


def write_records(path: Path, num_records: int, num_tokens: int) -> None:
    """Write distinct chats, whose answers are as long as their prompts on average."""
    rng = random.Random(0)
    mean = num_tokens * _WORDS_A_TOKEN / 2
    with path.open("w") as file:
        for index in range(num_records):
            prompt, answer = (" ".join(rng.choices(_WORDS, k=max(1, int(mean * rng.uniform(0.5, 1.5))))) for _ in "ab")
            record = [{"role": "user", "content": f"{index} {prompt}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": record}) + "\n")


def prepare(folder: Path, model: Path, data: Path) -> dict[str, Any]:
    """Prepare a run and return its facts."""
    from spin_components.prepare import step
    from spin_components.store import layout
    from spin_components.store.local import LocalRun
    from spin_components.store.manifests import read_manifest

    sizes = {"max_length": 4096, "max_prompt_length": 2048, "max_train_records": 0, "validation_size": 0.05}
    settings = small_settings(folder, model, data, data={**sizes, "train": str(data)})
    compiled = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1}
    step.prepare(str(folder), settings.model_dump(mode="json"), compiled)
    return read_manifest(LocalRun(folder), layout.DATA_MANIFEST).facts


def measure(model: Path, num_records: int, num_tokens: int) -> dict[str, float]:
    """Seconds and peak bytes of `prepare`, and records a second of it and of `encode_batch` alone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_records(folder / "few.jsonl", 200, num_tokens)
        prepare(folder / "few", model, folder / "few.jsonl")
        write_records(folder / "data.jsonl", num_records, num_tokens)
        started, cpu_started = time.monotonic(), time.process_time()
        prepare(folder / "run", model, folder / "data.jsonl")
        took_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        alone, alone_cpu_s, mean = encode_alone(model, folder / "data.jsonl")
    rate = num_records / took_s
    return {
        "records": num_records,
        "tokens": round(mean),
        "seconds": took_s,
        "cpu_s": cpu_s,
        "peak_bytes": peak,
        "rate": rate,
        "alone": alone,
        "share": rate / alone,
        "cpu_share": alone_cpu_s * num_records / cpu_s,
    }


def encode_alone(model: Path, data: Path) -> tuple[float, float, float]:
    """Rendered records a second of `encode_batch`, its processor time for one, and their mean number of tokens."""
    from spin_components.data.records import RecordStream
    from spin_components.data.rendering import Renderer
    from spin_components.data.turn_ends import find_eos_ids
    from spin_components.model.folder import load_tokenizer
    from spin_components.settings.run import ModelSettings

    tokenizer = load_tokenizer(model, ModelSettings(base=str(model)))
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, None), max_length=4096, max_prompt_length=2048)
    records = islice(RecordStream(data, on_bad_record="fail"), _ENCODED)
    texts = [text.prompt + text.answer for text in (renderer.write(record.conversation) for record in records)]
    num_tokens, took_s, cpu_s = 0, 0.0, 0.0
    for start in range(0, len(texts), _BATCH):
        started, cpu_started = time.monotonic(), time.process_time()
        encodings = tokenizer.backend_tokenizer.encode_batch(texts[start : start + _BATCH], add_special_tokens=False)
        took_s += time.monotonic() - started
        cpu_s += time.process_time() - cpu_started
        num_tokens += sum(map(len, encodings))
    return len(texts) / took_s, cpu_s / len(texts), num_tokens / len(texts)


def main() -> None:
    """Measure every size and print a table for each length."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--tokens", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "RECORDS", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, *size = options.one
        sys.stdout.write(json.dumps(measure(Path(model), *map(int, size))) + "\n")
        return
    from spin_components.data.builtin import make_tiny_llama

    done = []
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_llama(model := Path(folder, "model"))
        for tokens in options.tokens:
            rows = [_in_a_process(model, records, tokens) for records in options.records]
            done += rows
            _print(rows)
    if options.json:
        options.json.write_text(json.dumps(done, indent=1))


def _in_a_process(model: Path, records: int, tokens: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(model), str(records), str(tokens)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def _print(rows: list[dict[str, float]]) -> None:
    lines = [
        "| records | tokens | seconds | CPU, s | peak, GiB | records/s | encode_batch alone | share | of CPU time |"
    ]
    lines += ["| - " * 9 + "|"]
    lines += [
        f"| {row['records']:,} | {row['tokens']} | {row['seconds']:.1f} | {row['cpu_s']:.1f} "
        f"| {row['peak_bytes'] / 2**30:.2f} | {row['rate']:.0f} | {row['alone']:.0f} | {row['share']:.0%} | {row['cpu_share']:.0%} |"
        for row in rows
    ]
    for less, more in pairwise(rows):
        exponent = math.log(more["cpu_s"] / less["cpu_s"]) / math.log(more["records"] / less["records"])
        peaks = more["peak_bytes"] / less["peak_bytes"]
        lines.append(
            f"{less['records']:,} to {more['records']:,}: time exponent {exponent:.2f}, peak {peaks:.2f} times"
        )
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
