"""How long the check of a large data set takes and how much memory, and that it names every planted fault and no other.

    python tests/bench/data_check.py [--pictures 2500 10000] [--photos FOLDER] [--work FOLDER]

Makes data sets of about these sizes (pictures of 256 to 1024 px a side, a quarter with faults), and examines each in a
program of its own, as `atelier data check --flip --tokenizer` does. Making 10,000 takes some minutes and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import planted_faults


def examined(folder: Path, tokenizer: Path) -> dict:
    """What one examination takes and finds; to be called in a program that has done nothing else."""
    from sd_atelier.lib.config import ConceptConfig, DataConfig
    from sd_atelier.lib.data.findings import examine, summary
    from sd_atelier.lib.data.tag_rules import tag_rules
    from sd_atelier.lib.standalone.commands.data import token_counter

    data = DataConfig(concepts=(ConceptConfig(folder=str(folder)),), flip=True)
    count = token_counter(tokenizer)
    before, start, processor = _peak_mib(), time.monotonic(), time.process_time()
    found = examine(data, tag_rules(), count)
    page = summary(found.problems, folder)
    return {
        "seconds": time.monotonic() - start,
        "processor_seconds": time.process_time() - processor,
        "before_mib": before,
        "peak_mib": _peak_mib(),
        "num_usable": len(found.samples),
        "page": page,
        "found": sorted({(p.heading, f.relative_to(folder).as_posix()) for p in found.problems for f in p.about}),
    }


def _peak_mib() -> float:
    # not getrusage, whose peak is still that of the program which started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[2500, 10_000])
    parser.add_argument("--photos", type=Path, help="photographs that lend the scenes their texture")
    parser.add_argument("--work", type=Path, help="where the sets are made, and left; else a temporary folder")
    parser.add_argument("--examine", type=Path, nargs=2, metavar=("FOLDER", "TOKENIZER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.examine:
        print(json.dumps(examined(*args.examine)))
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for num in args.pictures:
            folder, record = work / f"{num}", work / f"{num}.json"
            if not record.exists():
                record.write_text(json.dumps(sorted(planted_faults.plant(folder, num, num, args.photos))))
            planted = {tuple(fault) for fault in json.loads(record.read_text())}
            captions = (path.read_text("utf-8", "ignore")[:5000] for path in folder.rglob("*.txt"))
            planted_faults.write_tokenizer(work / "tokenizer", captions)
            num_bytes = sum(path.lstat().st_size for path in folder.rglob("*"))
            run = subprocess.run(
                [sys.executable, __file__, "--examine", str(folder), str(work / "tokenizer")],
                capture_output=True,
                text=True,
                check=True,
            )
            result = json.loads(run.stdout)
            found = {tuple(fault) for fault in result["found"]}
            for what, faults in (("missed", planted - found), ("not planted", found - planted)):
                for heading, name in sorted(faults):
                    print(f"  {what}: {name} {heading}")
                wrong += len(faults)
            print(
                f"{num} pictures ({num_bytes / 1e6:.0f} MB), {len(planted)} faults planted, {len(found)} named; "
                f"{result['seconds']:.1f} s ({result['processor_seconds']:.1f} s of processors), peak "
                f"{result['peak_mib']:.0f} MiB, {result['peak_mib'] - result['before_mib']:.0f} above the start; "
                f"a page of {len(result['page'])} lines",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
