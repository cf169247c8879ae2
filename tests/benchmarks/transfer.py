"""How fast files go to and from object storage, against `minio`'s own `fput_object` and `fget_object`.

`python tests/benchmarks/transfer.py [--mib 1024] [--files 4] [--rounds 3]` starts an S3 server of its own on this
machine, moves the same folder by both ways in turn, and prints medians, their ratio and the memory each took. Ours
hashes every byte on the way up and on the way down; theirs does not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from spin_components.store.bucket import Bucket
from spin_components.store.transfer import Transfers
from support.s3_server import BUCKET, S3Server


def ours_up(folder: Path) -> None:
    """Upload with SHA-256."""
    transfers = Transfers(Bucket(BUCKET))
    transfers.upload_all({path: f"ours/{path.name}" for path in sorted(folder.iterdir())})
    transfers.close()


def theirs_up(folder: Path) -> None:
    """Upload one file after the other, each in three parts at a time."""
    client = Bucket(BUCKET)._client
    for path in sorted(folder.iterdir()):
        client.fput_object(BUCKET, f"theirs/{path.name}", str(path))


def ours_down(folder: Path) -> None:
    """Download with SHA-256."""
    transfers = Transfers(Bucket(BUCKET))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        transfers.download_all({f"ours/{name}": (Path(target, name), size) for name, size in sizes.items()})
    transfers.close()


def theirs_down(folder: Path) -> None:
    """Download one file after the other."""
    client = Bucket(BUCKET)._client
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        for path in sorted(folder.iterdir()):
            client.fget_object(BUCKET, f"theirs/{path.name}", str(Path(target, path.name)))


def measured(work: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Seconds, and MiB of memory beyond what the process had before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, folder))


def _measure(work: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    Bucket(BUCKET)  # imports and certificates are no part of it
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew, see proc(5)
    before = _peak_mib()
    started = time.monotonic()
    work(folder)
    return time.monotonic() - started, _peak_mib() - before


def _peak_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files and the server's data lie; default: a temporary folder")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="transfer-", dir=options.folder))
    server = S3Server(root / "server")
    os.environ.update(server.variables)
    try:
        folder = root / "files"
        folder.mkdir()
        for number in range(options.files):
            (folder / f"{number}.bin").write_bytes(os.urandom((options.mib << 20) // options.files))
        rounds: dict[str, list[tuple[float, float]]] = {}
        ways = [(ours_up, theirs_up), (ours_down, theirs_down)]
        for number in range(options.rounds):
            for work in (work for pair in ways for work in pair[:: 1 - 2 * (number % 2)]):  # who is first, in turn
                rounds.setdefault(work.__name__, []).append(measured(work, folder))
    finally:
        server.kill()
        shutil.rmtree(root)
    report(options.mib, rounds)


def report(mib: int, rounds: dict[str, list[tuple[float, float]]]) -> None:
    """Medians of speed, the most memory, and the ratios."""
    speed = {name: mib / statistics.median(seconds for seconds, _ in found) for name, found in rounds.items()}
    for name, found in rounds.items():
        sys.stdout.write(f"{name}: {', '.join(f'{mib / seconds:.0f}' for seconds, _ in found)} MiB/s\n")
    memory = {name: max(extra for _, extra in found) for name, found in rounds.items()}
    lines = [f"{'':12}{'MiB/s':>8}{'extra MiB':>11}"]
    lines += [f"{name:12}{speed[name]:8.0f}{memory[name]:11.0f}" for name in speed]
    ratios = {way: speed[f"ours_{way}"] / speed[f"theirs_{way}"] for way in ("up", "down")}
    lines += [f"ours to theirs: up {ratios['up']:.2f}, down {ratios['down']:.2f}"]
    sys.stdout.write("\n".join(lines) + "\n" + json.dumps({"speed": speed, "memory": memory, "ratios": ratios}) + "\n")


if __name__ == "__main__":
    main()
