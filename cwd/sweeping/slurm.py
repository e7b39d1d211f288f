"""What SLURM says of jobs, by squeue alone, as accounting (sacct) is not everywhere. Jobs that have ended leave it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

KILLS = 10  # restarts after which a run that is killed (out of memory, say) is left as it is


def queue() -> dict[str, str] | None:
    """Job -> state (PENDING, RUNNING, COMPLETING, ...) of this user's jobs that have not ended; tasks of an array by
    themselves ("12_0"). None if squeue is not there or has no answer now.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format", "%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {words[0]: words[1] for line in done.stdout.splitlines() if len(words := line.split()) == 2}


def batch_setup(code: Path) -> list[str]:
    """Lines of the batch script before the run starts: where its code is, and what happens when it ends by a signal.

    A run that got SIGTERM, SIGUSR1 or SIGUSR2 saves and ends with 128 + the signal's number; one that is killed leaves
    137 behind. While SLURM believes that the job is RUNNING, nobody else will requeue it, so the script does; a job
    that SLURM itself ends (scancel, scontrol requeue, preemption without grace) is COMPLETING, and its matter.
    """
    again = (
        'code=$?; if [ $code -eq 137 ] && [ "${SLURM_RESTART_COUNT:-0}" -ge ' + str(KILLS) + " ]; then exit $code; fi; "
        'if [ $code -ge 128 ] && [ "$(squeue -h -j $SLURM_JOB_ID -o %T)" = RUNNING ]; '
        "then scontrol requeue $SLURM_JOB_ID; fi"
    )
    return [
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        f"trap {shlex.quote(again)} EXIT",
    ]
