# SPDX-License-Identifier: MIT
"""Everything at once for a few seconds; made for the sanitizers. Errors that races explain (a job has
ended, a name is gone) are fine; hangs, crashes and other errors are not."""

import errno
import os
import random
import select
import signal
import subprocess
import threading
import time
import unittest

from mount import PATIENCE, SEED, MountTest, run, wait_for

SECONDS = 4
FINE = {errno.ENOENT, errno.EINVAL, errno.EBUSY, errno.ESTALE, errno.EAGAIN, errno.ENOTEMPTY}


class Load(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "50", "FLUXFS_FAKE_BACKEND": "cuda"}

    def act(self, rng):
        mount = self.mount
        jobs = os.listdir(mount.at("jobs"))
        job = rng.choice(jobs) if jobs else "1"
        action = rng.randrange(12)
        if action < 3:
            mount.prompt(f"fox {rng.random()} {rng.choice(('', '', '[fail]', '--count 3'))} --steps {rng.randrange(1, 9)}\n")
        elif action == 3:
            mount.write(rng.choice(("cancel\n", "retry\n", "priority 5\n")), "jobs", job, "ctl")
        elif action == 4:
            names = os.listdir(mount.at("images"))
            if names:
                with open(mount.at("images", rng.choice(names)), "rb") as file:
                    file.read()
        elif action == 5:
            names = [name for name in os.listdir(mount.at("images")) if name != "latest.png"]
            if len(names) > 5:
                os.unlink(mount.at("images", rng.choice(names)))
        elif action == 6:
            for name in os.listdir(mount.at("status")):
                if name != "events":
                    mount.read("status", name)
        elif action == 7:
            for name in os.listdir(mount.at("jobs", job)):
                if name not in ("wait", "ctl", "image.png"):
                    mount.read("jobs", job, name)
        elif action == 8:
            mount.write(rng.choice(("128M\n", "256M\n", "auto\n")), "control", "vram_budget")
        elif action == 9:
            with open(mount.at("prompts", f"p{rng.randrange(4)}.txt"), "w") as file:
                file.write(f"bear {rng.random()} --steps 2\n")
        elif action == 10:
            names = os.listdir(mount.at("queue"))
            if names:
                mount.shell(f"mv -T mnt/queue/{rng.choice(names)} mnt/queue/000; rm -f mnt/queue/{rng.choice(names)}",
                            timeout=PATIENCE)
        else:
            self.watch(rng, job)

    def watch(self, rng, job):
        """Waits for a job, for a change, or for an event, and is often interrupted."""
        kind = rng.randrange(3)
        if kind < 2:
            path = self.mount.at("jobs", job, "wait") if kind == 0 else self.mount.at("status", "events")
            process = subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.random() * 0.05)
            process.send_signal(rng.choice((signal.SIGINT, signal.SIGKILL)))
            process.wait(PATIENCE)
        else:
            fd = os.open(self.mount.at("status", rng.choice(("progress", "vram", "queue"))), os.O_RDONLY)
            poller = select.poll()
            poller.register(fd, select.POLLPRI)
            poller.poll(50)
            os.close(fd)

    def loop(self, seed):
        rng = random.Random(seed)
        while time.monotonic() < self.end and not self.failures:
            try:
                self.act(rng)
            except OSError as error:
                if error.errno not in FINE:
                    self.failures.append(f"seed {seed}: {error!r}")
            except Exception as error:
                self.failures.append(f"seed {seed}: {error!r}")

    def test_everything_at_once(self):
        self.failures, self.end = [], time.monotonic() + SECONDS
        seed = SEED
        threads = [threading.Thread(target=self.loop, args=(seed + i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive(), f"seed {seed}: hangs")
        self.assertEqual(self.failures, [])
        self.mount.shell("rm -f mnt/queue/*", timeout=PATIENCE)
        try:
            wait_for(lambda: self.mount.read("status", "progress").startswith("idle, 0"), "the end")
        except AssertionError:
            self.fail(self.mount.read("status", "progress") + self.mount.read("status", "queue"))
        print(f"{len(self.mount.jobs())} jobs", end=" ")
        self.mount.paint("at last a fox\n")

    def test_stopped_in_the_middle(self):
        self.failures, self.end = [], time.monotonic() + 1
        threads = [threading.Thread(target=self.loop, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        self.assertEqual(self.mount.stop(), 0)
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive())


if __name__ == "__main__":
    run()
