# SPDX-License-Identifier: MIT
"""What `meson install` puts in place: all of it, and it works from there.

usage: test_install.py MESON BUILD_FOLDER PREFIX LIBDIR SYSTEM_FILE [unittest's own arguments]"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

from mount import PATIENCE, Mount, is_mounted, needs, run, wait_for
from png_text import parameters

MESON, BUILD, PREFIX, LIBDIR, SYSTEM_FILE = sys.argv[1:6]
del sys.argv[1:6]
PROMPT = "a large red circle on a white background --size 64 --steps 2 --seed 3\n"


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.mkdtemp(prefix="fluxfs-root-")
        cls.addClassCleanup(shutil.rmtree, cls.root)
        cls.install()
        cls.program = cls.at(PREFIX, "bin/fluxfs")

    @classmethod
    def install(cls):
        # (What is installed has been built; the rest need not be.)
        done = subprocess.run([MESON, "install", "-C", BUILD, "--no-rebuild", "--destdir", cls.root],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    @classmethod
    def at(cls, *names):
        return os.path.join(cls.root, os.path.join(*names).lstrip("/"))

    def make(self, *options):
        """A mount of the installed program, with the settings that were installed."""
        made = Mount(start=False)
        self.addCleanup(made.clean)
        made.command = lambda *more: [self.program, f"--config={self.at(SYSTEM_FILE)}", "--foreground",
                                      f"--state-dir={made.state}", *options, *more, made.path]
        return made

    def assert_paints(self, made):
        job = made.paint(PROMPT)
        with open(made.at("images", made.image(job)), "rb") as file:
            self.assertIn("Model: mini", parameters(file.read()))

    def test_files(self):
        """Everything, and nothing else."""
        found = {os.path.relpath(os.path.join(folder, name), self.root)
                 for folder, _, names in os.walk(self.root) for name in names}
        mini = os.path.join(PREFIX.lstrip("/"), "share/fluxfs/mini")
        expected = {SYSTEM_FILE.lstrip("/")} | {os.path.join(PREFIX.lstrip("/"), name) for name in (
            "bin/fluxfs", "share/man/man1/fluxfs.1", "lib/systemd/system/fluxfs@.service")}
        modules = {name for name in found if name.endswith(".so")}
        self.assertLessEqual(modules, {os.path.join(PREFIX.lstrip("/"), LIBDIR, "fluxfs/fluxfs-cuda.so")})
        model = {name for name in found if name.startswith(mini + "/")}
        self.assertEqual(found - modules - model, expected)
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../etc/mini")
        for name in model:
            with open(os.path.join(self.root, name), "rb") as ours:
                with open(os.path.join(source, os.path.relpath(name, mini)), "rb") as theirs:
                    self.assertEqual(ours.read(), theirs.read(), name)
        kinds = {name.split("/")[-1].split(".", 1)[-1] for name in model}
        self.assertLessEqual({"safetensors", "json"}, kinds)
        self.assertFalse({name for name in model if "training" in name})

    def test_paints(self):
        """The program finds the model that was installed beside it, wherever that is."""
        made = self.make().start()
        self.assert_paints(made)
        self.assertEqual(made.stop(), 0)
        moved = tempfile.mkdtemp(prefix="fluxfs-moved-")
        self.addCleanup(shutil.rmtree, moved)
        shutil.copytree(self.at(PREFIX), os.path.join(moved, "anywhere"))
        self.program = os.path.join(moved, "anywhere/bin/fluxfs")
        made = self.make().start()
        self.assert_paints(made)
        with open(f"/proc/{made.process.pid}/maps") as maps:
            models = {line.split(maxsplit=5)[5].strip() for line in maps if "safetensors" in line}
        self.assertEqual({path for path in models if not path.startswith(moved + "/")}, set())
        self.assertNotEqual(models, set())

    def test_module(self):
        """The module that was installed is the one that is opened; without it that is what is said."""
        path = self.at(PREFIX, LIBDIR, "fluxfs/fluxfs-cuda.so")
        made = self.make("--backend=cuda").start()
        wait_for(lambda: not made.read("status", "health").startswith("loading"), "an answer")
        health = made.read("status", "health")
        if os.path.exists(path):
            self.assertNotIn("module", health)
        else:
            self.assertRegex(health, "^error: .*fluxfs-cuda.so")

    @needs("man")
    def test_man(self):
        environment = dict(os.environ, MANPATH=self.at(PREFIX, "share/man"), MANWIDTH="80", LC_ALL="C.UTF-8")
        page = subprocess.run(["man", "-P", "cat", "fluxfs"], env=environment, capture_output=True, text=True)
        self.assertEqual(page.returncode, 0, page.stderr)
        self.assertIn("a directory that paints", page.stdout)
        # It names the places where things were put.
        self.assertIn(SYSTEM_FILE, page.stdout)

    def test_settings_that_were_changed_stay(self):
        path = self.at(SYSTEM_FILE)
        shutil.copy(path, path + ".original")
        self.addCleanup(os.rename, path + ".original", path)
        with open(path, "w") as file:
            file.write("[fluxfs]\nsteps = 3\n")
        self.install()
        made = self.make().start()
        self.assertEqual(made.read("control", "steps"), "3\n")
        self.assertIn("steps=3\n", made.read("jobs", str(made.paint("a star --size 64\n")), "parameters"))

    # ---- The unit, as systemd runs it ----

    def unit(self, made):
        """Its settings, with the specifiers filled in; the state folder's is $STATE."""
        with open(self.at(PREFIX, "lib/systemd/system/fluxfs@.service")) as file:
            text = file.read()
        for specifier, value in (("%f", made.path), ("%i", "mnt"), ("%S", made.folder)):
            text = text.replace(specifier, value)
        return dict(re.findall(r"^(\w+)=(.*)$", text, re.M))

    def test_unit(self):
        made = self.make()
        unit = self.unit(made)
        words = shlex.split(unit["ExecStart"])
        self.assertEqual(words[0], os.path.join(PREFIX, "bin/fluxfs"))
        made.command = lambda *more: [self.program, *words[1:]]
        made.state = words[words.index("--state-dir") + 1]
        self.assertEqual(made.state, os.path.join(made.folder, unit["StateDirectory"]))
        self.assertEqual(unit["Type"], "notify")
        path = os.path.join(made.folder, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(path)
            server.settimeout(PATIENCE)
            made.environment = {"NOTIFY_SOCKET": path}
            made.start(wait=False)
            self.assertIn(b"READY=1", server.recv(4096))
        self.assertTrue(is_mounted(made.path))  # from READY=1 on
        self.assert_paints(made)
        # What systemd does when the program has died.
        made.stop(9)
        self.assertTrue(is_mounted(made.path))
        subprocess.run(shlex.split(unit["ExecStopPost"].lstrip("-")), check=True)
        self.assertFalse(is_mounted(made.path))


if __name__ == "__main__":
    run()
