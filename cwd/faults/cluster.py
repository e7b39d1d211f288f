"""A real SLURM of one node with two processors, in a folder of its own, for tests: started and ended by this file.

It touches no configuration of the machine: clients find it by SLURM_CONF. The partition ``urgent`` takes the processors
from ``main``, whose jobs get GRACE seconds and are queued again.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cwd.errors import UserError

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
INSTALL = "apt-get install slurm-wlm munge"
GRACE = 20  # seconds between the signal of a preemption and the end
STARTING = 60.0  # seconds within which a daemon must be ready
UP = ("idle", "mixed", "allocated")  # of a node

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


@dataclass
class Cluster:
    """A running cluster. ``variables``: of the environment, with which clients find it."""

    folder: Path
    variables: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, command: Sequence[str]) -> None:
        """Starts a daemon."""
        with open(self.folder / "daemons.log", "ab") as log:
            self.daemons[Path(command[0]).name] = subprocess.Popen(
                command, env={**os.environ, **self.variables}, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self) -> None:
        """Starts the node's daemon, and waits until jobs can run there."""
        self.start([str(find("slurmd")), "-D", "-N", "localhost"])
        self.until(lambda: ask(["sinfo", "-h", "-o", "%T"], self.variables).split("\n")[0] in UP, "slurmd")

    def lose_node(self) -> None:
        """kill -9 of the node's daemon and of all that it has started, as when the power fails; the controller is told
        at once what it would find out by itself after some minutes.
        """
        jobs = self.job_processes()
        watchers = {parent for pid in jobs if _name(parent := _parent(pid)) == "slurmstepd"}
        self.daemons["slurmd"].kill()
        self.daemons["slurmd"].wait()
        for pid in [*sorted(watchers), *sorted(jobs)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ask(["scontrol", "update", "NodeName=localhost", "State=DOWN", "Reason=lost"], self.variables)

    def job_processes(self) -> dict[int, dict[str, str]]:
        """The environments of the processes of this cluster's jobs, by their numbers."""
        found = {int(path.name): _variables(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
        own = self.variables["SLURM_CONF"]
        return {pid: one for pid, one in found.items() if one.get("SLURM_CONF") == own and "SLURM_JOB_ID" in one}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a daemon. Raises UserError: it does not come."""
        end = time.monotonic() + STARTING
        while not condition():
            if time.monotonic() > end:
                said = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.rglob("*log"))
                raise UserError(f"no SLURM: {what} is not ready after {STARTING:.0f} s\n{said}")
            time.sleep(0.5)


@contextmanager
def one_node() -> Iterator[Cluster]:
    """A running cluster, whose jobs and daemons end with it.

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
    cluster = Cluster(folder, {"SLURM_CONF": str(conf)})
    try:
        cluster.start(_munge(folder / "munge"))
        cluster.until(lambda: (folder / "munge" / "socket").exists(), "munged")
        cluster.start([str(find("slurmctld")), "-D"])
        cluster.start_node()
        yield cluster
    finally:
        _end_jobs(cluster.variables)
        for daemon in reversed(cluster.daemons.values()):
            daemon.terminate()
        for daemon in cluster.daemons.values():
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def ask(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """What a client of the cluster prints; "" if it fails."""
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
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


def _end_jobs(variables: Mapping[str, str]) -> None:
    ask(["scancel", "--user", getpass.getuser()], variables)
    end = time.monotonic() + STARTING
    while ask(["squeue", "-h"], variables) and time.monotonic() < end:
        time.sleep(0.5)


def _variables(process: Path) -> dict[str, str]:
    """The environment that a process of /proc was started with; {} if it has ended, or is another user's."""
    try:
        words = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _parent(pid: int) -> int:
    """The number of a process's parent, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _name(pid: int) -> str:
    """What a process's program is called, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
