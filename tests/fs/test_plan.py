# SPDX-License-Identifier: MIT
"""fluxfs --plan: what would stay, what would pass, and how long it would take."""

import os
import re
import subprocess
import unittest

from mount import FLUXFS, PATIENCE, run

CONFIGS = os.environ["CONFIGS"]
MODEL = os.environ["MODEL"]
CARD = ["--vram=24G", "--link=25", "--tflops=165"]


class Plan(unittest.TestCase):
    def plan(self, *options, fails=False):
        result = subprocess.run([FLUXFS, "--config=/dev/null", "--plan", *options], text=True,
                                capture_output=True, timeout=6 * PATIENCE)
        self.assertEqual(result.returncode != 0, fails, result.stderr)
        self.assertEqual(result.stdout == "", fails)
        self.assertEqual(result.stderr.count("\n"), 1 if fails else 0, result.stderr)
        return result.stderr if fails else result.stdout

    def number(self, pattern, text):
        found = re.search(pattern, text)
        self.assertIsNotNone(found, text)
        return float(found[1])

    def seconds(self, of, text):
        found = re.search(of + r" +((?:[\d.]+ (?:h|min|s|ms) ?)+)[:,]?", text)
        self.assertIsNotNone(found, text)
        units = {"h": 3600, "min": 60, "s": 1, "ms": 0.001}
        return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+) (h|min|s|ms)\b", found[1]))

    def test_times_have_units(self):
        slow = self.plan(f"--model={CONFIGS}", "--vram=24G", "--link=25", "--tflops=0.1", "--steps=50")
        self.assertRegex(slow, r"a step +1[23] min \d+ s: .* of computing, .* of copying weights meanwhile")
        self.assertRegex(slow, r"a picture +1\d h \d+ min: text .* s, modulations .* s, steps .* min, decoding ")
        fast = self.plan(f"--model={MODEL}", *CARD)
        self.assertRegex(fast, r"a step +[\d.]+ ms: ")

    def test_all_stays_on_a_large_card(self):
        text = self.plan(f"--model={CONFIGS}", *CARD, "--vram-budget=22G")
        self.assertIn("flux1-dev, 1024x1024, 28 steps", text)
        self.assertIn("budget    22.00 GiB; ", text)
        self.assertIn("nothing of 16.04 GiB", text)
        self.assertNotIn(".", re.search(r"^  ([#.]+)$", text, re.M)[1])
        step = self.seconds("a step", text)
        # 74 TFLOP; and a step's activations through 1000 GB/s.
        self.assertTrue(0.44 < step < 0.5, text)
        picture = self.seconds("a picture", text)
        self.assertTrue(28 * step < picture < 28 * step + 2, text)

    def test_streams_within_less(self):
        text = self.plan(f"--model={CONFIGS}", *CARD, "--vram-budget=3G", "--jobs=4")
        passing = self.number(r"each step: ([\d.]+) GiB", text)
        self.assertTrue(13 < passing < 16.04, text)
        self.assertIn("double text MLP", text)
        self.assertGreater(self.seconds("a step", text), passing * 1.0737 / 25)
        self.assertIn("4  that wait", text)
        self.assertIn("go in step", text)

    def test_budget_beyond_the_card(self):
        text = self.plan(f"--model={CONFIGS}", *CARD[1:], "--vram=8G", "--vram-budget=12G")
        self.assertIn("budget    12.00 GiB, more than the device has; ", text)
        self.assertLessEqual(self.number(r"other phases included: ([\d.]+) GiB", text), 8)

    def test_size_and_steps(self):
        text = self.plan(f"--model={CONFIGS}", *CARD, "--size=512x768", "--steps=4")
        self.assertIn("512x768, 4 steps", text)

    def test_this_machine(self):
        text = self.plan(f"--model={MODEL}", "--backend=cpu", "--size=64", "--steps=2")
        self.assertIn("measured", text)
        self.assertIn("mini, 64x64, 2 steps", text)
        self.assertGreater(self.seconds("a picture", text), 0)

    def test_refusals(self):
        text = self.plan(f"--model={CONFIGS}", *CARD, "--vram-budget=0.9G", fails=True)
        least = re.search(r"needs a vram_budget of ([\d.]+ MiB) at least; it is 921.6 MiB", text)
        self.plan(f"--model={CONFIGS}", *CARD, f"--vram-budget={least[1]}")
        for words, why in ((["--vram=24G", "--link=25"], "--tflops is missing"), (["--vram=24G", "--bandwidth=900"], "--link is missing"),
                           (["--link=0"], "--link: \"0\""), (["--link=1e-9"], "--link: 1e-9: 0.01 to 1000000 GB/s"),
                           (["--tflops=1e300"], "--tflops: 1e300: 0.01 to 1000000 TFLOP/s"),
                           (["--link=0.01", "--tflops=0.01", "--bandwidth=0.01", "--steps=1000", "--size=4096"], "30 years"),
                           (["--tflops=x"], "--tflops: \"x\""),
                           (["--vram=1Q"], "--vram: \"1Q\""),
                           (["--vram=24"], "--vram: 24 is 24 bytes: write 24G, or 24M"),
                           (["--vram-budget=12"], "12 is 12 bytes: write 12G"), (["--jobs=2.5"], "--jobs"),
                           (["--jobs"], "missing"), (["--jobs=0"], "--jobs"),
                           (["--size=1000000"], "size"), (["--steps=0"], "steps"),
                           (["/mnt"], "/mnt"), (["--model=/nowhere"], "/nowhere"),
                           (["--frobnicate=1"], "frobnicate")):
            self.assertIn(why, self.plan(f"--model={CONFIGS}", *([] if "--vram" in words[0] else CARD),
                                         *words, fails=True))

    def test_only_to_plan(self):
        result = subprocess.run([FLUXFS, "--config=/dev/null", "--vram=24G", "/nowhere"], text=True,
                                capture_output=True, timeout=PATIENCE)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("--vram: only --plan takes it", result.stderr)


if __name__ == "__main__":
    run()
