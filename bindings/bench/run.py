"""Measures one stream of each library through the component on loopback, in turns: python run.py ROUNDS MEBIBYTES

FINGERPOST_PROGRAMS names the directory of `fingerpost` and `xtls`, FINGERPOST_BENCH that of the two programs `stream` and `stream_c`.
Writes the table of docs/BENCHMARKS.md between its marks.
"""

from __future__ import annotations

import datetime
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "python/tests"))

from world import COMPONENT, DOMAIN, PASSWORD, Program, World  # noqa: E402

PAGE = ROOT / "docs/BENCHMARKS.md"
START, END = "<!-- bindings: make bindings-bench writes this -->\n", "<!-- end of bindings -->\n"
BENCH = Path(os.environ["FINGERPOST_BENCH"]).resolve()
LIBRARIES = {
    "Rust": [BENCH / "stream"],
    "C": [BENCH / "stream_c"],
    "Python": [sys.executable, Path(__file__).with_name("stream.py")],
}
# The goals: MB/s, or a share of the Rust library's.
GOALS = {"C": "90 % of Rust", "Python": "300 MB/s"}


def children() -> float:
    """The processor time of all programs that have ended, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def running(program: Program) -> float:
    """The processor time of a program that runs, s."""
    fields = Path(f"/proc/{program._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} × {names[0] if names else os.uname().machine}"


def main() -> None:
    rounds, mebibytes = int(sys.argv[1]), int(sys.argv[2])
    size = mebibytes * 2**20
    world = World("prosody")
    rates: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    times: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    users = {"Rust": "owner", "C": "liar", "Python": "eve"}
    started, receivers = datetime.datetime.now(datetime.UTC), {}
    load = os.getloadavg()[0]
    try:
        place = [COMPONENT, f"127.0.0.1:{world.c2s}", world.directory / "cert.pem"]
        environment = {"XMPP_PASSWORD": PASSWORD}
        for name, program in LIBRARIES.items():
            user = users[name]
            receiver = Program(*program, "receive", f"{user}@{DOMAIN}", *place, world.directory / f"key-{user}", environment=environment)
            receivers[name] = receiver
            receiver.wait_for("ready")
        for number in range(rounds + 1):
            for name, program in LIBRARIES.items():
                command = [*program, "send", f"python@{DOMAIN}", *place, world.directory / "key-python", f"{users[name]}@{DOMAIN}", str(size)]
                used = -children() - running(receivers[name])
                done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, env={**os.environ, **environment})
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr}")
                used += children() + running(receivers[name])
                rate, time = size / float(done.stdout) / 1e6, used / size * 1e9
                print(f"{'warm-up' if number == 0 else number} {name}: {rate:.0f} MB/s, {time:.2f} s/GB", flush=True)
                if number:
                    rates[name].append(rate)
                    times[name].append(time)
    finally:
        for receiver in receivers.values():
            receiver.kill()
        world.close()
    median = {name: statistics.median(of) for name, of in rates.items()}
    met = {"C": median["C"] >= 0.9 * median["Rust"], "Python": median["Python"] >= 300}
    rows = ["| library | MB/s (median) | least | most | of Rust | processor time of both ends, s/GB | goal |", "|---|---|---|---|---|---|---|"]
    for name, of in rates.items():
        share = f"{100 * median[name] / median['Rust']:.0f} %"
        goal = f"{GOALS[name]}: {'reached' if met[name] else '**not reached**'}" if name in GOALS else ""
        rows.append(f"| {name} | {median[name]:.0f} | {min(of):.0f} | {max(of):.0f} | {share} | {statistics.median(times[name]):.2f} | {goal} |")
    text = "\n".join([
        f"{started:%Y-%m-%d}, {processor()}, Linux {os.uname().release}, Python {sys.version.split()[0]}, component:"
        f" {os.environ.get('FINGERPOST_BENCH_PROFILE', 'release')} build; {rounds} rounds of {mebibytes} MiB after a warm-up, the libraries in turns."
        f" Load average before: {load:.1f}.",
        "", *rows, "",
    ])  # fmt: skip
    print(text)
    page = PAGE.read_text()
    before, rest = page.split(START)
    PAGE.write_text(before + START + "\n" + text + "\n" + END + rest.split(END)[1])


main()
