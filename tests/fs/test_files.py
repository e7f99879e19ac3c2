# SPDX-License-Identifier: MIT
"""Generated files read like files: sizes, times, snapshots, and the programs that look at them."""

import collections
import errno
import io
import mmap
import os
import stat
import subprocess
import tarfile
import unittest

from mount import Mount, MountTest, needs, run, wait_for

PNG = b"\x89PNG"
STATUS = ("progress", "vram", "fragmentation", "timing", "queue", "device", "health", "memory",
          "metrics", "all.json")


class Files(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}

    def setUp(self):
        super().setUp()
        self.job = self.mount.paint("a red fox\n")

    def test_size_is_what_read_gives(self):
        for folder, names in (("status", STATUS), ("control", os.listdir(self.mount.at("control"))),
                              (f"jobs/{self.job}", ("prompt", "parameters", "state", "progress",
                                                    "timing", "vram.csv", "error", "wait")),
                              (".", ("README",))):
            for name in names:
                path = self.mount.at(folder, name)
                with self.subTest(path), open(path, "rb") as file:
                    content = file.read()
                    self.assertEqual(os.stat(path).st_size, len(content))
                    self.assertEqual(os.fstat(file.fileno()).st_size, len(content))
                    self.assertGreaterEqual(os.stat(path).st_blocks * 512, len(content))

    def test_text_ends_in_newline(self):
        for name in STATUS:
            self.assertTrue(self.mount.read("status", name).endswith("\n"), name)

    @needs("file")
    def test_file(self):
        self.assertIn("text", self.mount.shell("file mnt/status/vram").stdout)
        self.assertIn("JSON", self.mount.shell("file mnt/status/all.json").stdout)
        self.assertIn("PNG image data, 64 x 64", self.mount.shell("file mnt/images/*fox.png").stdout)

    @needs("tar")
    def test_tar(self):
        result = self.mount.shell("tar cf all.tar --exclude=status/events -C mnt status control images "
                                  "jobs README && mkdir out && tar xf all.tar -C out")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        with open(os.path.join(self.mount.folder, "out/status/vram")) as file:
            self.assertEqual(file.read(), self.mount.read("status", "vram"))

    @needs("rsync")
    def test_rsync_copies_everything_once(self):
        command = "rsync -ai --exclude=events mnt/status mnt/images mnt/jobs out/"
        first = self.mount.shell(command)
        self.assertEqual((first.returncode, first.stderr), (0, ""))
        self.assertIn("images/", first.stdout)
        # Nothing has changed, so nothing moves: times stand still while contents do.
        again = self.mount.shell(command)
        changed = [line for line in again.stdout.splitlines() if not line.endswith("metrics")]
        self.assertEqual([line for line in changed if line.startswith(">")], [])

    def test_find_and_du(self):
        self.assertEqual(self.mount.shell("find mnt > /dev/null").returncode, 0)
        self.assertEqual(self.mount.shell("find mnt -size +0 -name '*.png' -type f").stdout.count("\n"), 1)
        self.assertEqual(self.mount.shell("find mnt -xtype l").stdout, "")  # no link leads nowhere
        size = int(self.mount.shell("du -k mnt/images | cut -f1").stdout)
        self.assertGreater(size, 0)

    def test_grep_recursive(self):
        result = self.mount.shell("grep -rl --exclude=events fox mnt/jobs")
        self.assertIn(f"jobs/{self.job}/prompt", result.stdout)

    @needs("vim")
    def test_vim_reads_status(self):
        result = self.mount.shell("vim -es -u NONE -n -c '%print' -c q! mnt/status/health")
        self.assertIn("ok", result.stdout)

    @needs("vim")
    def test_vim_edits_a_value(self):
        self.mount.shell("vim -es -u NONE -n -c '%s/.*/12/' -c 'w' -c 'q!' mnt/control/steps")
        self.assertEqual(self.mount.read("control", "steps"), "12\n")

    def test_times_move_with_content_only(self):
        wait_for(self.vram_stands_still, "a time that reading does not move")
        queue = os.stat(self.mount.at("status", "queue")).st_mtime_ns
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("another\n")
        wait_for(lambda: os.stat(self.mount.at("status", "queue")).st_mtime_ns > queue, "a new time")

    def vram_stands_still(self):
        path = self.mount.at("status", "vram")
        before = os.stat(path).st_mtime_ns
        for _ in range(3):
            self.mount.read("status", "vram")
        return os.stat(path).st_mtime_ns == before

    def test_snapshot_is_taken_at_open(self):
        with open(self.mount.at("status", "queue")) as file:
            self.mount.paint("another\n")
            self.assertIn("done 1\n", file.read())
            file.seek(0)  # as in /sys: read again from the start is read anew
            self.assertIn("done 2\n", file.read())

    def test_read_only_files_refuse_writing(self):
        for path in ("status/progress", "README", f"jobs/{self.job}/prompt"):
            with self.assertRaises(OSError):
                os.open(self.mount.at(path), os.O_WRONLY)
        with self.assertRaises(OSError):
            os.truncate(self.mount.at("status/progress"), 0)

    def test_nothing_else_can_be_made(self):
        for command in ("touch mnt/x", "mkdir mnt/x", "touch mnt/images/x.png", "touch mnt/status/x",
                        "mkdir mnt/prompts/x", "ln -s a mnt/x", "rm mnt/new", "rm mnt/status/vram",
                        "mv mnt/README mnt/x", "rmdir mnt/images", "mkdir mnt/jobs/99", "rm mnt/images/latest.png"):
            with self.subTest(command):
                result = self.mount.shell(command)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn("Operation not permitted", result.stderr)

    def test_missing_names(self):
        for path in ("x", "jobs/99", "jobs/0", "jobs/01", "jobs/-1", "jobs/1x", "images/x.png", "queue/000-1",
                     "status/x", "jobs/99999999999999999999"):
            self.assertFalse(os.path.lexists(self.mount.at(path)), path)

    def test_xattrs_are_not_supported(self):
        with self.assertRaises(OSError) as caught:
            os.getxattr(self.mount.at("README"), "user.x")
        self.assertEqual(caught.exception.errno, 95)

    def test_modes(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.mount.at("new")).st_mode), 0o644)
        self.assertEqual(stat.S_IMODE(os.stat(self.mount.at("status/vram")).st_mode), 0o644)
        self.assertEqual(stat.S_IMODE(os.stat(self.mount.at("status/health")).st_mode), 0o444)
        self.assertTrue(stat.S_ISLNK(os.lstat(self.mount.at("images/latest.png")).st_mode))

    def test_statfs(self):
        self.assertEqual(self.mount.shell("df mnt").returncode, 0)
        self.assertEqual(os.statvfs(self.mount.path).f_namemax, 255)


class Changing(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "1000"}

    def test_size_is_what_read_gives(self):
        """Though attributes are kept for a moment: what is open tells the size that read finds."""
        self.mount.prompt("a fox --steps 1000\n")
        wait_for(lambda: "step" in self.mount.read("status", "progress"), "a step")
        sizes = collections.defaultdict(set)
        for _ in range(300):
            for name in ("progress", "vram", "all.json", "metrics"):
                with open(self.mount.at("status", name), "rb", buffering=0) as file:
                    size = os.fstat(file.fileno()).st_size
                    self.assertEqual(size, len(file.read(1 << 20)), name)
                    os.lseek(file.fileno(), 0, os.SEEK_SET)
                    again = file.read(1 << 20)
                    self.assertEqual(os.fstat(file.fileno()).st_size, len(again), name)
                sizes[name].add(size)
        self.assertGreater(len(sizes["progress"]), 1)

    def test_attributes_are_soon_those_of_the_content(self):
        path = self.mount.at("status", "queue")
        self.mount.write("1\n", "control", "pause")
        for _ in range(20):
            before = os.stat(path)
            self.mount.prompt("a fox\n")
            after = wait_for(lambda: os.stat(path) if os.stat(path).st_mtime_ns > before.st_mtime_ns else None, "a new time")
            self.assertEqual(after.st_size, len(self.mount.read("status", "queue")))


class Readers(unittest.TestCase):
    """Every way of reading (a row of the table in the design) works with every kind of file."""

    @classmethod
    def setUpClass(cls):
        cls.mount = Mount(environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        cls.mount.paint("a red fox\n")
        with open(cls.mount.at("prompts", ".fox.txt"), "w") as file:
            file.write("a fox, not to be painted\n")

    @classmethod
    def tearDownClass(cls):
        status, log = cls.mount.clean()
        assert status in (0, None) and "Sanitizer" not in log, log[-3000:]

    FILES = ("status/vram", "status/all.json", "status/metrics", "control/steps", "jobs/1/prompt", "jobs/1/vram.csv",
             "README", "prompts/.fox.txt", "images/0001-a-red-fox.png", "images/latest.png")

    def each(self):
        for path in map(self.mount.at, self.FILES):
            with open(path, "rb") as file:
                content = file.read()
            self.assertGreater(len(content), 0, path)
            yield path, content

    def output(self, command, path):
        return subprocess.run(["sh", "-c", command, "sh", path], cwd=self.mount.folder, capture_output=True,
                              check=True).stdout

    def test_programs(self):
        for path, content in self.each():
            for command in ('cat "$1"', 'cp "$1" x; cat x', 'dd if="$1" status=none', "head -c 99999 \"$1\"",
                            'tail -c 99999 "$1"', 'tail -n +1 "$1"', 'cat < "$1"', 'grep -a "" "$1"', "sed '' \"$1\"",
                            'dd if="$1" bs=7 status=none', 'tac "$1" | tac', 'od -An -v -tx1 "$1" | tr -d " \\n"'):
                found = self.output(command, path)
                if command.startswith("od"):
                    found = bytes.fromhex(found.decode())
                elif command.startswith(("grep", "tac")) and content.startswith(PNG):
                    continue  # they end lines that have no end
                self.assertEqual(found, content, (command, path))
            self.assertEqual(int(self.output('wc -c < "$1"', path)), len(content))
            self.assertEqual(int(self.output('stat -Lc %s "$1"', path)), len(content))
            self.output('cmp "$1" "$1"', path)

    @needs("less")
    def test_less(self):
        for path, content in self.each():
            if not content.startswith(PNG):
                self.assertEqual(self.output('less "$1" | cat', path), content, path)

    def test_sendfile(self):
        for path, content in self.each():
            with open(path, "rb") as source, open(os.path.join(self.mount.folder, "copy"), "w+b") as target:
                self.assertEqual(os.sendfile(target.fileno(), source.fileno(), 0, 1 << 20), len(content), path)
                target.seek(0)
                self.assertEqual(target.read(), content, path)

    def test_splice(self):
        for path, content in self.each():
            reader, writer = os.pipe()
            with open(path, "rb") as source:
                self.assertEqual(os.splice(source.fileno(), writer, 65536), len(content))
            os.close(writer)
            with open(reader, "rb") as pipe:
                self.assertEqual(pipe.read(), content, path)

    def test_copy_file_range(self):
        for path, content in self.each():
            with open(path, "rb") as source, open(os.path.join(self.mount.folder, "copy"), "w+b") as target:
                try:
                    self.assertEqual(os.copy_file_range(source.fileno(), target.fileno(), 1 << 20), len(content))
                except OSError as error:
                    self.assertIn(error.errno, (errno.EXDEV, errno.EOPNOTSUPP))  # then programs read and write
                else:
                    target.seek(0)
                    self.assertEqual(target.read(), content, path)

    def test_mmap(self):
        for path, content in self.each():
            with open(path, "rb") as file:
                with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as area:
                    self.assertEqual(area[:], content, path)

    @needs("tar")
    def test_tar(self):
        for path, content in self.each():
            packed = self.output('tar chf - -C / "${1#/}"', path)
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                self.assertEqual(archive.extractfile(archive.getmembers()[0]).read(), content, path)

    @needs("file")
    def test_file(self):
        for path, content in self.each():
            kind = self.output('file -bL "$1"', path).decode()
            self.assertIn("PNG image data" if content.startswith(PNG) else "JSON" if path.endswith("json") else "text", kind, path)

    def test_seeking(self):
        for path, content in self.each():
            with open(path, "rb", buffering=0) as file:
                self.assertEqual(file.seek(0, os.SEEK_END), len(content))
                file.seek(len(content) // 2)
                self.assertEqual(file.read(), content[len(content) // 2:])
                self.assertEqual(file.read(), b"")
                self.assertEqual(os.pread(file.fileno(), 5, 2), content[2:7])

    def test_mtime_is_that_of_the_content(self):
        for path, _ in self.each():
            before = os.stat(path).st_mtime_ns
            with open(path, "rb") as file:
                file.read()
            self.assertEqual(os.stat(path).st_mtime_ns, before, path)


if __name__ == "__main__":
    run()
