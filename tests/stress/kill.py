# SPDX-License-Identifier: MIT
"""Kills the daemon again and again while writers write, and then counts: no accepted prompt is lost,
none is there twice, no image is half, no process hangs.

usage: kill.py [ROUNDS]"""

import collections
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fs"))

from mount import PATIENCE, Mount, wait_for  # noqa: E402
from png_text import parameters  # noqa: E402

WRITERS = 4


class Writer(threading.Thread):
    """Writes numbered prompts to `new`, and in part to prompts/, until told to stop."""

    def __init__(self, mount, number):
        super().__init__(daemon=True)
        self.mount, self.number = mount, number
        self.accepted, self.unsure = [], []
        self.stopping = False
        self.through_files = number % 2 == 1

    def write(self, prompt, count):
        name = f"w{self.number}-{count}.txt" if self.through_files else None
        path = self.mount.at("prompts", name) if name else self.mount.at("new")
        flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if name else 0)
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, (prompt + "\n").encode())
        finally:
            os.close(fd)

    def run(self):
        count = 0
        while not self.stopping:
            count += 1
            prompt = f"writer {self.number} prompt {count}"
            try:
                self.write(prompt, count)
                self.accepted.append(prompt)
            except OSError:
                self.unsure.append(prompt)  # it may have been taken, or not
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.06))


def check(mount, writers):
    """Everything that was accepted is there once, painted once, and whole."""
    prompts = collections.Counter()
    for job in mount.jobs():
        state = mount.read("jobs", str(job), "state").strip()
        assert state == "done", f"job {job} is {state}"
        prompts[mount.read("jobs", str(job), "prompt").strip()] += 1
        assert os.path.exists(mount.at("jobs", str(job), "image.png")), f"job {job} has no image"
    for writer in writers:
        for prompt in writer.accepted:
            assert prompts[prompt] == 1, f"accepted: {prompt!r} is there {prompts[prompt]} times"
        for prompt in writer.unsure:
            assert prompts[prompt] <= 1, f"unsure: {prompt!r} is there {prompts[prompt]} times"
    names = [name for name in os.listdir(mount.at("images")) if name != "latest.png"]
    assert len(names) == sum(prompts.values()), f"{len(names)} images of {sum(prompts.values())} jobs"
    for name in names:
        with open(mount.at("images", name), "rb") as file:
            assert parameters(file.read()), name
    left = [name for name in os.listdir(os.path.join(mount.state, "images")) if not name.endswith(".png")]
    assert not left, left
    return len(names)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    mount = Mount(environment={"FLUXFS_FAKE_BLOCK_US": "20"}, start=False)
    writers = [Writer(mount, number) for number in range(WRITERS)]
    start = time.monotonic()
    try:
        mount.start()
        for writer in writers:
            writer.start()
        for _ in range(rounds):
            time.sleep(rng.uniform(0, 0.2))
            assert mount.stop(signal.SIGKILL) == -signal.SIGKILL
            mount.start(loaded=False)
        for writer in writers:
            writer.stopping = True
            writer.join(PATIENCE)
            assert not writer.is_alive(), "a writer hangs"
        wait_for(lambda: mount.read("status", "progress").startswith("idle, 0 "), "all jobs")
        painted = check(mount, writers)
        assert mount.stop() == 0
    except BaseException:
        print(f"seed {seed}\n{mount.read_log()[-4000:]}")
        raise
    finally:
        status, _ = mount.clean()
    assert status in (0, None), status
    accepted = sum(len(writer.accepted) for writer in writers)
    unsure = sum(len(writer.unsure) for writer in writers)
    print(f"{rounds} kills in {time.monotonic() - start:.0f} s: {accepted} prompts accepted, {unsure} cut off, "
          f"{painted} painted, none lost, none twice")


if __name__ == "__main__":
    main()
