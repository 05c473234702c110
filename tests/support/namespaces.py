"""Network namespaces of this machine on one bridge, whose lines lose packets and can be cut: nodes of a cluster in all but processors.

Packets are dropped by a filter of four instructions in each namespace's interface (tc, cls_bpf), which kernels have that were built
without netem. Nothing of it reaches the machine's own network: the bridge has a namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

NETWORK = "198.51.100"  # RFC 5737: addresses that belong to nobody
RANDOM = 0xFFFFF000 + 56  # where a filter reads 32 random bits: SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h
DROP, PASS = 2, 0xFFFFFFFF  # TC_ACT_SHOT and TC_ACT_UNSPEC of linux/pkt_cls.h


def run(line: str, *words: str) -> str:
    """The output of a command. Raises OSError with what it says."""
    done = subprocess.run([*line.split(), *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{line}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Net:
    """`hosts` namespaces with the addresses 198.51.100.1 and up; the bridge has the namespace `hub`."""

    prefix: str
    hosts: list[str] = field(default_factory=list)

    @property
    def hub(self) -> str:
        return f"{self.prefix}hub"

    def add(self, loss: float) -> None:
        """Another host, that sends a packet with probability 1 - loss."""
        number = len(self.hosts) + 1
        name = f"{self.prefix}{number}"
        run(f"ip netns add {name}")
        self.hosts.append(name)
        run(f"ip -n {self.hub} link add port{number} type veth peer name eth0 netns {name}")
        run(f"ip -n {self.hub} link set port{number} up master bridge")
        run(f"ip -n {name} link set lo up")
        # Packets as they are on a wire: the kernel would hand 64 KiB over at once, and the filter drop them at once.
        run(f"ip -n {name} link set eth0 up gso_max_segs 1")
        run(f"ip -n {name} addr add {address(number - 1)}/24 dev eth0")
        run(f"ip -n {name} route add default via {NETWORK}.254")  # Ray asks the kernel by which address it would leave
        run(f"tc -n {name} qdisc add dev eth0 clsact")
        program = f"4,32 0 0 {RANDOM},37 1 0 {int(loss * 2**32)},6 0 0 {DROP},6 0 0 {PASS}"
        run(f"tc -n {name} filter add dev eth0 egress bpf da bytecode", program)

    def cut(self, host: int) -> None:
        """From now on nothing reaches the host nor leaves it; nobody is told."""
        run(f"ip -n {self.hub} link set port{host + 1} nomaster")

    def heal(self, host: int) -> None:
        run(f"ip -n {self.hub} link set port{host + 1} master bridge")

    def command(self, host: int, line: list[str]) -> list[str]:
        """A command line that runs in the host's namespace."""
        return ["ip", "netns", "exec", self.hosts[host], *line]

    def processes(self, host: int) -> set[int]:
        return {int(pid) for pid in run(f"ip netns pids {self.hosts[host]}").split()}

    def lost(self, host: int) -> int:
        """Packets of the host that the filter has dropped."""
        said = run(f"tc -n {self.hosts[host]} -s qdisc show dev eth0").partition("clsact")[2]
        return int(re.search(r"dropped (\d+)", said).group(1))

    def end(self) -> None:
        """Kills what runs in the namespaces."""
        deadline = time.monotonic() + 20
        while (left := set().union(*map(self.processes, range(len(self.hosts))))) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def remove(self) -> None:
        self.end()
        for name in (*self.hosts, self.hub):
            run(f"ip netns del {name}")


def address(host: int) -> str:
    return f"{NETWORK}.{host + 1}"


@contextlib.contextmanager
def network(count: int, loss: float) -> Iterator[Net]:
    """Raises OSError where namespaces may not be made."""
    made = Net(f"ps{os.getpid()}n")
    run(f"ip netns add {made.hub}")
    try:
        run(f"ip -n {made.hub} link add bridge type bridge")
        run(f"ip -n {made.hub} link set bridge up")
        for _ in range(count):
            made.add(loss)
        yield made
    finally:
        made.remove()
