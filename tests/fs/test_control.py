# SPDX-License-Identifier: MIT
"""control/: settings that are checked, in force and kept; and models that load slowly or not."""

import contextlib
import errno
import os
import re
import sqlite3
import time
import unittest

from mount import Mount, MountTest, run, wait_for
from png_text import parameters


class Control(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}

    def test_defaults_of_prompts(self):
        self.mount.write("7\n", "control", "steps")
        self.mount.write("2.5", "control", "guidance")
        self.mount.shell("echo 96 > mnt/control/width; echo 128 > mnt/control/height; printf 11 > mnt/control/seed",
                         check=True)
        job = self.mount.paint("a fox\n")
        parameters = self.mount.read("jobs", str(job), "parameters")
        for line in ("steps=7\n", "guidance=2.5\n", "width=96\n", "height=128\n", "seed=11\n"):
            self.assertIn(line, parameters)
        self.assertIn("steps=3\n", self.mount.read("jobs", str(self.mount.paint("fox --steps 3\n")), "parameters"))

    def test_bad_values_are_refused_by_write(self):
        for key, value in (("steps", "0"), ("steps", "x"), ("steps", "1001"), ("guidance", "nan"), ("width", "100"),
                           ("vram_budget", "12Q"), ("vram_budget", "1M"), ("vram_budget", "12"), ("images_limit", "12"),
                           ("images_limit", "63M"), ("pause", "maybe"), ("model", "/nowhere"),
                           ("model", "relative"), ("seed", "-2"), ("steps", ""), ("steps", "\n"), ("steps", "3\n4\n")):
            if not value:
                continue
            before = self.mount.read("control", key)
            with self.subTest(f"{key} {value}"), self.assertRaises(OSError) as caught:
                self.mount.write(value, "control", key)
            self.assertEqual(caught.exception.errno, errno.EINVAL)
            self.assertEqual(self.mount.read("control", key), before)
            self.assertIn(key, self.mount.read("status", "error"))

    def test_images_limit_takes_no_picture_by_mistake(self):
        job = self.mount.paint("a fox\n")
        for value, why in (("12", "12 is 12 bytes: write 12G\n"),
                           ("500", "500 is 500 bytes: write 500G, or 500M\n"),
                           ("1K", "1K is less than 64 MiB: write 64M or more, or 0 for no limit"),
                           ("auto", '"auto" is no size (try 12G, 512M, or 0 for no limit)'),
                           ("none", '"none" is no size (try 12G, 512M, or 0 for no limit)')):
            said = self.mount.shell(f"echo {value} > mnt/control/images_limit")
            self.assertNotEqual(said.returncode, 0)
            self.assertIn("Invalid argument", said.stderr)
            self.assertIn(f"images_limit: {why}", self.mount.read("status", "error"))
            self.assertTrue(os.path.exists(self.mount.at("images", self.mount.image(job))))
        for value, shown in (("64M", "64M\n"), ("0", "0\n")):
            self.mount.write(value, "control", "images_limit")
            self.assertEqual(self.mount.read("control", "images_limit"), shown)

    def test_values_outlive_the_daemon(self):
        for key, value in (("steps", "9"), ("guidance", "1.25"), ("vram_budget", "100M"), ("pause", "1"),
                           ("seed", "5"), ("images_limit", "2G")):
            self.mount.write(value + "\n", "control", key)
        shown = {key: self.mount.read("control", key) for key in os.listdir(self.mount.at("control"))}
        self.assertEqual(shown["steps"], "9\n")
        self.assertEqual(self.mount.stop(), 0)
        self.mount.start()
        for key, value in shown.items():
            self.assertEqual(self.mount.read("control", key), value, key)
        self.mount.write("default\n", "control", "steps")
        self.assertEqual(self.mount.read("control", "steps"), "auto\n")
        wait_for(lambda: "budget 100.0 MiB" in self.mount.read("status", "vram"), "the budget")

    def test_what_is_read_can_be_written(self):
        self.mount.stop()
        self.mount.options = ["--steps=9", "--width=96", "--images-limit=64M"]
        self.mount.start()
        for key, value in (("steps", "auto"), ("width", "auto"), ("images_limit", "0"), ("seed", "random")):
            self.mount.write(value, "control", key)
        for key in os.listdir(self.mount.at("control")):
            value = self.mount.read("control", key)
            self.mount.write(value, "control", key)
            self.assertEqual(self.mount.read("control", key), value, key)
        self.assertEqual(self.mount.read("control", "steps"), "auto\n")

    def test_mount_tells_which_options_do_not_count(self):
        for key, value in (("steps", "9"), ("width", "96"), ("height", "64"), ("seed", "5"), ("pause", "1")):
            self.mount.write(value, "control", key)
        self.mount.stop()
        self.mount.options = ["--steps=4", "-o", "size=64x64,guidance=2"]
        self.mount.start()
        said = [line for line in self.mount.read_log().splitlines() if "from before" in line]
        self.assertEqual([re.sub("; .*", "", line) for line in said], [
            "fluxfs: control/steps holds 9 from before, which goes over the 4 given",
            "fluxfs: control/width holds 96 from before, which goes over the 64 given",
            "fluxfs: control/pause holds 1 from before: prompts wait"])

    def test_budget_while_painting(self):
        self.mount.write("128M\n", "control", "vram_budget")
        self.assertIn("budget 128.0 MiB\n", self.mount.read("status", "vram"))
        self.assertEqual(self.mount.read("control", "vram_budget"), "128M\n")

    def test_no_limit_as_kept_by_earlier_versions(self):
        self.mount.write("2G", "control", "images_limit")
        self.mount.stop()
        with contextlib.closing(sqlite3.connect(os.path.join(self.mount.state, "queue.db"))) as kept:
            changed = kept.execute("UPDATE settings SET value = 'none' WHERE key = 'control.images_limit'").rowcount
            kept.commit()
        self.assertEqual(changed, 1)
        self.mount.start("--images-limit=64M")
        self.assertEqual(self.mount.read("control", "images_limit"), "0\n")

    def test_pause(self):
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("fox\n")
        time.sleep(0.1)
        self.assertEqual(self.mount.read("status", "progress"), "paused, 1 waiting\n")
        self.mount.write("0\n", "control", "pause")
        self.assertEqual(self.mount.wait(1), "done")

    def test_other_model(self):
        model = self.model("other")
        self.mount.write(model + "\n", "control", "model")
        self.wait_for_model("other")
        self.mount.paint("a fox\n")
        self.assertEqual(self.mount.read("control", "model"), model + "\n")
        self.assertEqual(self.mount.stop(), 0)
        self.mount.start()
        self.wait_for_model("other")
        # Where it is gone, the mount comes up with the one configured, and says why.
        self.mount.stop()
        os.rename(model, model + "-gone")
        self.mount.start()
        self.wait_for_model(os.path.basename(self.mount.folder))
        self.assertRegex(self.mount.read("status", "error"), f"^control/model: the value kept .*{model}: no such folder")

    def model(self, name, *faults):
        folder = os.path.join(self.mount.folder, name)
        os.mkdir(folder)
        for file in faults:
            open(os.path.join(folder, file), "w").close()
        return folder

    def wait_for_model(self, name):
        wait_for(lambda: f"model {name}\n" in self.mount.read("status", "device"), "the other model")

    def test_model_changes_between_two_jobs(self):
        self.mount.hold(5)
        first = self.mount.prompt("a fox\n")[0]
        wait_for(lambda: "step" in self.mount.read("status", "progress"), "a step")
        self.mount.write(self.model("other"), "control", "model")
        second = self.mount.prompt("a bear --steps 2\n")[0]
        self.assertEqual(self.mount.read("jobs", str(second), "state"), "waiting\n")
        self.mount.release()
        for job, model in ((first, os.path.basename(self.mount.folder)), (second, "other")):
            self.assertEqual(self.mount.wait(job), "done")
            with open(self.mount.at("images", self.mount.image(job)), "rb") as file:
                self.assertIn(f"Model: {model}", parameters(file.read()))

    def test_waiting_switch_is_told(self):
        self.mount.environment = {"FLUXFS_FAKE_BLOCK_US": "5000"}
        self.mount.stop()
        self.mount.start()
        first = os.path.basename(self.mount.folder)
        self.wait_for_model(first)
        job = self.mount.prompt("a fox --steps 1000\n")[0]
        wait_for(lambda: "step" in self.mount.read("status", "progress"), "a step")
        other = self.model("other")
        for model, health in ((other, f"ok: {other} is opened once what is being painted is done\n"),
                              ("default", "ok\n"),
                              (other, f"ok: {other} is opened once what is being painted is done\n")):
            self.mount.write(model, "control", "model")
            wait_for(lambda: self.mount.read("status", "health") == health, health)
            self.assertIn(f"model {first}\n", self.mount.read("status", "device"))
        self.mount.write("cancel", "jobs", str(job), "ctl")
        self.wait_for_model("other")
        wait_for(lambda: self.mount.read("status", "health") == "ok\n", "the other model's health")

    def test_broken_model_and_back(self):
        good = self.model("good")
        self.mount.write(self.model("bad", "broken"), "control", "model")
        wait_for(lambda: self.mount.read("status", "health").startswith("error: "), "the error")
        self.assertIn("bad: is broken", self.mount.read("status", "error"))
        job = self.mount.prompt("a fox\n")[0]
        self.assertEqual(self.mount.read("jobs", str(job), "state"), "waiting\n")
        self.mount.write(good, "control", "model")
        self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(self.mount.read("status", "health"), "ok\n")

    def states(self, jobs):
        return [self.mount.read("jobs", str(job), "state").strip() for job in jobs]

    def damaged(self):
        """A model whose damaged weights three jobs have come upon, which wait again."""
        bad = self.model("bad", "damaged")
        self.mount.write(bad, "control", "model")
        self.wait_for_model("bad")
        jobs = [self.mount.prompt(f"fox {i}\n")[0] for i in range(3)]
        health = (f"error: {bad}/damaged: tensor x: NaN or infinite weights; tried again every 10 s, and at once "
                  "when control/model or control/vram_budget is written\n")
        wait_for(lambda: self.mount.read("status", "health") == health, health)
        self.assertEqual(self.states(jobs), ["waiting"] * 3)
        return bad, jobs

    def tries(self):
        return self.mount.shell("tail -n 400 mnt/status/events").stdout.count(" running")

    def assert_painted(self, jobs, model):
        for job in jobs:
            self.assertEqual(self.mount.wait(job), "done")
            with open(self.mount.at("images", self.mount.image(job)), "rb") as file:
                self.assertIn(f"Model: {model}", parameters(file.read()))
        self.assertEqual(self.mount.read("status", "health"), "ok\n")
        self.assertIn("failed 0\n", self.mount.read("status", "queue"))

    def test_damaged_model_is_repaired(self):
        bad, jobs = self.damaged()
        self.mount.write("cancel\n", "jobs", str(jobs[0]), "ctl")
        self.assertEqual(self.mount.wait(jobs[0]), "cancelled")
        jobs = jobs[1:] + self.mount.prompt("a bear\n")
        # Neither these changes of the queue nor time alone have it tried again and again.
        time.sleep(1)
        self.assertLessEqual(self.tries(), 2)
        os.unlink(os.path.join(bad, "damaged"))
        self.assert_painted(jobs, "bad")

    def test_damaged_model_is_tried_at_once_when_written(self):
        bad, jobs = self.damaged()
        start = time.monotonic()
        for _ in range(12):
            tries = self.tries()
            self.mount.write(bad, "control", "model")
            wait_for(lambda: self.tries() > tries, "another try")
        self.assertLess(time.monotonic() - start, 100)  # they don't wait for the 10 s
        os.unlink(os.path.join(bad, "damaged"))
        self.mount.write(bad, "control", "model")
        self.assert_painted(jobs, "bad")

    def test_damaged_model_and_another(self):
        _, jobs = self.damaged()
        self.mount.write(self.model("good"), "control", "model")
        self.wait_for_model("good")
        self.assert_painted(jobs, "good")


class Broken(MountTest):
    environment = {"FLUXFS_FAKE_OPEN_FAIL": "model.safetensors: tensor x: has no end"}

    def test_mount_stays_up(self):
        wait_for(lambda: self.mount.read("status", "health").startswith("error"), "the error")
        self.assertEqual(self.mount.read("status", "health"),
                         "error: model.safetensors: tensor x: has no end; tried again every 10 s, and at once when "
                         "control/model or control/vram_budget is written\n")
        self.assertEqual(self.mount.prompt("a fox\n"), [1])
        self.assertEqual(self.mount.read("jobs", "1", "state"), "waiting\n")
        self.assertEqual(self.mount.read("status", "progress"), "error, 1 waiting\n")


    def test_stored_budget_that_is_too_small(self):
        """Nobody can tell while no engine is open; then it is said, and what helps."""
        self.mount.write("32M\n", "control", "vram_budget")
        self.mount.prompt("a fox\n")
        self.mount.stop()
        self.mount.environment = {"FLUXFS_FAKE_BLOCK_US": "0"}
        self.mount.start()
        wait_for(lambda: self.mount.read("status", "health").startswith("error"), "the error")
        self.assertRegex(self.mount.read("status", "health"), "at least 64 MiB are needed; .*control/vram_budget is written")
        self.assertEqual(self.mount.read("jobs", "1", "state"), "waiting\n")
        self.mount.write("64M\n", "control", "vram_budget")
        self.assertEqual(self.mount.wait(1), "done")
        self.assertEqual(self.mount.read("status", "health"), "ok\n")


class Loading(unittest.TestCase):
    def test_readable_while_loading(self):
        mount = Mount(start=False, environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        self.addCleanup(mount.clean)
        mount.hold(-1)
        mount.start(loaded=False)
        self.assertTrue(mount.read("status", "health").startswith("loading"))
        for name in os.listdir(mount.at("status")):
            if name != "events":
                mount.read("status", name)
        mount.write("5\n", "control", "steps")
        job = mount.prompt("a fox\n")[0]
        mount.write("1\n", "control", "pause")
        mount.release()
        wait_for(lambda: mount.read("status", "health") == "ok\n", "the engine")
        time.sleep(0.1)  # in which it could be taken
        self.assertEqual(mount.read("jobs", str(job), "state"), "waiting\n")
        mount.write("0\n", "control", "pause")
        self.assertEqual(mount.wait(job), "done")


if __name__ == "__main__":
    run()
