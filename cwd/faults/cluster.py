"""A real SLURM of one node with two processors, in a folder of its own, for tests: started and ended by this file.

It touches no configuration of the machine: clients find it by SLURM_CONF. The partition ``urgent`` takes the processors
from ``main``, whose jobs get GRACE seconds and are queued again.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cwd.errors import UserError

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
INSTALL = "apt-get install slurm-wlm munge"
GRACE = 20  # seconds between the signal of a preemption and the end
STARTING = 60.0  # seconds within which the node must be idle

CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=20
JobRequeue=1
SchedulerParameters=sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What keeps a SLURM from being started here; None if nothing does."""
    missing = [name for name in NEEDED if not find(name)]
    if missing:
        return f"{', '.join(missing)} not installed: {INSTALL}"
    if os.geteuid() != 0:
        return f"SLURM's daemons start jobs as their users, and need root; this is {getpass.getuser()}"
    return None


def find(name: str) -> str | None:
    """Where a daemon is: they are often outside of PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def one_node() -> Iterator[dict[str, str]]:
    """A running cluster: the environment variables with which clients find it. Its jobs and daemons end with it.

    Raises:
        UserError: it cannot be started here; :func:`why_not` says so beforehand.
    """
    if reason := why_not():
        raise UserError(f"no SLURM: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    os.chmod(folder, 0o755)
    ports = _free_ports(2)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, ports=ports, grace=GRACE))
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    found = {"SLURM_CONF": str(conf)}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_start(_munge(folder / "munge"), folder, found))
        _until(lambda: (folder / "munge" / "socket").exists(), "munged", folder)
        daemons.append(_start([str(find("slurmctld")), "-D"], folder, found))
        daemons.append(_start([str(find("slurmd")), "-D", "-N", "localhost"], folder, found))
        _until(lambda: "idle" in ask(["sinfo", "-h", "-o", "%T"], found), "slurmd", folder)
        yield found
    finally:
        _end_jobs(found)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def ask(command: Sequence[str], found: dict[str, str]) -> str:
    """What a client of the cluster prints; "" if it fails."""
    done = subprocess.run(command, env={**os.environ, **found}, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""


def _munge(folder: Path) -> list[str]:
    """The command of a munged with a key of its own."""
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for path in (folder, key):
        shutil.chown(path, "munge", "munge")
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder / name}" for option, name in names.items()]
    return ["runuser", "-u", "munge", "--", str(find("munged")), "--foreground", *options]


def _start(command: Sequence[str], folder: Path, found: dict[str, str]) -> subprocess.Popen[bytes]:
    with open(folder / "daemons.log", "ab") as log:
        return subprocess.Popen(command, env={**os.environ, **found}, stdout=log, stderr=log, start_new_session=True)


def _until(condition: Callable[[], bool], what: str, folder: Path) -> None:
    end = time.monotonic() + STARTING
    while not condition():
        if time.monotonic() > end:
            said = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.rglob("*log"))
            raise UserError(f"no SLURM: {what} is not ready after {STARTING:.0f} s\n{said}")
        time.sleep(0.5)


def _end_jobs(found: dict[str, str]) -> None:
    ask(["scancel", "--user", getpass.getuser()], found)
    end = time.monotonic() + STARTING
    while ask(["squeue", "-h"], found) and time.monotonic() < end:
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
