# SPDX-License-Identifier: MIT
"""images/: whole, immutable, listed fast, announced to inotify, deleted by rm."""

import errno
import os
import subprocess
import time
import unittest

from mount import Mount, MountTest, needs, run, wait_for
from png_text import parameters


BALLAST = "ballast.png"


def add_ballast(mount):
    """A pinned image as large as images_limit must be at least: what is over is left to the others.
    Returns its bytes on the disk."""
    mount.stop()
    path = os.path.join(mount.state, "images", BALLAST)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 20)
    os.utime(path, (0, 0))
    os.chmod(path, 0o1444)
    mount.start()
    return 512 * os.stat(path).st_blocks


class Images(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}

    def test_image_is_a_sound_png(self):
        job = self.mount.paint("a red fox --size 96x64 --steps 3 --seed 7\n")
        name = self.mount.image(job)
        self.assertEqual(name, "0001-a-red-fox.png")
        path = self.mount.at("images", name)
        with open(path, "rb") as file:
            data = file.read()
        text = parameters(data)
        self.assertTrue(text.startswith("a red fox\n"), text)
        self.assertIn("Steps: 3", text)
        self.assertIn("Seed: 7", text)
        self.assertIn("Size: 96x64", text)
        self.assertEqual(os.stat(path).st_size, len(data))
        self.assertEqual(os.readlink(self.mount.at("images", "latest.png")), name)

    @needs("pngcheck")
    def test_pngcheck(self):
        self.mount.paint("a red fox\n")
        self.assertEqual(self.mount.shell("pngcheck -q mnt/images/0001*.png").returncode, 0)

    @needs("identify")
    def test_identify(self):
        self.mount.paint("a red fox --size 96x64\n")
        self.assertIn("PNG 96x64", self.mount.shell("identify mnt/images/0001*.png").stdout)

    def test_immutable(self):
        self.mount.paint("a red fox\n")
        path = self.mount.at("images", "0001-a-red-fox.png")
        with self.assertRaises(PermissionError):
            open(path, "r+b")
        with self.assertRaises(PermissionError):
            os.truncate(path, 0)
        with self.assertRaises(PermissionError):
            os.rename(path, self.mount.at("images", "x.png"))
        self.assertNotEqual(self.mount.shell("cp /etc/passwd mnt/images/x.png").returncode, 0)

    def test_rm(self):
        job = self.mount.paint("a red fox\n")
        path = self.mount.at("images", "0001-a-red-fox.png")
        with open(path, "rb") as file:
            os.unlink(path)
            self.assertEqual(file.read(4), b"\x89PNG")  # whoever has it open keeps it
        self.assertFalse(os.path.exists(path))
        self.assertEqual(os.listdir(self.mount.at("images")), [])
        self.assertFalse(os.path.lexists(self.mount.at("jobs", str(job), "image.png")))
        self.assertEqual(self.mount.read("jobs", str(job), "state"), "done\n")

    def test_copy_is_writable_and_equal(self):
        self.mount.paint("a red fox\n")
        self.mount.shell("cp mnt/images/0001*.png x.png && cmp x.png mnt/images/latest.png && echo >> x.png",
                         check=True)

    def test_pin(self):
        self.mount.paint("a red fox\n")
        path = self.mount.at("images", "0001-a-red-fox.png")
        self.mount.shell(f"chmod +t {path}", check=True)
        self.assertTrue(os.stat(path).st_mode & 0o1000)
        self.mount.shell(f"chmod -t {path}", check=True)
        self.assertFalse(os.stat(path).st_mode & 0o1000)

    def pixels(self, name):
        with open(self.mount.at("images", name), "rb") as file:
            return file.read()

    def watch(self):
        process = subprocess.Popen(["inotifywait", "-m", "--format", "%e %f", self.mount.at("images")],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        while "established" not in process.stderr.readline():
            pass
        return process

    def read_until(self, process, line):
        lines = []
        while not lines or lines[-1] != line:
            lines.append(process.stdout.readline().strip())
            self.assertNotEqual(lines[-1], "", lines)
        return lines

    @needs("inotifywait")
    def test_inotify(self):
        watcher = self.watch()
        self.mount.paint("a red fox\n")
        lines = self.read_until(watcher, "CLOSE_WRITE,CLOSE 0001-a-red-fox.png")
        self.assertIn("CREATE 0001-a-red-fox.png", lines)
        os.unlink(self.mount.at("images", "0001-a-red-fox.png"))
        self.read_until(watcher, "DELETE 0001-a-red-fox.png")

    @needs("inotifywait")
    def test_inotify_sees_a_replaced_image(self):
        with open(self.mount.at("prompts", "fox.txt"), "w") as file:
            file.write("a red fox\n")
        wait_for(lambda: self.mount.wait(1) == "done")
        old = self.pixels("fox.png")
        watcher = self.watch()
        with open(self.mount.at("prompts", "fox.txt"), "w") as file:
            file.write("a grey fox\n")
        lines = self.read_until(watcher, "CLOSE_WRITE,CLOSE fox.png")
        self.assertLess(lines.index("DELETE fox.png"), lines.index("CREATE fox.png"))
        self.assertEqual(self.mount.wait(2), "done")
        self.assertNotEqual(self.pixels("fox.png"), old)

    @needs("inotifywait")
    def test_inotify_sees_images_that_the_limit_takes(self):
        add_ballast(self.mount)
        watcher = self.watch()
        for seed in range(3):
            self.mount.paint(f"fox --size 512x512 --seed {seed}\n")
        self.mount.write("64M\n", "control", "images_limit")
        self.read_until(watcher, "DELETE 0001-fox.png")

    def test_works_without_the_notifier(self):
        children = subprocess.run(["pgrep", "-P", str(self.mount.process.pid)], capture_output=True,
                                  text=True).stdout.split()
        self.assertEqual(len(children), 1)
        os.kill(int(children[0]), 9)
        job = self.mount.paint("a red fox\n")
        self.assertTrue(os.path.exists(self.mount.at("images", self.mount.image(job))))

    def test_read_is_served_from_the_page_cache(self):
        self.mount.paint("a red fox --size 1024x1024\n")
        path = self.mount.at("images", "latest.png")
        with open(path, "rb") as file:
            first = file.read()
        with open(path, "rb") as file:
            self.assertEqual(file.read(), first)

    def test_image_is_there_when_wait_returns(self):
        for i in range(20):
            job = self.mount.prompt(f"fox {i}\n")[0]
            self.assertEqual(self.mount.wait(job), "done")
            self.assertTrue(os.path.exists(self.mount.at("jobs", str(job), "image.png")))


class Pinned(MountTest):
    """Pinned images stay whatever the limit; what has no room beside them waits, or is refused."""

    options = ("--allow-other",)  # so the texts must do without the prompt's words
    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}

    def names(self):
        return sorted(set(os.listdir(self.mount.at("images"))) - {"latest.png", BALLAST})

    def pin(self, name, how="+t"):
        self.mount.shell(f"chmod {how} mnt/images/{name}", check=True)

    def assert_no_space(self, function, *arguments):
        with self.assertRaises(OSError) as caught:
            function(*arguments)
        self.assertEqual(caught.exception.errno, errno.ENOSPC)
        self.assertRegex(self.mount.read("status", "error"), "unpin some .* raise control/images_limit")

    def save(self, text):
        with open(self.mount.at("prompts", "file.txt"), "w") as file:
            file.write(text)

    def test_limit(self):
        ballast = add_ballast(self.mount)
        for word in ("one", "two", "three"):
            self.mount.paint(f"{word} --size 256x256\n")
        full = ballast + sum(512 * os.stat(self.mount.at("images", name)).st_blocks for name in self.names())
        self.mount.write(f"{full}\n", "control", "images_limit")
        self.pin("0001-one.png")
        self.mount.paint("four --size 256x256\n")
        self.assertEqual(self.names(), ["0001-one.png", "0003-three.png", "0004-four.png"])
        self.pin("0003-three.png")
        self.pin("0004-four.png")
        # Nothing has room: that is said by write(), which every shell reports.
        said = self.mount.shell("echo five > mnt/new")
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("No space left on device", said.stderr)
        self.assert_no_space(self.mount.write, "five\n", "new")
        self.assert_no_space(self.save, "five\n")
        self.assertEqual(self.mount.jobs(), [1, 2, 3, 4])
        # Something might, but not this one: it is painted, and waits.
        self.mount.write(f"{full + 100}\n", "control", "images_limit")
        job = self.mount.prompt("six --size 256x256\n")[0]
        wait_for(lambda: self.mount.read("status", "health").startswith("error: "), "the trouble to show")
        self.assertRegex(self.mount.read("status", "health"), f"job {job}: images_limit: .* unpin some")
        self.assertEqual(self.mount.read("jobs", str(job), "state"), "saving\n")
        self.assertEqual(self.names(), ["0001-one.png", "0003-three.png", "0004-four.png"])
        self.pin("0003-three.png", "-t")
        self.assertEqual(self.mount.wait(job), "done")
        self.assertEqual(self.names(), ["0001-one.png", "0004-four.png", f"{job:04}-six.png"])
        wait_for(lambda: self.mount.read("status", "health") == "ok\n", "good health")
        # They stay pinned in the next life too.
        self.mount.stop()
        self.mount.start()
        self.mount.write("64M\n", "control", "images_limit")
        self.assertEqual(self.names(), ["0001-one.png", "0004-four.png"])


class ManyImages(unittest.TestCase):
    def test_ten_thousand_images_list_fast(self):
        # On a shared mount each name is looked up in the queue as well.
        mount = Mount("--allow-other", environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        self.addCleanup(mount.clean)
        mount.paint("a fox\n")
        folder = os.path.join(mount.state, "images")
        with open(os.path.join(folder, "0001-a-fox.png"), "rb") as file:
            data = file.read()
        mount.stop()
        for i in range(2, 10001):
            with open(os.path.join(folder, f"{i:05}-x.png"), "wb") as file:
                file.write(data)
        mount.start()
        names = os.listdir(mount.at("images"))
        self.assertEqual(len(names), 10001)
        self.assertEqual(len(set(names)), 10001)
        for command in (["ls", "-U"], ["ls", "-l"]):
            times = []
            for _ in range(5):
                start = time.monotonic()
                listed = subprocess.run(command + [mount.at("images")], capture_output=True, text=True, check=True).stdout
                times.append(time.monotonic() - start)
                self.assertEqual(len(listed.splitlines()), 10001 + ("-l" in command))  # and the total
            print(f"10,000 images: {' '.join(command)} {1000 * min(times):.1f} ms", end=" ")
            self.assertLess(min(times), 10)  # a hundred times what it takes, if not by the square


if __name__ == "__main__":
    run()
