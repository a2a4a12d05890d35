"""SLURM's commands as far as a workflow uses them, on one machine: jobs run at once, `srun -n` starts copies.

Called by the name of the command; FAKE_SLURM names the folder that holds the jobs: each has its submission's words in
`command.json`, its output where sbatch was told, and its state. Allocations are believed, not made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ.get("FAKE_SLURM", "."))


def option(words: list[str], *names: str) -> str | None:
    """The value of `--name=value` or `--name value`, of the last one given."""
    found = None
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            found = value if equals else words[position + 1]
    return found


def sbatch(words: list[str]) -> int:
    """Run the job in the background and print its id."""
    number = 1001 + len(list(ROOT.glob("job-*")))
    job = ROOT / f"job-{number}"
    job.mkdir()
    (job / "command.json").write_text(json.dumps(words))
    (job / "state").write_text("RUNNING")
    output = Path(str(option(words, "--output")).replace("%j", str(number)))
    environment = os.environ | {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": option(words, "--nodes") or "1"}
    script = 'bash -c "$1"; code=$?; [ $code = 0 ] && state=COMPLETED || state=FAILED; echo $state > "$2"'
    with open(output, "w") as log:
        subprocess.Popen(
            ["bash", "-c", script, "job", str(option(words, "--wrap")), str(job / "state")],
            cwd=option(words, "-D"), env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    print(number)
    return 0


def sacct(_: list[str]) -> int:
    """The state of every job."""
    for job in sorted(ROOT.glob("job-*")):
        print(f"{job.name.removeprefix('job-')}|{(job / 'state').read_text().strip()}")
    return 0


def srun(words: list[str]) -> int:
    """Start as many copies of the command as there are tasks, each on a node of its own, and wait for them."""
    begin = next(i for i, word in enumerate(words) if not word.startswith("-"))
    own, command = words[:begin], words[begin:]
    with open(ROOT / "srun.jsonl", "a") as log:
        log.write(json.dumps(words) + "\n")
    tasks = int(option(own, "--ntasks") or 1)
    copies = [
        subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(task), "SLURM_PROCID": str(task)})
        for task in range(tasks)
    ]
    return max(abs(copy.wait()) for copy in copies)


def sinfo(_: list[str]) -> int:
    """One partition, which is the default."""
    print("PARTITION\ngpus*")
    return 0


def nothing(_: list[str]) -> int:
    """Accept and do nothing."""
    return 0


COMMANDS = {"sbatch": sbatch, "sacct": sacct, "srun": srun, "sinfo": sinfo}

if __name__ == "__main__":
    sys.exit(COMMANDS.get(sys.argv[1], nothing)(sys.argv[2:]))
