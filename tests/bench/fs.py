#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the file system costs, beside what FUSE and the disk cost at least, measured in turns with it on
the same machine (fuse_floor.c: a mount with nothing behind it).

usage: fs.py [PART...]    with FLUXFS=…/fluxfs-fake and FUSE_FLOOR=…/fuse_floor; with FLUXFS_REAL=…/fluxfs and
                          MODEL=folder also the cost of readers to the CPU engine. Without PARTs: all.
       fs.py gpu          with FLUXFS=…/fluxfs, MODULES=folder, MODEL and STEPS: their cost to a GPU's"""

import faulthandler
import multiprocessing
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fs"))

import mount as mounts  # noqa: E402
from mount import Mount  # noqa: E402

PROMPT = b"a red fox in the snow\n"


def report(what, figure, goal="", floor=""):
    print(f"{what:62} {figure:>18}   {'goal ' + goal if goal else '':16} {floor}", flush=True)


class Floor:
    """The mount of fuse_floor.c."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="fluxfs-floor-")
        self.process = subprocess.Popen([os.environ["FUSE_FLOOR"], self.path])
        mounts.wait_for(lambda: mounts.is_mounted(self.path), "the floor")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        os.rmdir(self.path)

    def at(self, name):
        return os.path.join(self.path, name)


# ---- How long one operation takes ----

def read_once(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 65536)
    os.close(fd)


def write_once(path):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, PROMPT)
    os.close(fd)


def medians_us(*operations, rounds=24, each=75):
    """One median of each round. The operations take turns, for a machine is seldom as quiet as it was
    a moment ago: whether two processes happen to share a core makes a factor of three. So a floor is
    what the fastest round took, and a figure of ours the median of all."""
    medians = [[] for _ in operations]
    for _ in range(rounds):
        for which, (function, path) in enumerate(operations):
            times = []
            for _ in range(each):
                start = time.perf_counter_ns()
                function(path)
                times.append(time.perf_counter_ns() - start)
            medians[which].append(statistics.median(times) / 1000)
    return medians


def latencies():
    mount = Mount(environment={"FLUXFS_FAKE_BLOCK_US": "2000", "FLUXFS_FAKE_AHEAD": "4"})
    try:
        mount.paint("a fox\n")
        mount.prompt("a fox --steps 1000\n")
        mounts.wait_for(lambda: "step" in mount.read("status", "progress"), "a step")
        with Floor() as floor:
            for what, function, ours, theirs, goal in (
                    ("open, read, close status/vram, while generating", read_once, "status/vram", "direct", "100 µs"),
                    ("open, read, close status/all.json", read_once, "status/all.json", "direct", ""),
                    ("stat of a status file", os.stat, "status/vram", "direct", ""),
                    ("open, read, close an image of 400 bytes", read_once, "images/latest.png", "cached", ""),
            ):
                figures, least = medians_us((function, os.path.realpath(mount.at(ours))), (function, floor.at(theirs)))
                report(what, f"{statistics.median(figures):.0f} µs", goal, f"least here {min(least):.0f} µs")
            for count, who in ((1, "one process"), (2, "two processes")):
                rates = [[reads_per_second([path] * count) for path in (mount.at("status", "vram"), floor.at("direct"))]
                         for _ in range(5)]
                report(f"status reads a second, from {who}", f"{statistics.median(rate[0] for rate in rates):.0f}", "",
                       f"most here {max(rate[1] for rate in rates):.0f}")
    finally:
        mount.clean()


def reads_for(path, seconds, total):
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            read_once(path)
        count += 50
    with total.get_lock():
        total.value += count


def reads_per_second(paths, seconds=0.4):
    total = multiprocessing.Value("l", 0)
    processes = [multiprocessing.Process(target=reads_for, args=(path, seconds, total)) for path in paths]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return total.value / seconds


# ---- Prompts that are on the disk when close() returns ----

def prompt_writer(path, seconds, start, total):
    start.wait()
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        write_once(path)
        count += 1
    with total.get_lock():
        total.value += count


def prompts_per_second(mount, writers, seconds=2):
    total, start = multiprocessing.Value("l", 0), multiprocessing.Event()
    before = len(mount.jobs())
    processes = [multiprocessing.Process(target=prompt_writer, args=(mount.at("new"), seconds, start, total))
                 for _ in range(writers)]
    for process in processes:
        process.start()
    time.sleep(0.2)
    begin = time.monotonic()
    start.set()
    for process in processes:
        process.join()
    taken = time.monotonic() - begin
    assert len(mount.jobs()) - before == total.value, "a prompt was lost"
    return total.value / taken


def sync_once(path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(fd, bytes(4096))
    os.fsync(fd)
    os.close(fd)


def durable_prompts():
    rules = os.path.join(tempfile.gettempdir(), f"fluxfs-slow-{os.getpid()}")
    mount = Mount("--queue-limit=0", environment={"FLUXFS_FAKE_DISK": rules})
    try:
        mount.write("1\n", "control", "pause")
        with Floor() as floor:
            ones, least, syncs = medians_us((write_once, mount.at("new")), (write_once, floor.at("sink")),
                                            (sync_once, os.path.join(mount.state, "sync")), rounds=8, each=15)
        sync = min(syncs)
        report("open, write, close `new`: a durable prompt", f"{statistics.median(ones):.0f} µs", "",
               f"least here {min(least):.0f} µs and an fsync, {sync:.0f} µs")
        report("durable prompts a second, 8 writers", f"{prompts_per_second(mount, 8):.0f}", "1000",
               f"one fsync after the other: {1e6 / sync:.0f}")
        with open(rules, "w") as file:
            file.write("sync 0 3000\n")
        report("the same where each fsync takes 3 ms more", f"{prompts_per_second(mount, 8):.0f}", "1000",
               f"one fsync after the other: {1e6 / (sync + 3000):.0f}")
    finally:
        if os.path.exists(rules):
            os.unlink(rules)
        mount.clean()


# ---- Images ----

def read_speed(path, rounds=60):
    buffer = bytearray(1 << 20)
    size = os.path.getsize(path)
    start = time.perf_counter()
    for _ in range(rounds):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return size * rounds / (time.perf_counter() - start) / 1e9


def images(count=10000):
    mount = Mount(start=False)
    try:
        folder = os.path.join(mount.state, "images")
        os.makedirs(folder)
        for i in range(count - 1):
            open(os.path.join(folder, f"{i:05}-x.png"), "wb").close()
        with open(os.path.join(folder, "99999-noise.png"), "wb") as file:
            file.write(os.urandom(2 << 20))
        mount.start()
        speeds = [(read_speed(mount.at("images", "99999-noise.png")),
                   read_speed(os.path.join(folder, "99999-noise.png"))) for _ in range(5)]
        report("a 2 MB PNG, warm", f"{max(s[0] for s in speeds):.1f} GB/s", "6 GB/s",
               f"the file beneath {max(s[1] for s in speeds):.1f} GB/s")
        for what, command in (("names alone", ["ls", "-U"]), ("ls -l", ["ls", "-lU"])):
            times = [[], []]
            for _ in range(5):
                for which, path in enumerate((mount.at("images"), folder)):
                    start = time.perf_counter()
                    subprocess.run(command + [path], stdout=subprocess.DEVNULL, check=True)
                    times[which].append(1000 * (time.perf_counter() - start))
            report(f"{count:,} images listed, {what}", f"{min(times[0]):.0f} ms", "50 ms",
                   f"the folder beneath {min(times[1]):.0f} ms")
    finally:
        mount.clean()


# ---- Waking ----

def poll_wake(count=300):
    mount = Mount()
    try:
        fd = os.open(mount.at("status", "error"), os.O_RDONLY)
        os.read(fd, 4096)
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        times, woken = [], threading.Semaphore(0)

        def wait():
            for _ in range(count):
                assert poller.poll(5000)
                times.append(time.perf_counter_ns())
                os.lseek(fd, 0, os.SEEK_SET)
                os.read(fd, 4096)
                woken.release()

        waiter = threading.Thread(target=wait)
        waiter.start()
        latencies_us = []
        for i in range(count):
            time.sleep(0.003)
            start = time.perf_counter_ns()
            try:
                mount.write(f"fox --option-{i}\n", "new")
            except OSError:
                pass
            woken.acquire()
            latencies_us.append((times[-1] - start) / 1000)
        waiter.join()
        os.close(fd)
        latencies_us.sort()
        report("event to woken poller, median and 99 %",
               f"{latencies_us[count // 2]:.0f}, {latencies_us[count * 99 // 100]:.0f} µs", "2000 µs",
               "a write that `new` refuses is the event, and counts in")
    finally:
        mount.clean()


# ---- What readers cost a generation ----

class Readers:
    """Processes that read a file, so many times a second together."""

    def __init__(self, rate, count=2):
        self.running, self.which = multiprocessing.Event(), multiprocessing.Value("l", 0)
        self.reads, self.seconds = multiprocessing.Array("l", 8), multiprocessing.Array("d", 8)
        self.paths, self.rate, self.count = [], rate, count

    def start(self, *paths):
        self.paths = paths
        self.processes = [multiprocessing.Process(target=self.main, daemon=True) for _ in range(self.count)]
        for process in self.processes:
            process.start()

    def main(self):
        while True:
            self.running.wait()
            which = self.which.value
            begin = time.perf_counter()
            count, next_time = 0, begin
            while self.running.is_set():
                for _ in range(self.rate // self.count // 200):
                    read_once(self.paths[which])
                    count += 1
                next_time = max(next_time + 0.005, time.perf_counter() - 0.05)
                time.sleep(max(0, next_time - time.perf_counter()))
            with self.reads.get_lock():
                self.reads[which] += count
                self.seconds[which] += time.perf_counter() - begin

    def while_reading(self, which, function, *arguments):
        self.which.value = which
        self.running.set()
        result = function(*arguments)
        self.running.clear()
        time.sleep(0.05)
        return result

    def per_second(self, which):
        return self.count * self.reads[which] / self.seconds[which]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()


def paint_seconds(mount, prompt):
    """As the worker itself measures it, from start to pixels."""
    job = mount.paint(prompt)
    return float(dict(line.split() for line in mount.read("jobs", str(job), "timing").splitlines())["total_s"])


def cost_of_readers(what, mount, prompt, goal, rounds=7, rate=10000, processes=2):
    """Beside what as many reads cost that go nowhere: the readers themselves want time too."""
    readers = Readers(rate, processes)
    with Floor() as floor, tempfile.NamedTemporaryFile(dir="/dev/shm") as memory:
        memory.write(bytes(100))
        memory.flush()
        readers.start(mount.at("status", "vram"), floor.at("direct"), memory.name)
        try:
            paint_seconds(mount, prompt)
            times = [[] for _ in range(4)]
            for _ in range(rounds):
                times[3].append(paint_seconds(mount, prompt))
                for which in range(3):
                    times[which].append(readers.while_reading(which, paint_seconds, mount, prompt))
            ours, nothing, plain, alone = map(statistics.median, times)
            report(f"{readers.per_second(0):.0f} status reads/s cost a generation {what}", f"{100 * (ours / alone - 1):.1f} %",
                   goal, f"of {1000 * alone:.0f} ms; least here {100 * (nothing / alone - 1):.1f} % at "
                   f"{readers.per_second(1):.0f}/s; of a file in memory {100 * (plain / alone - 1):.1f} % at "
                   f"{readers.per_second(2):.0f}/s")
        finally:
            readers.kill()
            mount.clean()


def cost():
    # As fast as an H100 with 28 steps at 1024²; the host may be four blocks ahead of the device.
    cost_of_readers("on a device of its own", Mount(environment={"FLUXFS_FAKE_BLOCK_US": "1800", "FLUXFS_FAKE_AHEAD": "4"}),
                    "a fox --steps 60\n", "1 %")
    if os.environ.get("FLUXFS_REAL"):
        fake, mounts.FLUXFS = mounts.FLUXFS, os.environ["FLUXFS_REAL"]
        for threads in sorted({1, os.cpu_count()}):
            cost_of_readers(f"by the CPU, {threads} of {os.cpu_count()} cores",
                            Mount("--model=" + os.environ["MODEL"], f"--threads={threads}"),
                            "a red fox --steps 20 --seed 1\n", "")
        mounts.FLUXFS = fake


def gpu():
    """A kernel of its own (gVisor) may take longer for each read: more processes make the rate."""
    begin = time.monotonic()
    faulthandler.dump_traceback_later(90)
    cost_of_readers("on the GPU", Mount("--model=" + os.environ["MODEL"], "--backend=cuda",
                                        "--module-dir=" + os.environ["MODULES"]),
                    f"a red fox --steps {os.environ['STEPS']} --seed 1\n", "1 %", rounds=5, processes=5)
    print(f"{time.monotonic() - begin:.0f} s in all")


PARTS = {"latency": latencies, "prompts": durable_prompts, "images": images, "poll": poll_wake, "cost": cost}


def main():
    for part in sys.argv[1:] or PARTS:
        (gpu if part == "gpu" else PARTS[part])()


if __name__ == "__main__":
    main()
