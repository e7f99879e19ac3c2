# SPDX-License-Identifier: MIT
"""prompts/ as a file system: one file under random reads, writes, truncations and mappings (as fsx does
it), and what POSIX wants of each call (in the manner of pjdfstest)."""

import contextlib
import errno
import mmap
import os
import random
import stat
import time
import unittest

from mount import SEED, Mount, MountTest, needs_root, run


class RandomAccess(MountTest):
    """The file's content is at any time what a bytearray has been through."""

    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}
    LARGEST = 60000  # of a prompt file; beyond it it would be refused

    def setUp(self):
        super().setUp()
        self.path = self.mount.at("prompts", "x.txt")
        self.seed, self.rng = SEED, random.Random(SEED)
        self.model = bytearray()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.steps = []

    def close(self, fd):
        """Which may refuse the prompt, a NUL being in it, and is done all the same."""
        try:
            os.close(fd)
        except OSError as error:
            self.assertEqual(error.errno, errno.EINVAL)

    def grow(self, size):
        if size > len(self.model):
            self.model.extend(bytes(size - len(self.model)))

    def letters(self, length):
        return bytes(self.rng.choice(b"abcdefgh ") for _ in range(length))

    def span(self):
        offset = self.rng.randrange(self.LARGEST)
        return offset, self.rng.randrange(1, min(9000, self.LARGEST - offset) + 1)

    def do_write(self):
        offset, length = self.span()
        data = self.letters(length)
        self.assertEqual(os.pwrite(self.fd, data, offset), length)
        self.grow(offset + length)
        self.model[offset:offset + length] = data

    def do_append(self):
        length = min(500, self.LARGEST - len(self.model))
        data = self.letters(length)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        self.close(fd)
        self.model.extend(data)

    def do_read(self):
        offset, length = self.span()
        self.assertEqual(os.pread(self.fd, length, offset), bytes(self.model[offset:offset + length]))

    def do_truncate(self):
        size = self.rng.randrange(self.LARGEST)
        if self.rng.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        self.grow(size)
        del self.model[size:]

    def do_map_read(self):
        if self.model:
            with mmap.mmap(self.fd, 0, prot=mmap.PROT_READ) as area:
                offset, length = self.span()
                self.assertEqual(area[offset:offset + length], bytes(self.model[offset:offset + length]))

    def do_map_write(self):
        if self.model:
            with mmap.mmap(self.fd, 0) as area:
                offset = self.rng.randrange(len(self.model))
                data = self.letters(min(3000, len(self.model) - offset))
                area[offset:offset + len(data)] = data
                self.model[offset:offset + len(data)] = data

    def do_copy_range(self):
        length = min(2000, len(self.model))
        if length > 0:
            target = self.rng.randrange(self.LARGEST - length)
            source = self.rng.randrange(len(self.model) - length + 1)
            if abs(target - source) < length:
                return
            with contextlib.suppress(OSError):  # the kernel may not do it within one file
                done = os.copy_file_range(self.fd, self.fd, length, source, target)
                self.grow(target + done)
                self.model[target:target + done] = self.model[source:source + done]

    def do_reopen(self):
        self.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def do_sync(self):
        os.fsync(self.fd)

    def do_stat(self):
        self.assertEqual(os.stat(self.path).st_size, len(self.model))
        self.assertEqual(os.fstat(self.fd).st_size, len(self.model))
        self.assertEqual(os.lseek(self.fd, 0, os.SEEK_END), len(self.model))

    def do_check(self):
        self.assertEqual(os.pread(self.fd, self.LARGEST + 1, 0), bytes(self.model))
        with open(os.path.join(self.mount.state, "prompts", "x.txt"), "rb") as file:
            os.fsync(self.fd)
            self.assertEqual(file.read(), bytes(self.model))

    def test_random_access(self):
        operations = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        for step in range(2500):
            operation = self.rng.choice(operations)
            with self.subTest(f"seed {self.seed} step {step} {operation.__name__}"):
                operation()
        self.do_check()
        self.close(self.fd)
        self.assertIn("prompts/x.txt: ", self.mount.read("status", "error"))

    def test_what_is_mapped_is_painted(self):
        os.pwrite(self.fd, b"a red fox in the snow\n", 0)
        with mmap.mmap(self.fd, 0) as area:
            area[2:5] = b"big"
        os.close(self.fd)
        self.assertEqual(self.mount.wait(1), "done")
        self.assertEqual(self.mount.prompts(), ["a big fox in the snow"])


@needs_root
class Calls(unittest.TestCase):
    """A table of calls on a shared mount: who does what, and what comes of it."""

    @classmethod
    def setUpClass(cls):
        cls.mount = Mount("--allow-other", "--umask=0", "--read-prompts", environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        os.chmod(cls.mount.folder, 0o755)
        cls.mount.write("1\n", "control", "pause")
        os.umask(0)

    @classmethod
    def tearDownClass(cls):
        os.umask(0o22)
        status, log = cls.mount.clean()
        assert status in (0, None) and "Sanitizer" not in log, log[-3000:]

    def setUp(self):
        os.chdir(self.mount.at("prompts"))
        self.addCleanup(self.empty)

    def empty(self):
        for name in os.listdir("."):
            os.unlink(name)
        os.chdir("/")

    def make(self, name, text="x", mode=0o644, uid=0):
        with open(name, "w") as file:
            file.write(text)
        os.chmod(name, mode)
        if uid:
            os.chown(name, uid, uid)
        return name

    def as_user(self, uid, function, *arguments):
        """The errno that another user gets, or 0; in a child, for there is no way back."""
        if uid == 0:
            return self.code_of(function, *arguments)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                os._exit(self.code_of(function, *arguments))
            finally:
                os._exit(255)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def code_of(self, function, *arguments):
        try:
            result = function(*arguments)
        except OSError as error:
            return error.errno
        if function is os.open:
            os.close(result)
        return 0

    def expect(self, code, function, *arguments, uid=0):
        found = self.as_user(uid, function, *arguments)
        self.assertEqual(errno.errorcode.get(found, found), errno.errorcode.get(code, code),
                         f"{function.__name__}{arguments} by {uid}")

    def test_open(self):
        self.expect(errno.ENOENT, os.open, ".a", os.O_RDONLY)
        self.expect(0, os.open, ".a", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        self.assertEqual(stat.S_IMODE(os.stat(".a").st_mode), 0o640)
        self.expect(errno.EEXIST, os.open, ".a", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.expect(errno.ENOTDIR, os.open, ".a", os.O_RDONLY | os.O_DIRECTORY)
        self.expect(errno.ENOTDIR, os.open, ".a/b", os.O_RDONLY)
        self.expect(errno.EISDIR, os.open, ".", os.O_WRONLY)
        self.expect(errno.ENAMETOOLONG, os.open, "x" * 256, os.O_RDWR | os.O_CREAT)
        self.expect(0, os.open, "." + "x" * 254, os.O_RDWR | os.O_CREAT)
        self.make(".b", mode=0o640, uid=4711)
        self.expect(0, os.open, ".b", os.O_RDWR, uid=4711)
        self.expect(errno.EACCES, os.open, ".b", os.O_RDONLY, uid=4712)
        os.chmod(".b", 0o644)
        self.expect(0, os.open, ".b", os.O_RDONLY, uid=4712)
        self.expect(errno.EACCES, os.open, ".b", os.O_WRONLY, uid=4712)
        self.expect(errno.EACCES, os.open, ".b", os.O_RDONLY | os.O_TRUNC, uid=4712)
        self.assertEqual(os.stat(".b").st_size, 1)
        self.expect(0, os.open, ".c", os.O_RDWR | os.O_CREAT, 0o600, uid=4712)
        self.assertEqual((os.stat(".c").st_uid, os.stat(".c").st_gid), (4712, 4712))

    def test_chmod_and_chown(self):
        self.make(".a", uid=4711)
        for mode in (0o600, 0o644, 0o777, 0o400, 0o000):
            self.expect(0, os.chmod, ".a", mode, uid=4711)
            self.assertEqual(stat.S_IMODE(os.stat(".a").st_mode), mode)
        self.expect(errno.EPERM, os.chmod, ".a", 0o644, uid=4712)
        self.expect(errno.EPERM, os.chown, ".a", 4712, 4712, uid=4711)
        self.expect(errno.EPERM, os.chown, ".a", 4712, 4712, uid=4712)
        self.expect(0, os.chown, ".a", -1, 4711, uid=4711)
        self.expect(0, os.chown, ".a", 4712, 4713)
        self.assertEqual((os.stat(".a").st_uid, os.stat(".a").st_gid), (4712, 4713))
        self.expect(errno.ENOENT, os.chmod, ".b", 0o644)
        self.expect(errno.ENOENT, os.chown, ".b", 0, 0)

    def test_truncate(self):
        self.make(".a", "x" * 5000, uid=4711)
        for size in (0, 1, 4096, 4097, 60000, 3):
            self.expect(0, os.truncate, ".a", size)
            self.assertEqual(os.stat(".a").st_size, size)
        with open(".a", "rb") as file:
            self.assertEqual(file.read(), bytes(3))
        self.expect(errno.EINVAL, os.truncate, ".a", -1)
        self.expect(errno.ENOENT, os.truncate, ".b", 0)
        self.expect(errno.EISDIR, os.truncate, ".", 0)
        self.expect(errno.EACCES, os.truncate, ".a", 0, uid=4712)
        fd = os.open(".a", os.O_RDONLY)
        self.expect(errno.EINVAL, os.ftruncate, fd, 0)
        os.close(fd)
        fd = os.open(".a", os.O_RDWR)
        os.unlink(".a")
        os.ftruncate(fd, 77)
        self.assertEqual(os.fstat(fd).st_size, 77)
        os.close(fd)

    def test_rename(self):
        self.make(".a", "from a")
        self.make(".b", "from b")
        inode = os.stat(".a").st_ino
        self.expect(0, os.rename, ".a", ".b")
        self.assertEqual((os.stat(".b").st_ino, os.listdir(".")), (inode, [".b"]))
        self.expect(0, os.rename, ".b", ".b")
        self.expect(errno.ENOENT, os.rename, ".a", ".c")
        self.expect(errno.ENAMETOOLONG, os.rename, ".b", "x" * 256)
        self.expect(errno.EXDEV, os.rename, ".b", "../x")
        self.expect(errno.EXDEV, os.rename, "../README", ".b")
        self.expect(errno.EBUSY, os.rename, ".", "x")
        # In a sticky folder only the owner may move or replace.
        os.chown(".b", 4711, 4711)
        self.make(".c", uid=4712)
        self.expect(errno.EPERM, os.rename, ".b", ".d", uid=4712)
        self.expect(errno.EPERM, os.rename, ".c", ".b", uid=4712)
        self.expect(0, os.rename, ".c", ".d", uid=4712)

    def test_rename_keeps_open_files(self):
        self.make(".a", "from a")
        self.make(".b", "from b")
        with open(".b") as file:
            os.rename(".a", ".b")
            self.assertEqual(file.read(), "from b")
            self.assertEqual(os.fstat(file.fileno()).st_nlink, 0)
        with open(".b") as file:
            self.assertEqual(file.read(), "from a")

    def test_unlink(self):
        self.make(".a", uid=4711)
        self.expect(errno.EPERM, os.unlink, ".a", uid=4712)
        self.expect(0, os.unlink, ".a", uid=4711)
        self.expect(errno.ENOENT, os.unlink, ".a")
        self.expect(errno.ENOENT, os.stat, ".a")
        self.expect(errno.EISDIR, os.unlink, "../prompts")
        self.expect(errno.ENAMETOOLONG, os.unlink, "x" * 256)

    def test_no_other_kinds_of_files(self):
        self.make(".a")
        for function, arguments in ((os.mkdir, (".b",)), (os.symlink, (".a", ".b")), (os.link, (".a", ".b")),
                                    (os.mkfifo, (".b",)), (os.mknod, (".b", stat.S_IFSOCK | 0o600)),
                                    (os.rmdir, (".a",)), (os.rmdir, ("../prompts",))):
            found = self.as_user(0, function, *arguments)
            self.assertIn(found, (errno.EPERM, errno.ENOTDIR), function.__name__)
        self.assertEqual(os.listdir("."), [".a"])

    def test_times(self):
        self.make(".a", uid=4711)
        os.utime(".a", ns=(10**18 + 1, 2 * 10**18 + 3))
        found = os.stat(".a")
        self.assertEqual((found.st_atime_ns, found.st_mtime_ns), (10**18 + 1, 2 * 10**18 + 3))
        self.expect(errno.EPERM, lambda: os.utime(".a", (1, 2)), uid=4712)
        self.expect(errno.EACCES, lambda: os.utime(".a"), uid=4712)
        os.chmod(".a", 0o666)
        start = time.time()
        self.expect(0, lambda: os.utime(".a"), uid=4712)
        self.assertTrue(start - 1 < os.stat(".a").st_mtime < time.time() + 1)  # clocks of files are coarse
        before = os.stat(".a")
        time.sleep(0.02)
        with open(".a", "a") as file:
            file.write("more")
        after = os.stat(".a")
        self.assertGreater(after.st_mtime_ns, before.st_mtime_ns)
        self.assertGreater(after.st_ctime_ns, before.st_ctime_ns)
        time.sleep(0.02)
        os.chmod(".a", 0o600)
        self.assertGreater(os.stat(".a").st_ctime_ns, after.st_ctime_ns)
        self.assertEqual(os.stat(".a").st_mtime_ns, after.st_mtime_ns)

    def test_append_and_offsets(self):
        self.make(".a", "one ")
        first, second = (os.open(".a", os.O_WRONLY | os.O_APPEND) for _ in range(2))
        os.write(first, b"two ")
        os.write(second, b"three ")
        os.write(first, b"four")
        os.close(first)
        os.close(second)
        with open(".a") as file:
            self.assertEqual(file.read(), "one two three four")

    def test_space(self):
        self.make(".a", "x" * 10000)
        found = os.stat(".a")
        self.assertGreaterEqual(found.st_blocks * 512, 10000)
        self.assertEqual(found.st_nlink, 1)
        fd = os.open(".a", os.O_RDWR)
        self.expect(0, os.posix_fallocate, fd, 0, 20000)  # libc's own way, where the file system has none
        self.assertEqual(os.fstat(fd).st_size, 20000)
        os.close(fd)

    def test_listing_while_names_change(self):
        for i in range(300):
            self.make(f".{i}")
        seen = []
        with os.scandir(".") as entries:
            for entry in entries:
                seen.append(entry.name)
                if len(seen) == 50:
                    os.unlink(".250")
                    self.make(".new")
        # What was there all the time is seen once, whatever comes or goes.
        for i in range(300):
            self.assertEqual(seen.count(f".{i}"), 1) if i != 250 else self.assertLessEqual(seen.count(".250"), 1)


if __name__ == "__main__":
    run()
