# SPDX-License-Identifier: MIT
"""The real engine behind the mount: from prompt to PNG with the embedded model."""

import glob
import os
import re
import shutil
import tempfile
import unittest

import mount
from mount import Mount, run, wait_for
from png_text import parameters

MODEL = os.environ["MODEL"]
BACKEND = os.environ.get("FLUXFS_BACKEND", "cpu")
MODULES = os.environ.get("FLUXFS_MODULES")
BUDGET = os.environ.get("FLUXFS_BUDGET", "100M")
PROMPT = "a large red circle on a white background --size 128 --steps 4 --seed 3\n"


def shown(mib):
    return f"{mib}.0 MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"


class Real(unittest.TestCase):
    def start(self, *options):
        more = [f"--module-dir={MODULES}"] if MODULES else []
        made = Mount(f"--model={MODEL}", f"--backend={BACKEND}", *more, *options, start=False)
        self.addCleanup(made.clean)
        made.command = lambda *more: [mount.FLUXFS, "--config=/dev/null", "--foreground",
                                      f"--state-dir={made.state}", *made.options, *more, made.path]
        return made.start()

    def paint(self, *options):
        made = self.start(*options)
        job = made.paint(PROMPT)
        with open(made.at("images", made.image(job)), "rb") as file:
            return made, file.read()

    def test_paints(self):
        made, png = self.paint()
        self.assertIn("Steps: 4", parameters(png))
        self.assertIn("Model: mini", parameters(png))
        lines = dict(line.split(" ", 1) for line in made.read("status", "vram").splitlines())
        self.assertNotEqual(lines["peak"], "0 B")
        self.assertIn("spilled_host_memory 0 B\n", made.read("status", "device"))
        self.assertIn("denoise_s", made.read("jobs", "1", "timing"))
        self.assertEqual(made.stop(), 0)

    def test_budget_changes_no_pixel(self):
        made, png = self.paint()
        with self.assertRaises(OSError):
            made.write("1K\n", "control", "vram_budget")
        self.assertIn("vram_budget of 1.0 KiB", made.read("status", "error"))
        made.write(f"{BUDGET}\n", "control", "vram_budget")
        job = made.paint(PROMPT)
        self.assertRegex(made.read("status", "vram"), rf"budget {BUDGET[:-1]}\.0+ {BUDGET[-1]}iB\n")
        with open(made.at("images", made.image(job)), "rb") as file:
            self.assertEqual(file.read(), png)

    def least_budget(self, made):
        """Of the smallest picture, as the engine tells it."""
        with self.assertRaises(OSError):
            made.write("1K\n", "control", "vram_budget")
        return re.search(r"takes ([\d.]+ [MG]iB) at least", made.read("status", "error"))[1]

    def read_image(self, made, job):
        with open(made.at("images", made.image(job)), "rb") as file:
            return file.read()

    def test_budget_lowered_below_what_jobs_need(self):
        made = self.start()
        prompt = PROMPT.replace("128", "256")
        png = self.read_image(made, made.paint(prompt))
        jobs = [made.prompt(text)[0] for text in (prompt.replace("steps 4", "steps 1000"), prompt, prompt, prompt)]
        wait_for(lambda: "step 2" in made.read("status", "progress"), "step 2")
        made.write(self.least_budget(made) + "\n", "control", "vram_budget")
        wait_for(lambda: made.read("status", "health").startswith(f"error: job {jobs[0]} waits: "), "the job to wait")
        self.assertRegex(made.read("status", "health"),
                         r"size 256x256 with 1000 steps needs a vram_budget of [\d.]+ [MG]iB at least; it is [\d.]+ [MG]iB; ")
        self.assertEqual([made.read("jobs", str(job), "state") for job in jobs], ["waiting\n"] * 4)
        made.write("cancel\n", "jobs", str(jobs[0]), "ctl")
        self.assertEqual(made.wait(jobs[0]), "cancelled")
        wait_for(lambda: f"job {jobs[1]} waits: " in made.read("status", "health"), "the next to wait")
        made.write(f"{BUDGET}\n", "control", "vram_budget")
        for job in jobs[1:]:
            self.assertEqual(made.wait(job), "done")
            self.assertEqual(self.read_image(made, job), png)
        self.assertEqual(made.read("status", "health"), "ok\n")

    def test_running_job_begins_again(self):
        made = self.start()
        prompt = PROMPT.replace("128", "256").replace("steps 4", f"steps {1000 if BACKEND == 'cuda' else 40}")
        png = self.read_image(made, made.paint(prompt))
        least = self.least_budget(made)
        job = made.prompt(prompt)[0]
        wait_for(lambda: "step" in made.read("status", "progress"), "a step")
        made.write(least + "\n", "control", "vram_budget")
        wait_for(lambda: f"job {job} waits: " in made.read("status", "health"), "the job to wait")
        made.write(f"{BUDGET}\n", "control", "vram_budget")
        self.assertEqual(made.wait(job), "done")
        self.assertEqual(self.read_image(made, job), png)

    def test_budget_too_small_at_the_start(self):
        """The engine says how much it takes; written to control/, that does."""
        made = self.start("--vram-budget=1M")
        wait_for(lambda: made.read("status", "health").startswith("error: "), "the error")
        needed = re.search(r"([\d.]+ MiB) at least; .*control/vram_budget", made.read("status", "health"))
        self.assertTrue(needed, made.read("status", "health"))
        self.assertIn("vram_budget of 1.0 MiB", made.read("status", "health"))
        made.write(f"{needed[1]}\n", "control", "vram_budget")
        wait_for(lambda: made.read("status", "health") == "ok\n", "the engine")
        made.paint("x --size 16 --steps 1\n")

    def test_damaged_weights_and_repair(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        model = shutil.copytree(MODEL, os.path.join(folder, "mod"))
        path = glob.glob(os.path.join(model, "transformer", "*.safetensors"))[0]
        with open(path, "rb") as file:
            sound = file.read()
        data = 8 + int.from_bytes(sound[:8], "little")
        with open(path, "r+b") as file:
            file.seek(data)
            file.write(b"\xff\x7f" * ((len(sound) - data) // 2))
        made = self.start(f"--model={model}")
        jobs = [made.prompt(PROMPT)[0] for _ in range(3)]
        wait_for(lambda: made.read("status", "health").startswith("error: "), "the error")
        self.assertRegex(made.read("status", "health"), r"transformer/.*: tensor .*: NaN or infinite weights; the file is "
                         "damaged, fetch it again; tried again every 10 s")
        self.assertEqual([made.read("jobs", str(job), "state") for job in jobs], ["waiting\n"] * 3)
        with open(path, "wb") as file:
            file.write(sound)
        made.write(f"{model}\n", "control", "model")
        for job in jobs:
            self.assertEqual(made.wait(job), "done")
        self.assertEqual(made.read("status", "health"), "ok\n")

    def test_trace_records_every_allocation(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "trace")
        made, _ = self.paint(f"--trace={path}")
        lines = dict(line.split(" ", 1) for line in made.read("status", "fragmentation").splitlines())
        self.assertEqual(made.stop(), 0)
        with open(path) as file:
            events = [line.split() for line in file]
        self.assertIn(["m", "image,", "128x128"], events)
        made_ids = [event[1] for event in events if event[0] == "a"]
        freed_ids = [event[1] for event in events if event[0] == "f"]
        self.assertEqual(len(made_ids), int(lines["allocations"]))
        self.assertEqual(len(set(made_ids)), len(made_ids))
        self.assertGreater(len(freed_ids), 0)
        self.assertLessEqual(set(freed_ids), set(made_ids))

    def test_paints_whatever_is_asked(self):
        made, _ = self.paint()
        for words in ("a portrait of Ada Lovelace, oil on canvas", "Ein Fuchs im Schnee, \u00e9lan",
                      "\u732b \U0001f98a", "x", "#!?", "word " * 2000):
            made.paint(f"{words} --size 64 --steps 1\n")

    def test_cancel(self):
        made, _ = self.paint()
        job = made.prompt("a long one --steps 1000\n")[0]
        wait_for(lambda: "step 2" in made.read("status", "progress"), "step 2")
        made.write("cancel\n", "jobs", str(job), "ctl")
        self.assertEqual(made.wait(job), "cancelled")

    def test_weights_cut_short_while_mounted(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        model = shutil.copytree(MODEL, os.path.join(folder, "model"))
        made, png = self.paint(f"--model={model}")
        name = next(name for name in os.listdir(f"{model}/vae") if name.endswith(".safetensors"))
        weights = os.path.join(model, "vae", name)
        os.truncate(weights, 20000)
        job = made.prompt(PROMPT)[0]
        wait_for(lambda: made.read("status", "health").startswith("error: "), "the error")
        self.assertIn(name, made.read("status", "health"))
        shutil.copyfile(os.path.join(MODEL, "vae", name), weights + ".whole")
        os.rename(weights + ".whole", weights)
        self.assertEqual(made.wait(job), "done")
        with open(made.at("images", made.image(job)), "rb") as file:
            self.assertEqual(file.read(), png)

    def test_model_without_weights(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        model = shutil.copytree(MODEL, os.path.join(folder, "model"),
                                ignore=lambda path, names: [name for name in names if "safetensors" in name
                                                            and path.endswith("/transformer")])
        why = f"model: {model}/transformer: no weights: "
        made, _ = self.paint()
        with self.assertRaises(OSError):
            made.write(model + "\n", "control", "model")
        self.assertIn(f"control/model: {why}", made.read("status", "error"))
        made.paint("x --size 16 --steps 1\n")
        self.assertIn(why, self.start(f"--model={model}").read_log())

    def test_model_of_another_layout(self):
        """As most people have FLUX.1: one file, or a folder of such files."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        file = os.path.join(folder, "flux1-dev.safetensors")
        with open(file, "w"):
            pass
        made, _ = self.paint()
        for model, why in ((file, "is a file: a folder in the layout of diffusers is needed"),
                           (folder, "no model in the layout of diffusers: neither transformer/ nor ")):
            with self.assertRaises(OSError):
                made.write(model + "\n", "control", "model")
            self.assertIn(f"control/model: model: {model}: {why}", made.read("status", "error"))
            other = Mount(f"--model={model}", start=False)
            self.addCleanup(other.clean)
            other.start(loaded=False)
            wait_for(lambda: other.read("status", "health").startswith(f"error: {model}: {why}"), why)

    def test_prompt_that_the_model_does_not_read_to_its_end(self):
        made, _ = self.paint()
        read = int(re.search(r"longest_prompt (\d+)", made.read("status", "device"))[1])
        for words, cut in ((read // 2, False), (2 * read, True)):
            job = made.paint("star " * words + "--size 16 --steps 1\n")
            events = made.shell("timeout 1 cat mnt/status/events").stdout
            self.assertEqual(f"job {job}: the model reads the first {read} tokens" in events, cut)

    def test_model_without_an_index(self):
        """Which the engine never reads."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for name in os.listdir(MODEL):
            if name != "model_index.json":
                os.symlink(os.path.join(MODEL, name), os.path.join(folder, name))
        made = self.start(f"--model={folder}")
        self.assertNotIn("prompts wait", made.read_log())
        made.write(folder + "\n", "control", "model")
        made.paint("x --size 16 --steps 1\n")

    def test_budget_set_while_a_model_opens(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        made, _ = self.paint()
        least = 1000 if BACKEND == "cuda" else 100  # the driver's own memory counts
        for i, budget in enumerate((least + 50, least + 100, least + 75)):
            model = os.path.join(folder, str(i))
            os.symlink(MODEL, model)
            made.write(model + "\n", "control", "model")
            made.write(f"{budget}M\n", "control", "vram_budget")
            self.assertEqual(made.read("control", "vram_budget"), f"{budget}M\n")
            wait_for(lambda: f"budget {shown(budget)}" in made.read("status", "vram"), f"{budget} MiB")


class Missing(unittest.TestCase):
    def test_missing_model_leaves_the_mount_up(self):
        made = Mount(start=False)
        self.addCleanup(made.clean)
        made.start()
        wait_for(lambda: made.read("status", "health").startswith("error: "), "the error")
        self.assertIn(made.folder, made.read("status", "health"))
        self.assertEqual(made.prompt("a fox\n"), [1])


if __name__ == "__main__":
    run()
