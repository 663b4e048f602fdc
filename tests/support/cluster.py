"""A Slurm cluster on one machine: real munged, slurmctld and several slurmd, started in seconds.

Every node is a slurmd in namespaces of its own: it has its own host name and its own processes, so
killing it ends everything that runs on it, as a power cut would. The daemons die with the process
that started them, however that ends, and nothing outside the cluster's folder is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "gcc", "unshare")
PLUGIN = Path(__file__).with_name("container_options.c")
PREFIX = "slurm-test-"
NODES = ("node1", "node2", "node3", "node4")
_Found = TypeVar("_Found")


def missing() -> str:
    """Return why no cluster can be started here, '' where one can."""
    lacking = [name for name in PROGRAMS if not _which(name)]
    if not Path("/usr/include/slurm/spank.h").is_file():
        lacking.append("slurm/spank.h")
    if lacking:
        return f"{', '.join(lacking)} cannot be found: run tests/support/slurm_packages.sh as root"
    return "" if os.geteuid() == 0 else "only root can give the nodes host names of their own"


class Cluster:
    """A running cluster in a folder of its own; a context manager that stops it."""

    def __init__(
        self,
        nodes: Sequence[str] = NODES,
        settings: Mapping[str, str] | None = None,
        partitions: Sequence[str] = (),
        without: str = "",
    ) -> None:
        """`settings` and `partitions` are further lines of slurm.conf; `without` drops plugins."""
        self.nodes = tuple(nodes)
        self._settings, self._partitions, self._without = settings or {}, partitions, without
        _remove_left_overs()
        # Under /tmp, because the path of a socket has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.disk = self.folder / "disk"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._controller_port, *self._node_ports = _free_ports(1 + len(self.nodes))

    def __enter__(self) -> Cluster:
        try:
            self._write_configuration()
            self.disk.mkdir()
            self.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.disk))
            self._start_munge()
            self.start_controller()
            for name in self.nodes:
                self.start_node(name)
            self.wait_for(lambda: self._ready(), 30, "the nodes to be idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            process.kill()
        for process in self._running.values():
            process.wait()
        _remove(self.folder)

    @property
    def environ(self) -> dict[str, str]:
        """What a user's shell needs to reach this cluster, to be added to its environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(
        self, *command: str, environ: Mapping[str, str] | None = None, check: bool = True
    ) -> str:
        """Run a command as a user of the cluster, return its output. AssertionError if it fails."""
        done = subprocess.run(
            command, env={**os.environ, **self.environ, **(environ or {})},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """Return what `scontrol show job` tells, by its own names; empty for an unknown job."""
        told = self.run("scontrol", "--oneliner", "show", "job", job_id, check=False)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def state(self, job_id: str) -> str:
        """Return a job's state: PENDING, RUNNING, COMPLETED, …"""
        return self.job(job_id).get("JobState", "")

    def wait_for(self, what: Callable[[], _Found], seconds: float, name: str) -> _Found:
        """Return what the function gives, once that is true. AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() > end:
                queue = self.run("squeue", "--long", check=False)
                nodes = self.run("sinfo", "--long", "--Node", check=False)
                raise AssertionError(f"waited {seconds} s for {name}\n{queue}{nodes}")
            time.sleep(0.2)
        return found

    def wait_for_end(self, job_id: str, seconds: float) -> dict[str, str]:
        """Wait until a job has ended for good, and return what Slurm tells of it."""
        living = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")
        return self.wait_for(
            lambda: (job := self.job(job_id)).get("JobState") not in living and job,
            seconds, f"job {job_id} to end",
        )  # fmt: skip

    def resize_disk(self, mebibytes: int) -> Path:
        """Return a folder on a disk of this size, which all nodes share. It keeps what it holds."""
        self.run("mount", "-o", f"remount,size={mebibytes}m", str(self.disk))
        return self.disk

    def start_controller(self) -> None:
        """Start slurmctld; with the state of an earlier one, it carries on from there."""
        self._start("slurmctld", "slurmctld", "-D", "-f", self._file("slurm.conf"))

    def stop_controller(self) -> None:
        """Kill slurmctld; jobs go on running without it."""
        self._kill("slurmctld")

    def start_node(self, name: str) -> None:
        """Start a node, with an empty memory of what ran on it."""
        daemon = f"slurmd -D -f {self._file('slurm.conf')} -N {name}"
        hosts = f"hostname {name}; mount --bind {self._file('hosts')} /etc/hosts"
        # The shell is the node's first process and reaps what jobs leave behind.
        self._start(
            name, "unshare", "--fork", "--pid", "--kill-child", "--mount-proc", "--uts",
            "sh", "-c", f"{hosts}; {daemon} & wait",
        )  # fmt: skip

    def kill_node(self, name: str) -> None:
        """End a node and everything that runs on it, at once."""
        self._kill(name)

    def offer_containers(self, offer: bool = True) -> None:
        """Let srun and sbatch know pyxis's options, or not; see container_options.c."""
        library = self.folder / "container_options.so"
        if offer and not library.exists():
            self.run("gcc", "-shared", "-fPIC", "-Wall", "-o", str(library), str(PLUGIN))
        (self.folder / "plugstack.conf").write_text(f"required {library}\n" if offer else "")

    def processes(self, word: str) -> list[int]:
        """Return the ids of this machine's living processes with `word` in their command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has just ended
                continue
            if word in words and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        return found

    def _ready(self) -> bool:
        told = self.run("sinfo", "--noheader", "--format=%T %D", check=False)
        return told.split()[:2] == ["idle", str(len(self.nodes))]

    def _other_plugins(self) -> Path:
        """Return a folder of Slurm's plugins without those whose name begins as asked."""
        folder = self.folder / "plugins"
        folder.mkdir()
        for path in _plugins().iterdir():
            if not path.name.startswith(self._without):
                (folder / path.name).symlink_to(path)
        return folder

    def _file(self, name: str) -> str:
        return str(self.folder / name)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"seed-file": "munge.seed", "log-file": "munged.log"}
        options = [f"--{option}={self._file(name)}" for option, name in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        self.wait_for((self.folder / "munge.socket").exists, 10, "munged")

    def _start(self, name: str, *command: str) -> None:
        log = self.folder / f"{name}.out"
        with ExitStack() as opened:
            output = opened.enter_context(log.open("ab"))
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "PATH": _search_path()},
            )  # fmt: skip

    def _kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _write_configuration(self) -> None:
        nodes = [
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} "
            "CPUs=16 RealMemory=20000"
            for name, port in zip(self.nodes, self._node_ports)
        ]
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": "localhost(127.0.0.1)",
            "SlurmctldPort": str(self._controller_port),
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # A requeued job waits this long, in seconds, before it starts again.
            "AuthInfo": f"socket={self._file('munge.socket')},cred_expire=5",
            "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny,DisableIPv6",
            "StateSaveLocation": self._file("state"),
            "SlurmdSpoolDir": self._file("spool.%n"),
            "TmpFS": self._file("tmp.%n"),  # PMIx asks for one that no other node has
            "SlurmdPidFile": self._file("slurmd.%n.pid"),
            "SlurmdLogFile": self._file("slurmd.%n.log"),
            "SlurmctldPidFile": self._file("slurmctld.pid"),
            "SlurmctldLogFile": self._file("slurmctld.log"),
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "JobCompType": "jobcomp/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",  # more CPUs than this machine has
            "SchedulerParameters": "batch_sched_delay=0,bf_interval=2",
            "ReturnToService": "2",
            "SlurmdTimeout": "5",
            "MessageTimeout": "5",
            "KillWait": "5",
            "PlugStackConfig": self._file("plugstack.conf"),
        }
        partitions = [
            "PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE",
            f"PartitionName=debug Nodes={self.nodes[0]} MaxTime=30",
        ]
        if self._without:
            settings["PluginDir"] = str(self._other_plugins())
        settings.update(self._settings)
        partitions += self._partitions
        lines = [f"{name}={value}" for name, value in settings.items()]
        self.offer_containers(False)
        for name in ("state", *(f"tmp.{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text("\n".join([*lines, *nodes, *partitions, ""]))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        hosts = Path("/etc/hosts").read_text(encoding="utf-8")
        (self.folder / "hosts").write_text(f"{hosts}\n127.0.0.1 {' '.join(self.nodes)}\n")


def _plugins() -> Path:
    """Return the folder of Slurm's own plugins."""
    (found,) = Path("/usr/lib").glob("*/slurm-wlm")
    return found


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _which(name: str) -> str | None:
    return shutil.which(name, path=_search_path())


def _remove_left_overs() -> None:
    """Remove the folders of clusters whose process was killed; their daemons died with it."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        owner = folder.name[len(PREFIX) :].split("-")[0]
        if not Path("/proc", owner).exists():
            _remove(folder)


def _remove(folder: Path) -> None:
    subprocess.run(["umount", "--quiet", "--lazy", str(folder / "disk")], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, below those that outgoing connections are given."""
    with ExitStack() as opened:
        ports: list[int] = []
        start = 18000 + os.getpid() * 16 % 2000
        for port in range(start, start + 10000):
            tried = opened.enter_context(socket.socket())
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError("no free ports")
