# SPDX-License-Identifier: MIT
"""A state folder on a disk that is full or fails: clear errors, nothing accepted is lost, and all is
well again afterwards."""

import collections
import errno
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from mount import PATIENCE, SEED, Mount, MountTest, needs_root, run, wait_for
from png_text import parameters


@needs_root
class FullDisk(unittest.TestCase):
    def setUp(self):
        self.state = tempfile.mkdtemp(prefix="fluxfs-full-")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", self.state], check=True)
        self.addCleanup(os.rmdir, self.state)
        self.addCleanup(subprocess.run, ["umount", "-l", self.state])
        self.mount = Mount(state=self.state, environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        self.addCleanup(self.mount.clean)

    def fill(self):
        with open(os.path.join(self.state, "filler"), "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def test_full_disk_loses_nothing(self):
        self.mount.paint("a fox\n")
        self.mount.write("1\n", "control", "pause")
        waiting = self.mount.prompt("a waiting fox --size 512x512\n")[0]
        self.fill()
        refused = 0
        for i in range(200):  # what fits into the journal still is taken
            try:
                self.mount.write("a long prompt " * 200 + "\n", "new")
            except OSError as error:
                self.assertEqual(error.errno, 28)
                refused += 1
                break
        self.assertEqual(refused, 1)
        self.assertIn("full", self.mount.read("status", "error").lower().replace("no space", "full"))
        accepted = self.mount.jobs()
        os.unlink(os.path.join(self.state, "filler"))
        self.mount.write("0\n", "control", "pause")
        self.assertEqual(self.mount.wait(waiting), "done")
        self.assertEqual(self.mount.wait(self.mount.prompt("after\n")[0]), "done")
        self.assertEqual(self.mount.jobs()[:len(accepted)], accepted)

    def test_shells_are_told(self):
        """They don't look at close(): whatever its length, a prompt that finds no room is refused by
        write(), and from then on so is each like it."""
        self.mount.write("1\n", "control", "pause")
        self.fill()
        for words in (12000, 1, 600, 12000):
            for command in (f"echo {'word ' * words} > mnt/new", f"printf '{'word ' * words}' > mnt/new",
                            f"echo 'a fox --count 64' {'word ' * words} > mnt/new"):
                with self.subTest(command[:7] + command[-30:], words=words):
                    said = []
                    while 1 not in said[:-3]:
                        before = len(self.mount.jobs())
                        said.append(self.mount.shell(command).returncode)
                        self.assertEqual(len(self.mount.jobs()) > before, said[-1] == 0)
                    self.assertEqual(said[-4:], [1] * 4)
                    self.assertRegex(self.mount.read("status", "error"), "^new: .*make room on the disk")
                    self.assertRegex(self.mount.read("status", "health"), "^error: .*make room on the disk")
        self.assertNotEqual(self.mount.shell("echo a fox > mnt/prompts/fox.txt").returncode, 0)
        os.unlink(os.path.join(self.state, "filler"))
        job = self.mount.prompt("after\n")[0]
        self.assertEqual(self.mount.read("status", "health"), "ok\n")
        self.assertEqual(self.mount.jobs()[-1], job)

    def test_file_of_prompts_is_told_of(self):
        self.fill()
        self.assertNotEqual(self.mount.shell("echo a fox > mnt/prompts/fox.txt").returncode, 0)
        self.assertRegex(self.mount.read("status", "error"), "^prompts/fox.txt: .*No space left on device")

    def test_painted_image_waits_for_room(self):
        self.mount.write("1\n", "control", "pause")
        job = self.mount.prompt("a fox --size 1024x1024\n")[0]
        self.fill()
        try:
            self.mount.write("0\n", "control", "pause")
        except OSError:
            os.truncate(os.path.join(self.state, "filler"), os.path.getsize(os.path.join(self.state, "filler")) - 65536)
            self.mount.write("0\n", "control", "pause")
            self.fill_again()
        wait_for(lambda: self.mount.read("status", "health").startswith("error: "), "the trouble to show")
        self.assertNotIn(self.mount.read("jobs", str(job), "state"), ("done\n", "failed\n"))
        self.assertEqual([n for n in os.listdir(self.mount.at("images"))], [])
        os.unlink(os.path.join(self.state, "filler"))
        self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(self.mount.read("status", "health"), "ok\n")

    def fill_again(self):
        with open(os.path.join(self.state, "filler"), "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass


class RemovedFolder(MountTest):
    """rm -rf of the state folder under a mount: what it would take from then on is lost."""

    def assert_refuses(self):
        jobs = self.mount.jobs()
        for words in ("a fox", "a fox " * 3000):
            with self.assertRaises(OSError) as refused:
                self.mount.write(words + "\n", "new")
            self.assertEqual(refused.exception.errno, errno.ESTALE)
            said = self.mount.shell(f"echo {words} > mnt/new")
            self.assertNotEqual(said.returncode, 0)
            self.assertIn(os.strerror(errno.ESTALE), said.stderr)
        self.assertNotEqual(self.mount.shell("echo a fox > mnt/prompts/fox.txt").returncode, 0)
        why = "queue.db was removed under the mount: no prompt can be kept; unmount, and mount again\n"
        self.assertIn(why, self.mount.read("status", "error"))
        self.assertRegex(self.mount.read("status", "health"), f"^error: .*{why}")
        self.assertEqual(self.mount.jobs(), jobs)
        self.assertEqual(self.mount.stop(), 0)
        self.mount.start()
        self.assertEqual(self.mount.paint("a fox\n"), 1)

    def test_removed(self):
        self.mount.paint("a fox\n")
        shutil.rmtree(self.mount.state)
        self.assert_refuses()

    def test_emptied_while_a_prompt_is_written(self):
        fd = os.open(self.mount.at("new"), os.O_WRONLY)
        os.write(fd, b"a fox\n")
        for path in pathlib.Path(self.mount.state).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with self.assertRaises(OSError) as refused:
            os.close(fd)
        self.assertEqual(refused.exception.errno, errno.ESTALE)
        self.assert_refuses()


@needs_root
class FullImages(unittest.TestCase):
    """Pictures have no room, but the queue has."""

    def setUp(self):
        self.state = tempfile.mkdtemp(prefix="fluxfs-full-")
        self.addCleanup(shutil.rmtree, self.state)
        images = os.path.join(self.state, "images")
        os.mkdir(images)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", images], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", images])
        self.filler = os.path.join(images, ".filler")
        self.mount = Mount(state=self.state, environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        self.addCleanup(self.mount.clean)

    def test_saving_jobs_are_cancelled(self):
        self.mount.write("1\n", "control", "pause")
        jobs = [self.mount.prompt(f"fox {i}\n")[0] for i in range(8)]
        with open(self.filler, "wb", buffering=0) as file:
            with self.assertRaises(OSError):
                while True:
                    file.write(bytes(4096))
        self.mount.write("0\n", "control", "pause")
        saving = jobs[:6]  # one is being stored, four wait for that, and the worker has the last
        wait_for(lambda: f"job {saving[-1]} saving" in self.mount.read("status", "progress"), "the encoder to be full")
        wait_for(lambda: self.mount.read("status", "health").startswith("error: "), "the trouble to show")
        for job in saving[3], saving[5], saving[0], saving[1]:
            self.assertEqual(self.mount.read("jobs", str(job), "state"), "saving\n")
            name = next(name for name in os.listdir(self.mount.at("queue")) if name.split("-")[1] == str(job))
            os.unlink(self.mount.at("queue", name))
            wait_for(lambda: self.mount.read("jobs", str(job), "state") == "cancelled\n", "the end of the job")
            wait_for(lambda: f"job {job} " not in self.mount.read("status", "progress"), f"job {job} to leave")
        self.assertNotIn("works again", self.mount.shell("tail -n 200 mnt/status/events").stdout)
        self.assertEqual([name for name in os.listdir(self.mount.at("images")) if name.endswith(".png")], [])
        os.unlink(self.filler)
        for job in (saving[2], saving[4], *jobs[6:]):
            self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(self.mount.read("status", "health"), "ok\n")
        self.assertIn("cancelled 4\n", self.mount.read("status", "queue"))


class FailingDisk(unittest.TestCase):
    """The fake disk (fake_disk.c) fails all calls of a kind while told so."""

    def setUp(self):
        self.mount = Mount(environment={"FLUXFS_FAKE_BLOCK_US": "0"}, start=False)
        self.addCleanup(self.clean)
        self.rules = os.path.join(self.mount.folder, "faults")
        self.mount.environment["FLUXFS_FAKE_DISK"] = self.rules
        self.mount.start()

    def clean(self):
        status, log = self.mount.clean()
        self.assertNotIn("Sanitizer", log)
        self.assertIn(status, (0, None), log[-3000:])

    def break_disk(self, kind, code=errno.EIO):
        with open(self.rules + ".new", "w") as file:
            file.write(f"{kind} {code} 0\n")
        os.rename(self.rules + ".new", self.rules)

    def heal(self):
        os.unlink(self.rules)

    def assert_fails(self, code, function, *arguments):
        with self.assertRaises(OSError) as caught:
            function(*arguments)
        self.assertEqual(caught.exception.errno, code)

    def status(self, name):
        return self.mount.read("status", name)

    def test_prompts_are_refused_and_taken_again(self):
        self.mount.paint("a fox\n")
        for kind, code, words in (("sync", errno.EIO, "queue.db: disk I/O error"),
                                  ("write", errno.EIO, "queue.db: disk I/O error"),
                                  ("write", errno.ENOSPC, "make room on the disk")):
            jobs = self.mount.jobs()
            self.break_disk(kind, code)
            with self.subTest(f"{kind} {errno.errorcode[code]}"):
                self.assert_fails(code, self.mount.write, "a bear\n", "new")
                self.assertIn(words, self.status("error"))
                self.assertRegex(self.status("health"), f"^error: .*{words}")
                self.assertEqual(self.status("progress"), "error, 0 waiting\n")
                # Shells don't look at close(): once the disk is known to fail, write() says so.
                for shell in ("bash", "dash"):
                    said = self.mount.shell("echo a wolf > mnt/new", shell=shell)
                    self.assertNotEqual(said.returncode, 0, shell)
                    self.assertIn(os.strerror(code) if shell == "bash" else "I/O error", said.stderr)
                self.assert_fails(code, self.mount.write, "7\n", "control", "steps")
                self.assertEqual(self.mount.read("jobs", "1", "prompt"), "a fox\n")
                self.assertEqual(self.mount.jobs(), jobs)
            self.heal()
            self.mount.paint("a fox\n")
            self.assertEqual(self.status("health"), "ok\n")
            self.assertEqual(len(self.mount.jobs()), len(jobs) + 1)

    def test_file_of_prompts(self):
        path = self.mount.at("prompts", "fox.txt")

        def save(text):
            with open(path, "w") as file:
                file.write(text)

        self.break_disk("sync")
        self.assert_fails(errno.EIO, save, "a fox\n")
        self.assertIn("prompts/fox.txt: ", self.status("error"))
        self.break_disk("write")
        self.assert_fails(errno.EIO, save, "a red fox\n")
        self.heal()
        save("a grey fox\n")
        self.assertEqual(self.mount.wait(1), "done")
        self.assertEqual(self.mount.prompts(), ["a grey fox"])

    def test_painted_image_waits_for_the_disk(self):
        self.mount.hold(5)
        jobs = [self.mount.prompt(f"fox {i}\n")[0] for i in range(3)]
        wait_for(lambda: "step" in self.status("progress"), "a step")
        self.break_disk("sync")
        self.mount.release()
        wait_for(lambda: self.status("health").startswith("error: "), "the trouble to show")
        self.assertEqual(os.listdir(self.mount.at("images")), [])
        self.heal()
        for job in jobs:
            self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(self.status("health"), "ok\n")
        self.assertIn("it works again", self.mount.shell("tail -n 100 mnt/status/events").stdout)

    def test_reading_fails_and_works_again(self):
        job = self.mount.paint("a fox\n")
        self.mount.stop()
        self.mount.start()
        self.break_disk("read")
        for path in (f"jobs/{job}/prompt", "images/latest.png"):
            self.assertIn("Input/output error", self.mount.shell(f"cat mnt/{path}").stderr)
        self.heal()
        self.assertEqual(self.mount.read("jobs", str(job), "prompt"), "a fox\n")
        self.mount.shell("cmp mnt/images/latest.png mnt/images/0001-a-fox.png", check=True)
        self.mount.paint("a bear\n")

    def test_waiting_job_outlasts_a_disk_that_cant_be_read(self):
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("a fox\n")
        self.mount.stop()  # so that nothing is cached
        self.mount.start()
        self.break_disk("read")
        self.mount.shell("echo 0 > mnt/control/pause")
        self.mount.shell("cat mnt/jobs/1/prompt")
        time.sleep(0.2)
        self.heal()
        self.mount.write("0\n", "control", "pause")
        self.assertEqual(self.mount.wait(1), "done")

    def test_start_on_a_failing_disk(self):
        self.mount.paint("a fox\n")
        self.mount.stop()
        for kind in ("read", "sync"):
            self.break_disk(kind)
            result = subprocess.run(self.mount.command(), env=dict(os.environ, **self.mount.environment),
                                    capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(result.returncode, 1)
            self.assertIn("queue.db: ", result.stderr)
            self.heal()
        self.mount.start()
        self.assertEqual(self.mount.read("jobs", "1", "state"), "done\n")

    # ---- Faults at random while writers write ----

    def write_prompts(self, number):
        count = 0
        while not self.ending:
            count += 1
            prompt = f"writer {number} prompt {count}"
            try:
                if number % 2 == 0:
                    self.mount.write(prompt + "\n", "new")
                else:
                    with open(self.mount.at("prompts", f"{number}-{count}.txt"), "w") as file:
                        file.write(prompt + "\n")
                self.accepted.add(prompt)
            except OSError as error:
                self.refusals[error.errno] += 1
            time.sleep(0.005)

    def test_faults_at_random(self):
        seed, rng = SEED, random.Random(SEED)
        self.accepted, self.refusals, self.ending = set(), collections.Counter(), False
        threads = [threading.Thread(target=self.write_prompts, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            self.break_disk(rng.choice(("sync", "write", "read")), rng.choice((errno.EIO, errno.ENOSPC)))
            time.sleep(rng.uniform(0.01, 0.12))
            self.heal()
            time.sleep(rng.uniform(0.01, 0.12))
        self.ending = True
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive(), f"seed {seed}: a writer hangs")
        self.assertLessEqual(set(self.refusals), {errno.EIO, errno.ENOSPC}, f"seed {seed}")
        self.assertEqual(self.mount.stop(signal.SIGKILL), -signal.SIGKILL)
        self.mount.start()
        wait_for(lambda: self.status("progress") == "idle, 0 waiting\n", f"seed {seed}: all jobs")
        found = collections.Counter(self.mount.prompts())
        for prompt in self.accepted:
            self.assertEqual(found[prompt], 1, f"seed {seed}: {prompt}")
        self.assertEqual(max(found.values()), 1, f"seed {seed}")
        for job in self.mount.jobs():
            self.assertEqual(self.mount.read("jobs", str(job), "state"), "done\n", f"seed {seed}")
            with open(self.mount.at("jobs", str(job), "image.png"), "rb") as file:
                self.assertTrue(parameters(file.read()))
        print(f"{len(self.accepted)} accepted, {self.refusals.total()} refused", end=" ")


if __name__ == "__main__":
    run()
