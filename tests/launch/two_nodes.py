"""A real Slurm of two nodes on this machine: started in a folder, on loopback alone, ended by pid.

Two slurmd with names of their own, each in a private view of /etc/hosts in which the names of the
nodes are known; munge and, for accounting, MariaDB with sockets in the folder. Tried with Debian
12: apt-get install slurm-wlm slurm-wlm-basic-plugins munge slurmdbd mariadb-server.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NODES = ("n1", "n2")

_SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_setup_env_fail
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
MinJobAge=600
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
MaxArraySize={largest}
{accounting}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {node}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {node}
PartitionName=main Nodes=n1,n2 Default=YES {open} PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n1,n2 {open} PriorityTier=10 PreemptMode=OFF
"""
_NODE = "CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/munge/socket"""
_DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
"""
# The fake accelerators of both nodes: any two files of devices.
_GRES = "AutoDetect=off\nNodeName=n1,n2 Name=gpu File=/dev/tty[0-1]\n"


def why_not(*, accounting: bool) -> str:
    """Why a cluster cannot be started here; empty where it can."""
    names = ["slurmctld", "slurmd", "munged", "sbatch", "unshare"]
    names += ["slurmdbd", "mariadbd", "mariadb-install-db"] if accounting else []
    missing = [name for name in names if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: see tests/launch/two_nodes.py for the packages"
    if os.geteuid():
        return "slurmd needs root"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        return "no private mounts here (unshare -m)"
    return ""


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class TwoNodes:
    """A cluster in a folder; ``environment`` is what the commands of Slurm need to find it."""

    def __init__(self, root: Path, *, accounting: bool = True, largest: int = 1001) -> None:
        self.root, self.accounting, self.largest = root, accounting, largest
        self.environment = {"SLURM_CONF": str(root / "slurm.conf"), "PATH": _PATH}
        self._ports = _free_ports(4)
        self._daemons: list[Path] = []
        self._database: subprocess.Popen | None = None

    def start(self) -> None:
        """Start everything; returns when both nodes are idle."""
        for name in ("state", "log", "run", "munge", "spool.n1", "spool.n2"):
            (self.root / name).mkdir(parents=True)
        self._write()
        self._start_munge()
        if self.accounting:
            self._start_database()
        self._daemon(["slurmctld", "-f", f"{self.root}/slurm.conf"], "slurmctld")
        for node in NODES:
            inner = f"mount --bind {self.root}/hosts /etc/hosts; exec slurmd "
            inner += f"-f {self.root}/slurm.conf -N {node}"
            self._daemon(["unshare", "-m", "bash", "-c", inner], f"slurmd.{node}")
        self.wait_for_nodes()

    def wait_for_nodes(self, seconds: float = 60.0) -> None:
        """Wait until both nodes are idle."""
        until = time.monotonic() + seconds
        while (idle := self.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle")).count("\n") != 2:
            if time.monotonic() > until:
                raise TimeoutError(f"nodes are not idle: {idle}{self.ask('sinfo')}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Cancel all jobs, then end every daemon by its number, the last started first."""
        if (self.root / "run" / "slurmctld.pid").exists():
            self.ask("scancel", "-u", "root")
            until = time.monotonic() + 30
            while self.ask("squeue", "-h") and time.monotonic() < until:
                time.sleep(0.5)
        for path in reversed(self._daemons):
            if path.name == "mariadbd.pid" and self._database is not None:
                self._database.terminate()
                self._database.wait(timeout=30)
            _end(path)

    def ask(self, *words: str) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(words, capture_output=True, text=True, env=self._whole(), timeout=60)
        return done.stdout

    def listens(self) -> set[str]:
        """Addresses on which the daemons listen."""
        pids = {path.read_text().strip() for path in self._daemons if path.exists()}
        lines = self.ask("ss", "-Hltnp").splitlines()
        mine = [line for line in lines if any(f"pid={pid}," in line for pid in pids)]
        return {line.split()[3].rpartition(":")[0] for line in mine}

    def node_process(self, node: str) -> int:
        """Number of a node's slurmd, in whose view of the disk its jobs run."""
        return int((self.root / "run" / f"slurmd.{node}.pid").read_text())

    def _whole(self) -> dict[str, str]:
        return os.environ | self.environment

    def _daemon(self, words: list[str], name: str, **more: str) -> None:
        """Start a program that puts itself into the background and writes its number."""
        subprocess.run(words, check=True, env=self._whole() | more, timeout=60)
        self._daemons.append(self.root / "run" / f"{name}.pid")

    def _write(self) -> None:
        host = socket.gethostname().partition(".")[0]
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = _ACCOUNTING.format(port=self._ports[3], root=self.root)
        text = _SLURM.format(
            host=host,
            root=self.root,
            ports=self._ports,
            accounting=accounting,
            largest=self.largest,
            node=_NODE,
            open="MaxTime=INFINITE State=UP",
        )
        (self.root / "slurm.conf").write_text(text)
        (self.root / "gres.conf").write_text(_GRES)
        known = Path("/etc/hosts").read_text()
        (self.root / "hosts").write_text(f"{known}\n127.0.0.1 {' '.join(NODES)}\n")

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        folder.chmod(0o755)
        words = ["munged", "--force", f"--socket={folder}/socket", f"--key-file={folder}/key"]
        words += [f"--pid-file={self.root}/run/munged.pid", f"--log-file={folder}/log"]
        self._daemon([*words, f"--seed-file={folder}/seed"], "munged")

    def _start_database(self) -> None:
        folder, number = self.root / "mysql", self.root / "run" / "mariadbd.pid"
        words = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}", "--user=root"]
        words += ["--auth-root-authentication-method=normal", "--skip-test-db"]
        log = (self.root / "log" / "mariadb.log").open("wb")
        subprocess.run(words, check=True, stdout=log, stderr=log, timeout=120)
        place = f"{self.root}/mysql.socket"
        words = [shutil.which("mariadbd", path=_PATH) or "mariadbd", "--no-defaults", "--user=root"]
        words += [f"--datadir={folder}", "--skip-networking", f"--socket={place}"]
        self._database = subprocess.Popen(
            [*words, f"--pid-file={number}"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._daemons.append(number)
        _wait(lambda: Path(place).exists() and number.exists(), "MariaDB")
        text = _DATABASE.format(root=self.root, port=self._ports[3])
        (self.root / "slurmdbd.conf").write_text(text)
        (self.root / "slurmdbd.conf").chmod(0o600)
        conf = str(self.root / "slurmdbd.conf")
        self._daemon(["slurmdbd"], "slurmdbd", SLURM_CONF=conf, MYSQL_UNIX_PORT=place)
        _wait(lambda: _answers(self._ports[3]), "slurmdbd")
        self.ask("sacctmgr", "-i", "add", "cluster", "test")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _wait(ready, what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not start")
        time.sleep(0.1)


def _end(path: Path) -> None:
    try:
        pid = int(path.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
