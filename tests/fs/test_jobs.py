# SPDX-License-Identifier: MIT
"""jobs/ and queue/: following, waiting, cancelling, reordering."""

import errno
import os
import random
import select
import signal
import subprocess
import time

from mount import PATIENCE, PATIENCE_MS, SEED, Mount, MountTest, run, wait_for


class Jobs(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "1000"}

    def pause(self, on=True):
        self.mount.write("1\n" if on else "0\n", "control", "pause")

    def endless(self, text="a fox --steps 20\n"):
        """A job held in its second step, which others can't see."""
        self.mount.hold(15)
        job = self.mount.prompt(text)[0]
        wait_for(lambda: f"job {job} step 2/20 block 5/7" in self.mount.read("status", "progress"), "step 2")
        return job

    def state(self, job):
        return self.mount.read("jobs", str(job), "state").strip()

    def order(self):
        return [int(name.split("-")[1]) for name in sorted(os.listdir(self.mount.at("queue")))]

    def test_files_of_a_job(self):
        job = self.mount.paint("a red fox --steps 3\n")
        at = lambda name: self.mount.read("jobs", str(job), name)
        self.assertEqual(at("prompt"), "a red fox\n")
        self.assertIn("steps=3\n", at("parameters"))
        self.assertEqual(at("state"), "done\n")
        self.assertEqual(at("error"), "")
        self.assertEqual(at("wait"), "done\n")
        self.assertIn("denoise_s", at("timing"))
        lines = at("vram.csv").splitlines()
        self.assertEqual(lines[0], "time_s,allocated_bytes,reserved_bytes,budget_bytes")
        self.assertGreater(len(lines), 2)
        times = [float(line.split(",")[0]) for line in lines[1:]]
        self.assertEqual(times, sorted(times))

    def test_progress(self):
        job = self.endless()
        self.assertRegex(self.mount.read("status", "progress"),
                         rf"^job {job} step \d+/20 block \d/7 \w+ \w+, \d+ %, \d+\.\d s left\n$")
        self.assertRegex(self.mount.read("jobs", str(job), "progress"), rf"^job {job} step")
        self.assertEqual(self.state(job), "running")

    def test_prompts_that_wait_share_the_text_encoders(self):
        made = Mount(environment={"FLUXFS_FAKE_PROMPTS": "2", "FLUXFS_FAKE_BLOCK_US": "1000"})
        self.addCleanup(made.clean)
        made.write("1\n", "control", "pause")
        for words in ("a fox", "an owl", "a hare", "a bear"):
            made.prompt(words + " --seed 1\n")
        made.write("0\n", "control", "pause")
        spent = []
        for job in range(1, 5):
            self.assertEqual(made.wait(job), "done")
            timing = dict(line.split() for line in made.read("jobs", str(job), "timing").splitlines())
            spent.append(float(timing["text_s"]))
        self.assertEqual([seconds > 0 for seconds in spent], [True, False, False, True], spent)

    def test_failed_job(self):
        job = self.mount.prompt("a [fail] fox\n")[0]
        self.assertEqual(self.mount.wait(job), "failed")
        self.assertEqual(self.mount.read("jobs", str(job), "error"), "the prompt asked for a failure\n")
        self.assertIn("asked for a failure", self.mount.read("status", "error"))
        self.assertEqual(self.mount.paint("a fox\n"), job + 1)

    def test_lost_device(self):
        job = self.mount.prompt("a [lost] fox\n")[0]
        other = self.mount.prompt("a fox\n")[0]
        self.assertEqual(self.mount.wait(job), "failed")  # at the second loss
        self.assertIn("lost", self.mount.read("jobs", str(job), "error"))
        self.assertEqual(self.mount.wait(other), "done")
        self.assertEqual(self.mount.read("status", "health"), "ok\n")

    def test_lost_device_is_doubted(self):
        job = self.mount.prompt("a [lost] fox\n")[0]
        self.assertEqual(self.mount.wait(job), "failed")
        # It is open again, but nothing has shown yet that it works.
        self.assertEqual(self.mount.read("status", "health"), "error: the device was lost\n")
        self.mount.paint("a fox\n")
        self.assertEqual(self.mount.read("status", "health"), "ok\n")

    def test_cancelled_when_device_is_lost(self):
        job = self.mount.prompt("a [lost late] fox\n")[0]
        wait_for(lambda: " step 1/" in self.mount.read("status", "progress") or
                 self.state(job) == "running", "running")
        self.mount.write("cancel\n", "jobs", str(job), "ctl")
        self.assertEqual(self.mount.wait(job), "cancelled")
        self.assertEqual(self.mount.paint("a fox\n"), job + 1)
        self.assertEqual(self.state(job), "cancelled")

    def test_impossible_now(self):
        before = self.mount.read("status", "queue")
        self.mount.write("64M\n", "control", "vram_budget")
        with self.assertRaises(OSError) as refused:
            self.mount.prompt("a fox --size 1040x512\n")
        self.assertEqual(refused.exception.errno, errno.EINVAL)
        self.assertIn("needs a vram_budget of 65 MiB", self.mount.read("status", "error"))
        self.assertEqual(self.mount.read("status", "queue"), before)
        self.mount.paint("a fox --size 1024x512\n")

    def health(self, start):
        """Waits until it begins like that."""
        return wait_for(lambda: next((line for line in [self.mount.read("status", "health")]
                                      if line.startswith(start)), None), start)

    def test_budget_lowered_below_what_jobs_need(self):
        job = self.endless("a fox --steps 20 --size 2048x64 --seed 1\n")
        waiting = [self.mount.prompt(text)[0] for text in ("a bear --size 1600x64\n", "a hare --size 64\n",
                                                           "a hen --size 1600x64\n")]
        self.mount.write("64M\n", "control", "vram_budget")
        self.mount.release()
        why = (f"job {job} waits: size 2048x64 needs a vram_budget of 128 MiB at least; it begins when "
               f"control/vram_budget is raised; rm queue/{job} cancels it\n")
        self.assertEqual(self.health("error: job"), "error: " + why)
        self.assertEqual(self.mount.read("status", "progress"), "error, 4 waiting: " + why)
        self.assertEqual(self.order(), [job, *waiting])
        self.assertEqual(self.mount.read("status", "error").count(why.strip()), 1)
        # Whoever pauses is told so; nobody looks for memory then.
        self.pause()
        self.health("ok\n")
        self.assertEqual(self.mount.read("status", "progress"), "paused, 4 waiting\n")
        self.pause(False)
        self.health(f"error: job {job} waits: ")
        # The next one waits for less, and the one behind it for its turn.
        self.mount.write("100M\n", "control", "vram_budget")
        os.unlink(self.mount.at("queue", str(job)))
        self.assertEqual(self.mount.wait(job), "cancelled")
        self.assertEqual([self.mount.wait(each) for each in waiting], ["done"] * 3)
        self.health("ok\n")
        self.assertIn("failed 0\n", self.mount.read("status", "queue"))

    def test_budget_lowered_and_raised(self):
        job = self.endless("a fox --steps 20 --size 2048x64 --seed 1\n")
        self.mount.write("64M\n", "control", "vram_budget")
        self.mount.release()
        self.health(f"error: job {job} waits: ")
        self.assertEqual(self.state(job), "waiting")
        self.assertEqual(self.mount.stop(), 0)
        self.mount.start()
        self.health(f"error: job {job} waits: ")
        events = self.mount.shell("timeout 3 cat mnt/status/events").stdout  # of three looks, and more
        self.assertEqual(events.count(f"job {job} waits: "), 1)
        self.assertEqual(events.count(f"job {job} running"), 0)
        self.mount.write("default\n", "control", "vram_budget")
        self.assertEqual(self.mount.wait(job), "done")
        self.health("ok\n")

    def test_cancelled_while_it_waits_for_memory(self):
        self.pause()
        jobs = [self.mount.prompt(f"a fox --size {size}\n")[0] for size in ("2048x64", "64")]
        self.mount.write("64M\n", "control", "vram_budget")
        self.pause(False)
        self.health(f"error: job {jobs[0]} waits: ")
        self.mount.write("cancel\n", "jobs", str(jobs[0]), "ctl")
        self.assertEqual([self.mount.wait(job) for job in jobs], ["cancelled", "done"])
        self.health("ok\n")

    def test_no_room_though_the_engine_finds_some(self):
        job = self.mount.prompt("a [no room] fox\n")[0]
        other = self.mount.prompt("a fox\n")[0]
        self.assertIn(f"job {job} waits: the prompt asked for a failure; it is tried again in a few seconds;",
                      self.health("error: job"))
        self.assertEqual(self.mount.wait(job), "failed")
        self.assertEqual(self.mount.read("jobs", str(job), "error"),
                         "the prompt asked for a failure\n")
        self.assertEqual(self.mount.wait(other), "done")
        events = self.mount.shell("timeout 1 cat mnt/status/events").stdout
        self.assertEqual(events.count(f"job {job} running"), 5)
        self.assertIn(f"job {job} failed: the prompt asked", events)

    def take_memory(self):
        with open(self.mount.taken_path, "w"):
            pass

    def test_others_take_the_memory(self):
        """What is painted waits, loses nothing, and says so once."""
        job = self.endless()
        other = self.mount.prompt("another\n")[0]
        self.take_memory()
        self.mount.release()
        self.assertEqual(self.health("error: job"),
                         f"error: job {job} waits: the device has no more; it goes on when other programs give "
                         f"memory back; rm queue/{job} cancels it\n")
        self.assertIn(f"job {job} step 2/20 block 7/7", self.mount.read("status", "progress"))
        self.pause()
        time.sleep(2.5)  # two looks
        self.health(f"error: job {job} waits: ")
        self.pause(False)
        self.assertEqual([self.state(job), self.state(other)], ["running", "waiting"])
        events = self.mount.shell("timeout 1 cat mnt/status/events").stdout
        self.assertEqual(events.count(f"job {job} waits: "), 1)
        os.unlink(self.mount.taken_path)
        self.assertEqual([self.mount.wait(each) for each in (job, other)], ["done"] * 2)
        self.health("ok\n")
        events = self.mount.shell("timeout 1 cat mnt/status/events").stdout
        self.assertEqual(events.count(f"job {job} running"), 1)

    def test_cancelled_or_unmounted_while_others_have_the_memory(self):
        jobs = [self.endless(), self.mount.prompt("another\n")[0]]
        self.take_memory()
        self.mount.release()
        for job in jobs:
            self.health(f"error: job {job} waits: ")
            if job == jobs[0]:
                os.unlink(self.mount.at("queue", str(job)))
                self.assertEqual(self.mount.wait(job), "cancelled")
        self.assertEqual(self.mount.stop(), 0)
        os.unlink(self.mount.taken_path)
        self.mount.start()
        self.assertEqual(self.mount.wait(jobs[1]), "done")
        self.health("ok\n")

    def test_cancel_running(self):
        job = self.endless()
        for i, way in enumerate(("rm mnt/queue/000-{}", "rm mnt/queue/{}", "echo cancel > mnt/jobs/{}/ctl")):
            other = self.mount.prompt(f"another {i} --steps 20\n")[0]
            self.mount.shell(way.format(job), check=True)
            self.assertIn(self.state(job), ("cancelling", "cancelled"), way)
            self.assertEqual(self.mount.wait(job), "cancelled", way)
            job = other
        self.mount.release()
        self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(self.mount.image(job), f"{job:04}-another-2.png")
        self.assertEqual(len(os.listdir(self.mount.at("images"))), 2)

    def test_cancel_waiting_and_retry(self):
        self.pause()
        job = self.mount.prompt("a fox\n")[0]
        os.unlink(self.mount.at("queue", os.listdir(self.mount.at("queue"))[0]))
        self.assertEqual(self.state(job), "cancelled")
        self.assertEqual(self.order(), [])
        self.pause(False)
        self.mount.write("retry\n", "jobs", str(job), "ctl")
        self.assertEqual(self.mount.wait(job), "done")

    def test_ctl_refuses(self):
        job = self.mount.paint("a fox\n")
        for text in ("dance\n", "priority x\n", "priority 101\n", "cancel\n", ""):
            if text:
                with self.assertRaises(OSError) as caught:
                    self.mount.write(text, "jobs", str(job), "ctl")
                self.assertEqual(caught.exception.errno, errno.EINVAL)
                self.assertIn("ctl", self.mount.read("status", "error"))

    def test_queue_order(self):
        self.pause()
        jobs = [self.mount.prompt(f"fox {i}\n")[0] for i in range(5)]
        self.assertEqual(self.order(), jobs)
        self.assertEqual(os.readlink(self.mount.at("queue", "002-3")), "../jobs/3")
        self.mount.shell("mv mnt/queue/003-4 mnt/queue/000-4", check=True)
        self.assertEqual(self.order(), [4, 1, 2, 3, 5])
        self.mount.shell("mv mnt/queue/000-4 mnt/queue/002", check=True)
        self.assertEqual(self.order(), [1, 2, 4, 3, 5])
        self.mount.shell("mv -T mnt/queue/004-5 mnt/queue/000-1", check=True)  # takes its place
        self.assertEqual(self.order(), [5, 1, 2, 4, 3])
        self.mount.shell("rm mnt/queue/2", check=True)
        self.assertEqual(self.order(), [5, 1, 4, 3])
        self.mount.write("priority 9\n", "jobs", "3", "ctl")
        self.assertEqual(self.order(), [3, 5, 1, 4])
        self.assertNotEqual(self.mount.shell("mv mnt/queue/000-3 mnt/queue/first").returncode, 0)
        self.mount.shell("rm mnt/queue/*", check=True)
        self.assertEqual(self.order(), [])
        self.assertEqual({self.state(job) for job in jobs}, {"cancelled"})

    def test_running_job_is_first_and_rm_cancels_it(self):
        job = self.endless()
        other = self.mount.prompt("a bear --steps 2\n")[0]
        self.assertEqual(self.order(), [job, other])
        self.mount.shell(f"rm mnt/queue/000-{job}", check=True)
        self.assertEqual(self.mount.wait(job), "cancelled")
        self.mount.release()
        self.assertEqual(self.mount.wait(other), "done")

    def test_forget_a_job(self):
        job = self.mount.paint("a fox\n")
        os.rmdir(self.mount.at("jobs", str(job)))
        self.assertEqual(self.mount.jobs(), [])
        self.pause()
        job = self.mount.prompt("a fox\n")[0]
        with self.assertRaises(OSError) as caught:
            os.rmdir(self.mount.at("jobs", str(job)))
        self.assertEqual(caught.exception.errno, errno.EBUSY)

    # ---- Waiting ----

    def test_wait_blocks_and_is_interrupted(self):
        job = self.endless()
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            process = subprocess.Popen(["cat", self.mount.at("jobs", str(job), "wait")],
                                       stdout=subprocess.PIPE)
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(0.1)
            process.send_signal(sig)
            self.assertEqual(process.wait(PATIENCE), -sig)
            process.stdout.close()

    def test_many_wait(self):
        job = self.endless()
        processes = [subprocess.Popen(["cat", self.mount.at("jobs", str(job), "wait")],
                                      stdout=subprocess.PIPE, text=True) for _ in range(40)]
        self.mount.release()
        for process in processes:
            self.assertEqual(process.communicate(timeout=PATIENCE)[0], "done\n")
        self.assertEqual(self.state(job), "done")

    def test_wait_does_not_block_others(self):
        job = self.endless()
        waiters = [subprocess.Popen(["cat", self.mount.at("jobs", str(job), "wait")], stdout=subprocess.DEVNULL)
                   for _ in range(40)]
        self.assertIn(f"job {job} ", self.mount.shell("cat mnt/status/progress", check=True).stdout)
        self.mount.write("cancel\n", "jobs", str(job), "ctl")
        for waiter in waiters:
            self.assertEqual(waiter.wait(PATIENCE), 0)

    def test_wait_nonblocking_and_poll(self):
        job = self.endless()
        fd = os.open(self.mount.at("jobs", str(job), "wait"), os.O_RDONLY | os.O_NONBLOCK)
        with self.assertRaises(BlockingIOError):
            os.read(fd, 100)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        self.assertEqual(poller.poll(0), [])
        self.mount.release()
        self.assertEqual(poller.poll(PATIENCE_MS), [(fd, select.POLLIN)])
        self.assertEqual(os.read(fd, 100), b"done\n")
        os.close(fd)

    def test_stop_with_blocked_readers(self):
        job = self.endless()
        readers = [subprocess.Popen(["cat", self.mount.at(*path)], stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)
                   for path in (("jobs", str(job), "wait"), ("status", "events")) for _ in range(5)]
        time.sleep(0.2)
        self.assertEqual(self.mount.stop(), 0)
        for reader in readers:
            self.assertNotEqual(reader.wait(PATIENCE), 0)


class AgainstModel(MountTest):
    """queue/ and jobs/ under random changes are what a list says that went through the same."""

    def setUp(self):
        super().setUp()
        self.mount.write("1\n", "control", "pause")
        self.seed, self.rng = SEED, random.Random(SEED)
        self.order, self.priority, self.ended = [], {}, []

    def found(self):
        names = sorted(os.listdir(self.mount.at("queue")))
        self.assertEqual([int(name.split("-")[0]) for name in names], list(range(len(names))))
        return [int(name.split("-")[1]) for name in names]

    def insert_last(self, job):
        place = 0
        while place < len(self.order) and self.priority[self.order[place]] >= self.priority[job]:
            place += 1
        self.order.insert(place, job)

    def do_prompt(self):
        for job in self.mount.prompt(f"fox --count {self.rng.randrange(1, 4)}\n"):
            self.priority[job] = 0
            self.insert_last(job)

    def do_cancel(self):
        if self.order:
            job = self.rng.choice(self.order)
            name = f"{self.order.index(job):03}-{job}"
            if self.rng.random() < 0.5:
                os.unlink(self.mount.at("queue", self.rng.choice((name, str(job)))))
            else:
                self.mount.write("cancel\n", "jobs", str(job), "ctl")
            self.order.remove(job)
            self.ended.append(job)

    def do_retry(self):
        if self.ended:
            job = self.rng.choice(self.ended)
            self.mount.write("retry\n", "jobs", str(job), "ctl")
            self.ended.remove(job)
            self.insert_last(job)

    def do_forget(self):
        if self.ended and self.rng.random() < 0.3:
            job = self.rng.choice(self.ended)
            os.rmdir(self.mount.at("jobs", str(job)))
            self.ended.remove(job)
            del self.priority[job]

    def do_move(self):
        if self.order:
            job, place = self.rng.choice(self.order), self.rng.randrange(len(self.order) + 2)
            old = f"{self.order.index(job):03}-{job}"
            if old.startswith(f"{place:03}"):
                return
            os.rename(self.mount.at("queue", old), self.mount.at("queue", f"{place:03}"))
            self.order.remove(job)
            place = min(place, len(self.order))
            before = self.order[place - 1] if place > 0 else None
            after = self.order[place] if place < len(self.order) else None
            if after is None:
                self.priority[job] = self.priority[before] if before else self.priority[job]
            elif before is None or self.priority[before] != self.priority[job] or \
                    self.priority[after] == self.priority[job]:
                self.priority[job] = self.priority[after]
            self.order.insert(place, job)

    def do_priority(self):
        if self.order:
            job, priority = self.rng.choice(self.order), self.rng.randrange(-2, 3)
            self.mount.write(f"priority {priority}\n", "jobs", str(job), "ctl")
            self.priority[job] = priority
            # Among its new equals it stands where its age says, which is not ours to know.
            found = self.found()
            self.assertEqual([each for each in found if each != job], [each for each in self.order if each != job])
            self.order = found

    def test_random_changes(self):
        operations = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        for step in range(400):
            operation = self.rng.choice(operations)
            with self.subTest(f"seed {self.seed} step {step} {operation.__name__}"):
                operation()
                self.assertEqual(self.found(), self.order)
                priorities = [self.priority[job] for job in self.order]
                self.assertEqual(priorities, sorted(priorities, reverse=True))
            if step % 50 == 49:
                self.assertEqual(self.mount.jobs(), sorted(self.order + self.ended))
            if step % 130 == 129:  # and all of it outlives the daemon
                self.assertEqual(self.mount.stop(), 0)
                self.mount.start()


class Sharing(MountTest):
    """Where weights stream to a GPU, several images share the passes."""

    environment = {"FLUXFS_FAKE_BLOCK_US": "0", "FLUXFS_FAKE_BACKEND": "cuda"}
    FOUR_IN_STEP = 4 * (3 + 7) + 1

    def test_several_images_at_once(self):
        self.mount.hold(self.FOUR_IN_STEP)
        self.mount.prompt("fox --count 6 --steps 20\n")
        wait_for(lambda: self.mount.read("status", "progress").count("step") == 4, "four at once")
        self.mount.release()
        for job in range(1, 7):
            self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(len(os.listdir(self.mount.at("images"))), 7)

    def test_cancel_one_of_them(self):
        self.mount.hold(self.FOUR_IN_STEP)
        self.mount.prompt("fox --count 4 --steps 100\n")
        wait_for(lambda: self.mount.read("status", "progress").count("step") == 4, "four at once")
        self.mount.write("cancel\n", "jobs", "2", "ctl")
        self.mount.hold(self.FOUR_IN_STEP + 4 * 7)  # to the end of the round and beyond
        self.assertEqual(self.mount.wait(2), "cancelled")
        self.assertEqual(self.mount.read("jobs", "3", "state"), "running\n")


if __name__ == "__main__":
    run()
