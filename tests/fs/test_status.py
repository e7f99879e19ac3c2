# SPDX-License-Identifier: MIT
"""status/: contents, poll and POLLPRI, thresholds, the event stream."""

import json
import os
import re
import select
import subprocess
import threading
import time
import unittest

from mount import PATIENCE, PATIENCE_MS, Mount, MountTest, needs, run, wait_for

try:
    import prometheus_client.openmetrics.parser as openmetrics
    import prometheus_client.parser as prometheus
except ImportError:
    openmetrics = prometheus = None

CHANGED = select.POLLPRI | select.POLLERR


class Status(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "2000"}

    def test_vram(self):
        self.mount.paint("a fox\n")
        lines = dict(line.split(" ", 1) for line in self.mount.read("status", "vram").splitlines())
        self.assertEqual(lines["used"], "60.0 MiB")
        self.assertEqual(lines["budget"], "256.0 MiB")
        self.assertEqual(lines["percent"], "23.4")
        self.assertEqual(lines["level"], "green")
        self.assertEqual(lines["weights"], "40.0 MiB")

    def test_levels(self):
        self.mount.paint("a fox\n")
        for budget, level in (("82M", "green"), ("78M", "yellow"), ("66M", "red")):
            self.mount.write(budget + "\n", "control", "vram_budget")
            self.assertIn(f"level {level}\n", self.mount.read("status", "vram"), budget)

    def test_memory_map(self):
        self.mount.paint("a fox\n")
        end = 0
        for line in self.mount.read("status", "memory").splitlines():
            offset, size, what = line.split(None, 2)
            self.assertEqual(int(offset), end)
            end += int(size)
        self.assertEqual(end, 60 << 20)

    def test_timing(self):
        self.mount.paint("a fox\n")
        wait_for(lambda: "last_denoise" in self.mount.read("status", "timing"), "the last image")
        self.assertRegex(self.mount.read("status", "timing"), r"all_computing 0\.\d+ s\n")

    def test_all_json(self):
        self.mount.hold(15)
        self.mount.prompt("fox --count 3 --steps 20\n")
        wait_for(lambda: "step 2/20 block 5/7" in self.mount.read("status", "progress"), "step 2")
        status = json.loads(self.mount.read("status", "all.json"))
        self.assertEqual(status["version"], 1)
        self.assertEqual(status["health"], {"state": "ok", "reason": ""})
        self.assertEqual((status["queue"]["running"], status["queue"]["waiting"]), (1, 2))
        self.assertEqual([job["id"] for job in status["queue"]["order"]], [1, 2, 3])
        self.assertEqual(status["running"][0]["job"], 1)
        self.assertEqual(status["running"][0]["steps"], 20)
        self.assertEqual(status["vram"]["budget_bytes"], 256 << 20)
        self.assertEqual(status["device"]["native_px"], 64)

    def shape(self, value, path=""):
        """The members of all.json, as the manual names them."""
        if isinstance(value, list):
            self.assertTrue(value, f"{path} is empty: nothing to compare")
            return self.shape(value[0], path + "[]")
        if isinstance(value, dict) and path != "vram.components":
            return set().union(*(self.shape(each, f"{path}.{key}".lstrip(".")) for key, each in value.items()))
        return {path + (".*" if isinstance(value, dict) else "")}

    def test_all_json_is_as_the_manual_says(self):
        self.mount.paint("a fox --steps 1\n")
        self.mount.hold(11 + 15)
        self.mount.prompt("fox --count 2 --steps 20\n")
        wait_for(lambda: "step 2/20 block 5/7" in self.mount.read("status", "progress"), "step 2")
        with open(os.path.join(os.path.dirname(__file__), "../../etc/fluxfs.1")) as file:
            manual = re.search(r"^\.Ss status/all\.json\n.*?^\.Bd.*?\n(.*?)^\.Ed", file.read(), re.M | re.S)[1]
        told, top = set(), ""
        for line in manual.splitlines():
            words = line.removeprefix("\\&").split()
            for word in words:
                if not re.fullmatch(r"(\.|\[\]\.)?[a-z_]+(\[\])?(\.[a-z_]+(\[\])?)*(\.\*)?", word) or \
                        word != words[0] and word[0] not in ".[":
                    break  # the explanation
                if word[0] not in ".[":
                    top = re.match(r"[a-z_]+", word)[0]
                    told.add(word)
                else:
                    told.add(top + word)
        self.assertEqual(self.shape(json.loads(self.mount.read("status", "all.json"))), told)

    def test_metrics(self):
        """By the rules of the text format, and of `promtool check metrics`."""
        self.mount.paint("a fox\n")
        text = self.mount.read("status", "metrics")
        self.assertIn('fluxfs_jobs{state="done"} 1\n', text)
        self.assertTrue(text.endswith("\n"))
        name, number = r"[a-zA-Z_][a-zA-Z0-9_]*", r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|Inf|NaN)"
        label = rf'{name}="(?:[^"\\]|\\["\\n])*"'
        seen, families, lines = set(), set(), text.splitlines()
        while lines:
            told = re.fullmatch(rf"# HELP ({name}) (.+)", lines.pop(0))
            self.assertTrue(told and told[1] not in families, told)
            families.add(told[1])
            kind = re.fullmatch(rf"# TYPE {told[1]} (counter|gauge)", lines.pop(0))
            self.assertTrue(kind, told[1])
            self.assertEqual(kind[1] == "counter", told[1].endswith("_total"), told[1])
            self.assertTrue(told[1].startswith("fluxfs_") and told[2].endswith("."), told[0])
            samples = 0
            while lines and not lines[0].startswith("#"):
                sample = re.fullmatch(rf"({name})(\{{{label}(?:,{label})*\}})? ({number})", lines.pop(0))
                self.assertTrue(sample and sample[1] == told[1], told[1])
                self.assertNotIn((sample[1], sample[2]), seen)
                self.assertTrue(kind[1] == "gauge" or float(sample[3]) >= 0, sample[0])
                seen.add((sample[1], sample[2]))
                samples += 1
            self.assertGreater(samples, 0, told[1])
        self.assertGreater(len(families), 15)

    @unittest.skipIf(prometheus is None, "not installed: prometheus_client")
    def test_metrics_as_prometheus_reads_them(self):
        self.mount.paint("a fox\n")
        text = self.mount.read("status", "metrics")
        ours = {(name, tuple(re.findall(r'(\w+)="([^"]*)"', labels))): float(value) for name, labels, value
                in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.M)}
        def theirs(families):
            return {(sample.name, tuple(sample.labels.items())): sample.value
                    for family in families for sample in family.samples}
        self.assertEqual(theirs(prometheus.text_string_to_metric_families(text)), ours)
        # OpenMetrics has a strict reader; there a counter is named without its _total, and the end is marked.
        text = re.sub(r"^(# (?:HELP|TYPE) \w+)_total ", r"\1 ", text, flags=re.M) + "# EOF\n"
        self.assertEqual(theirs(openmetrics.text_string_to_metric_families(text)), ours)

    @needs("promtool")
    def test_promtool(self):
        self.mount.paint("a fox\n")
        said = self.mount.shell("promtool check metrics < mnt/status/metrics", check=True)
        self.assertEqual((said.stdout, said.stderr), ("", ""))

    def test_error_is_kept_until_the_next(self):
        for text in ("fox --stepz\n", "fox --sise 3\n"):
            with self.assertRaises(OSError):
                self.mount.write(text, "new")
            self.assertIn(text.split()[1], self.mount.read("status", "error"))

    # ---- poll ----

    def poller(self, fd, events):
        poller = select.poll()
        poller.register(fd, events)
        return poller

    def test_poll_wakes_on_change(self):
        fd = os.open(self.mount.at("status", "queue"), os.O_RDONLY)
        os.read(fd, 4096)
        poller = self.poller(fd, select.POLLPRI)
        self.assertEqual(poller.poll(50), [])
        timer = threading.Timer(0.1, self.mount.prompt, ["a fox\n"])
        timer.start()
        self.assertEqual(poller.poll(PATIENCE_MS), [(fd, CHANGED)])
        timer.join()
        self.assertEqual(poller.poll(0), [(fd, CHANGED)])  # until it is read
        self.mount.wait(1)
        wait_for(lambda: self.mount.read("status", "progress").startswith("idle"), "the end")
        os.lseek(fd, 0, os.SEEK_SET)
        self.assertIn(b"done 1\n", os.read(fd, 4096))
        self.assertEqual(poller.poll(50), [])
        os.close(fd)

    def test_select_and_epoll(self):
        fd = os.open(self.mount.at("status", "queue"), os.O_RDONLY)
        os.read(fd, 4096)
        self.assertEqual(select.select([], [], [fd], 0.05)[2], [])
        epoll = select.epoll()
        epoll.register(fd, select.EPOLLPRI)
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("a fox\n")
        self.assertEqual(select.select([], [], [fd], PATIENCE)[2], [fd])
        self.assertEqual([found for found, _ in epoll.poll(PATIENCE)], [fd])
        epoll.close()
        os.close(fd)

    def test_readable_at_any_time(self):
        fd = os.open(self.mount.at("status", "health"), os.O_RDONLY)
        self.assertEqual(self.poller(fd, select.POLLIN).poll(0)[0][1] & select.POLLIN, select.POLLIN)
        os.close(fd)

    def test_poll_progress_of_every_block(self):
        self.mount.hold(1)
        fd = os.open(self.mount.at("status", "progress"), os.O_RDONLY)
        os.read(fd, 4096)
        poller = self.poller(fd, select.POLLPRI)
        self.mount.prompt("a fox --steps 2\n")
        blocks = [f"text block {i}/3" for i in range(1, 4)]
        blocks += [f"step {step}/2 block {i}/7" for step in (1, 2) for i in range(1, 8)]
        for passed, block in enumerate(blocks):
            self.mount.hold(passed + 1)
            line = ""
            while block not in line:  # before the first one, that the job has begun
                self.assertEqual(poller.poll(PATIENCE_MS), [(fd, CHANGED)], f"{block}: {line}")
                os.lseek(fd, 0, os.SEEK_SET)
                line = os.read(fd, 4096).decode()
                self.assertTrue(block in line or passed == 0, line)
        os.close(fd)

    def test_progress_of_a_job_just_taken(self):
        """It waits until its picture shows: who waits for none to wait has it then."""
        made = Mount(environment={"FLUXFS_FAKE_START_US": "1000000"})
        self.addCleanup(made.clean)
        job = made.prompt("a fox\n")[0]
        wait_for(lambda: made.read("jobs", str(job), "state") == "running\n", "it to be taken")
        self.assertEqual(made.read("status", "progress"), "idle, 1 waiting\n")
        wait_for(lambda: made.read("status", "progress") == "idle, 0 waiting\n", "the end")
        self.assertEqual(made.read("jobs", str(job), "state"), "done\n")

    def test_threshold(self):
        fd = os.open(self.mount.at("status", "vram"), os.O_RDWR)
        os.write(fd, b"50M\n")  # 19.5 % of 256 MiB; 60 MiB are in use from the first block on
        poller = self.poller(fd, select.POLLPRI)
        self.assertEqual(poller.poll(50), [])
        self.mount.prompt("a fox\n")
        self.assertEqual([event & select.POLLPRI for _, event in poller.poll(PATIENCE_MS)], [select.POLLPRI])
        self.assertEqual(poller.poll(50), [])  # told once for each crossing
        for text in (b"0%", b"101%", b"x", b"1T", b"85"):
            with self.assertRaises(OSError):
                os.write(fd, text)
        self.assertIn('"85" is no threshold: write per cent of the budget (85%) or a size (12G, 512M)',
                      self.mount.read("status", "error"))
        os.close(fd)

    def test_thresholds(self):
        """In per cent and as a size, each told once for each crossing, and again after going below."""
        fds = [os.open(self.mount.at("status", "vram"), os.O_RDWR) for _ in range(3)]
        for fd, text in zip(fds, (b"20%\n", b"55M", b"90 %")):
            if b" " in text:
                with self.assertRaises(OSError):
                    os.write(fd, text)
                text = b"90%"
            os.write(fd, text)
        pollers = [self.poller(fd, select.POLLPRI) for fd in fds]
        self.mount.prompt("a fox\n")  # 60 MiB of 256: 23 %
        for poller in pollers[:2]:
            self.assertEqual(len(poller.poll(PATIENCE_MS)), 1)
            self.assertEqual(poller.poll(0), [])
        self.assertEqual(pollers[2].poll(50), [])
        self.mount.wait(1)
        self.mount.write("66M\n", "control", "vram_budget")  # now it is 91 %
        self.assertEqual(len(pollers[2].poll(PATIENCE_MS)), 1)
        wait_for(lambda: self.told_of_a_dip(pollers[2]), "the next crossing")
        for fd in fds:
            os.close(fd)

    def told_of_a_dip(self, poller):
        """It may be too short to be noticed: then another time."""
        self.mount.write("256M\n", "control", "vram_budget")
        time.sleep(0.05)
        self.mount.write("66M\n", "control", "vram_budget")
        return poller.poll(1000)

    # ---- events ----

    def test_cat_follows(self):
        process = subprocess.Popen(["cat", self.mount.at("status", "events")], stdout=subprocess.PIPE, text=True)
        self.mount.paint("a fox\n")
        lines = []
        while not lines or not lines[-1].endswith("job 1 done\n"):
            lines.append(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
        for line in lines:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \w")
        text = "".join(lines)
        for event in ("job 1 waiting", "job 1 running", "image 0001-a-fox.png added"):
            self.assertIn(event, text)

    def test_tail_follows(self):
        process = subprocess.Popen(["tail", "-n", "1", "-s", "0.1", "-f", self.mount.at("status", "events")],
                                   stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        self.mount.paint("a fox\n")
        while not process.stdout.readline().endswith("job 1 done\n"):
            pass
        process.kill()
        process.wait()
        process.stdout.close()

    def test_tail_ends(self):
        self.mount.paint("a fox\n")
        wait_for(lambda: self.mount.shell("tail -n 1 mnt/status/events").stdout.endswith("job 1 done\n"), "the line")

    def test_stream_poll(self):
        fd = os.open(self.mount.at("status", "events"), os.O_RDONLY | os.O_NONBLOCK)
        while True:
            try:
                os.read(fd, 4096)
            except BlockingIOError:
                break
        poller = self.poller(fd, select.POLLIN)
        self.assertEqual(poller.poll(50), [])
        self.mount.write("3\n", "control", "steps")
        self.assertEqual(poller.poll(PATIENCE_MS), [(fd, select.POLLIN)])
        self.assertIn(b"control/steps changed\n", os.read(fd, 4096))
        os.close(fd)


class Loading(unittest.TestCase):
    def test_threshold_before_the_engine_is_there(self):
        mount = Mount(start=False, environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        self.addCleanup(mount.clean)
        mount.hold(-1)
        mount.start(loaded=False)
        fd = os.open(mount.at("status", "vram"), os.O_RDWR)
        self.assertTrue(mount.read("status", "health").startswith("loading"))
        os.write(fd, b"50M\n")
        mount.release()
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        mount.prompt("a fox\n")
        self.assertEqual(len(poller.poll(PATIENCE_MS)), 1)
        os.close(fd)


if __name__ == "__main__":
    run()
