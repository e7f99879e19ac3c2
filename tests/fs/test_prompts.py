# SPDX-License-Identifier: MIT
"""prompts/: editors and copiers, each ending in exactly one job for each final content."""

import errno
import os
import pty
import random
import stat
import subprocess
import threading
import unittest

from mount import PATIENCE, SEED, MountTest, needs, run, wait_for


class Prompts(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}

    def at(self, name=""):
        return self.mount.at("prompts", name)

    def put(self, name, text):
        with open(self.at(name), "w") as file:
            file.write(text)

    def assert_prompts(self, *prompts):
        wait_for(lambda: len(self.mount.jobs()) >= len(prompts), f"{len(prompts)} jobs")
        for job in self.mount.jobs():
            self.mount.wait(job)
        self.assertEqual(self.mount.prompts(), list(prompts))

    def test_file_becomes_image(self):
        self.mount.shell("echo a red fox > mnt/prompts/fox.txt", check=True)
        self.assert_prompts("a red fox")
        self.assertEqual(self.mount.image(1), "fox.png")
        self.mount.shell("echo a grey fox > mnt/prompts/fox.txt", check=True)
        self.assert_prompts("a red fox", "a grey fox")
        self.assertEqual(sorted(os.listdir(self.mount.at("images"))), ["fox.png", "latest.png"])

    def test_same_content_is_not_made_again(self):
        for _ in range(3):
            self.put("fox.txt", "a red fox\n")
        self.mount.shell("touch mnt/prompts/fox.txt; cat mnt/prompts/fox.txt", check=True)
        self.assert_prompts("a red fox")
        os.unlink(self.mount.at("images", "fox.png"))
        self.put("fox.txt", "a red fox\n")  # now there is nothing to show for it
        self.assert_prompts("a red fox", "a red fox")

    def test_count(self):
        self.put("fox.txt", "a fox --count 3 --seed 1\n")
        self.assert_prompts("a fox", "a fox", "a fox")
        self.assertEqual(sorted(os.listdir(self.mount.at("images"))),
                         ["fox-2.png", "fox-3.png", "fox.png", "latest.png"])
        self.put("fox.txt", "a fox --count 3 --seed 1\n")
        self.assertEqual(len(self.mount.jobs()), 3)

    def test_mistake_is_told_and_file_kept(self):
        with self.assertRaises(OSError) as caught:
            self.put("fox.txt", "a fox --stepz\n")
        self.assertEqual(caught.exception.errno, errno.EINVAL)
        self.assertIn("prompts/fox.txt: ", self.mount.read("status", "error"))
        self.assertEqual(self.mount.read("prompts", "fox.txt"), "a fox --stepz\n")
        self.assertEqual(self.mount.jobs(), [])

    @needs("vim")
    def test_vim(self):
        for backup in ("nobackup nowritebackup", "backup writebackup backupcopy=no",
                       "backup writebackup backupcopy=yes"):
            os.environ["TERM"] = "dumb"
            name = f"vim-{len(self.mount.jobs())}.txt"
            for text in ("a fox", "a bear"):
                self.mount.shell(f"vim -es -u NONE -i NONE -c 'set {backup} swapfile' "
                                 f"-c '%delete' -c 'normal i{text}' -c wq mnt/prompts/{name}")
        self.assert_prompts(*["a fox", "a bear"] * 3)
        self.assertEqual([name for name in os.listdir(self.at()) if name.endswith(".swp")], [])

    @needs("nano")
    def test_nano(self):
        terminal, inner = pty.openpty()
        process = subprocess.Popen(["nano", "--ignorercfiles", self.at("fox.txt")], stdin=inner, stdout=inner,
                                   stderr=inner, env=dict(os.environ, TERM="xterm", LC_ALL="C"), start_new_session=True)
        os.close(inner)
        screen = bytearray()
        reader = threading.Thread(target=self.drain, args=(terminal, screen))
        reader.start()
        # Write out, under this name, exit: each once nano is ready for it.
        for ready, keys in ((b"nano", b"a fox\x0f"), (b"Name to Write", b"\r"), (b"Wrote", b"\x18")):
            wait_for(lambda: ready in screen, ready)
            os.write(terminal, keys)
        self.assertEqual(process.wait(PATIENCE), 0)
        reader.join()
        os.close(terminal)
        self.assert_prompts("a fox")

    def drain(self, terminal, screen):
        try:
            while read := os.read(terminal, 4096):
                screen += read
        except OSError:  # the other end is closed
            pass

    def test_saving_by_rename(self):
        """GIO and gedit, g_file_set_contents and QSaveFile, copies by KDE."""
        for working in (".goutputstream-X1Y2Z3", "fox.txt.k3WqTx", "fox.txt.part"):
            for text in ("a fox\n", "a grey fox\n"):
                self.put(working, text)
                os.rename(self.at(working), self.at("fox.txt"))
        self.assert_prompts(*["a fox", "a grey fox"] * 3)
        self.assertEqual(sorted(os.listdir(self.mount.at("images"))), ["fox.png", "latest.png"])

    def test_file_managers_copy(self):
        """Created exclusively, written, then given times and mode, through the descriptor or the name."""
        fd = os.open(self.at("fox.txt"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, b"a fox\n")
        os.utime(fd, (1, 2))
        os.fchmod(fd, 0o644)
        os.close(fd)
        os.utime(self.at("fox.txt"), (3, 4))
        os.chmod(self.at("fox.txt"), 0o600)
        self.assert_prompts("a fox")
        self.assertEqual(os.stat(self.at("fox.txt")).st_mtime, 4)

    def test_sed_in_place(self):
        self.put("fox.txt", "a red fox\n")
        self.mount.shell("sed -i s/red/grey/ mnt/prompts/fox.txt", check=True)
        self.assert_prompts("a red fox", "a grey fox")
        self.assertEqual(os.listdir(self.at()), ["fox.txt"])

    @needs("rsync")
    def test_rsync(self):
        self.mount.shell("mkdir d; echo a fox > d/fox.txt; echo a bear > d/bear.txt; rsync -a d/ mnt/prompts/",
                         check=True)
        wait_for(lambda: len(self.mount.jobs()) == 2, "2 jobs")
        self.assertEqual(sorted(self.mount.prompts()), ["a bear", "a fox"])
        self.mount.shell("rsync -a d/ mnt/prompts/; touch d/*; rsync -a --inplace d/ mnt/prompts/", check=True)
        self.assertEqual(len(self.mount.jobs()), 2)

    def test_copies(self):
        self.mount.shell("echo a fox > p; cp p mnt/prompts/a.txt; cp -p p mnt/prompts/b.txt; "
                         "install -m 600 p mnt/prompts/c.txt; tee mnt/prompts/d.txt < p > /dev/null; "
                         "cat p > mnt/prompts/e.txt; dd if=p of=mnt/prompts/f.txt status=none; "
                         "mv p mnt/prompts/g.txt", check=True)
        self.assert_prompts(*["a fox"] * 7)
        self.assertEqual(sorted(os.listdir(self.mount.at("images"))),
                         ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "g.png", "latest.png"])

    def test_moved_file_is_made_under_its_new_name(self):
        self.put("fox.txt", "a fox\n")
        os.rename(self.at("fox.txt"), self.at("bear.txt"))
        self.assert_prompts("a fox", "a fox")
        self.assertEqual(self.mount.image(2), "bear.png")

    def test_several_writers(self):
        self.mount.shell("{ printf 'a red'; printf ' fox' | cat; echo ' at night' | cat; } > mnt/prompts/fox.txt",
                         check=True)
        self.assert_prompts("a red fox at night")

    def test_working_files_are_no_prompts(self):
        names = (".hidden", "fox.txt~", ".fox.txt.swp", "fox.swp", "sedAb1Cd2", "#fox#", "fox.tmp", "4913",
                 "fox.txt.part", "fox.txt.crdownload", "fox.txt.k3WqTx", "fox.txt.ABCDEF")
        for name in names:
            self.put(name, "a fox\n")
        self.assertEqual(self.mount.jobs(), [])
        self.assertEqual(sorted(os.listdir(self.at())), sorted(names))
        others = ("fox", "fox.prompt", "my.red.foxes", "sedate", "fox.Prompt", "a.b.c")
        for name in others:
            self.put(name, f"{name}\n")
        self.assert_prompts(*others)

    def test_empty_file_is_no_prompt(self):
        self.mount.shell("touch mnt/prompts/a.txt; echo > mnt/prompts/b.txt", check=True)
        self.assertEqual(self.mount.jobs(), [])

    def test_files_outlive_the_daemon(self):
        self.put("fox.txt", "a fox\n")
        self.assertEqual(self.mount.stop(), 0)
        self.mount.start()
        self.assertEqual(self.mount.read("prompts", "fox.txt"), "a fox\n")
        self.put("fox.txt", "a fox\n")
        self.assert_prompts("a fox")

    # ---- As files ----

    def test_attributes(self):
        self.put("fox.txt", "a fox\n")
        path = self.at("fox.txt")
        os.chmod(path, 0o640)
        os.utime(path, ns=(10**18, 2 * 10**18))
        found = os.stat(path)
        self.assertEqual((stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_size), (0o640, 2 * 10**18, 6))
        os.truncate(path, 3)
        self.assertEqual(os.stat(path).st_size, 3)
        with open(path, "r+") as file:
            os.unlink(path)
            file.write("still here")
            file.seek(0)
            self.assertEqual(file.read(), "still here")
            self.assertEqual(os.fstat(file.fileno()).st_size, 10)
        self.assertEqual(os.listdir(self.at()), [])

    def test_names(self):
        self.put("a.txt", "a fox\n")
        with self.assertRaises(FileExistsError):
            os.open(self.at("a.txt"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with self.assertRaises(FileNotFoundError):
            os.rename(self.at("b.txt"), self.at("c.txt"))
        with self.assertRaises(FileNotFoundError):
            os.unlink(self.at("b.txt"))
        with self.assertRaises(OSError):
            self.put("x" * 256, "a fox\n")
        with self.assertRaises(OSError):
            os.mkdir(self.at("folder"))
        self.put("x" * 250 + ".txt", "a bear\n")
        self.put("füchse 狐.txt", "two foxes\n")
        self.assertEqual(len(os.listdir(self.at())), 3)
        with self.assertRaises(OSError) as caught:
            os.rename(self.at("a.txt"), self.mount.at("status", "a.txt"))
        self.assertEqual(caught.exception.errno, errno.EXDEV)

    def test_random_operations_against_a_model(self):
        """The folder behaves as a dictionary of names to contents, whatever the order."""
        seed, rng, model = SEED, random.Random(SEED), {}
        names = [f".file-{i}" for i in range(6)]
        for step in range(600):
            name, other = rng.choice(names), rng.choice(names)
            where = f"seed {seed} step {step}"
            action = rng.choice(("write", "append", "rename", "unlink", "truncate", "read", "pwrite", "list"))
            data = rng.randbytes(rng.randrange(9000))
            if action == "write":
                with open(self.at(name), "wb") as file:
                    file.write(data)
                model[name] = data
            elif action == "append":
                with open(self.at(name), "ab") as file:
                    file.write(data)
                model[name] = model.get(name, b"") + data
            elif action == "list":
                self.assertEqual(sorted(os.listdir(self.at())), sorted(model), where)
            elif name not in model:
                self.assertFalse(os.path.exists(self.at(name)), where)
            elif action == "rename":
                os.rename(self.at(name), self.at(other))
                model[other] = model.pop(name)
            elif action == "unlink":
                os.unlink(self.at(name))
                del model[name]
            elif action == "truncate":
                size = rng.randrange(12000)
                os.truncate(self.at(name), size)
                model[name] = model[name][:size].ljust(size, b"\0")
            elif action == "pwrite":
                at = rng.randrange(12000)
                fd = os.open(self.at(name), os.O_WRONLY)
                os.pwrite(fd, data, at)
                os.close(fd)
                if data:
                    old = model[name].ljust(at, b"\0")
                    model[name] = old[:at] + data + old[at + len(data):]
            else:
                with open(self.at(name), "rb") as file:
                    self.assertEqual(file.read(), model[name], where)
                self.assertEqual(os.stat(self.at(name)).st_size, len(model[name]), where)
        self.assertEqual(self.mount.jobs(), [])

    def test_thousands_of_files(self):
        for i in range(3000):
            self.put(f".file-{i}", "x")
        self.assertEqual(self.mount.shell("ls -lA mnt/prompts | wc -l").stdout.strip(), "3001")

    @needs("fio")
    def test_fio_verifies(self):
        self.mount.shell("fio --name=x --filename=mnt/prompts/.fio --rw=randrw --bs=1k-16k --size=1m --verify=crc32c "
                         "--ioengine=psync --time_based=0 --loops=2", check=True)


class FullQueue(MountTest):
    """Shells say nothing when close() fails: write() and rename() tell that there is no place."""
    options = ("--queue-limit=2",)

    def setUp(self):
        super().setUp()
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("first\n")

    def put(self, name, text="fox"):
        return self.mount.shell(f"echo {text} > mnt/prompts/{name}").returncode

    def test_write(self):
        self.assertEqual(self.put("a.txt"), 0)
        self.assertNotEqual(self.put("b.txt"), 0)
        self.assertIn("prompts/b.txt: the queue is full", self.mount.read("status", "error"))
        self.assertEqual(os.listdir(self.mount.at("prompts")), ["a.txt"])
        self.assertEqual(self.put(".b.txt.swp"), 0)
        self.assertEqual(self.mount.prompts(), ["first", "fox"])
        self.mount.write("cancel\n", "jobs", "1", "ctl")
        self.assertEqual(self.put("b.txt"), 0)
        self.assertEqual(self.mount.prompts(), ["first", "fox", "fox"])

    def test_place_is_kept(self):
        with open(self.mount.at("prompts", "a.txt"), "w") as file:
            file.write("fox")
            file.flush()
            self.assertNotEqual(self.put("b.txt"), 0)
            with self.assertRaises(BlockingIOError):
                self.mount.write("fox\n", "new")
            file.write(" and hare")
        self.assertEqual(self.mount.prompts(), ["first", "fox and hare"])

    def test_all_that_a_file_asks_for(self):
        """Places are held for its whole count as soon as that can be read."""
        self.assertNotEqual(self.put("a.txt", "fox --count 2"), 0)
        self.assertIn("prompts/a.txt: the queue is full", self.mount.read("status", "error"))
        self.assertEqual(self.put("a.txt", "fox --count 1"), 0)
        self.mount.write("cancel\n", "jobs", "1", "ctl")
        self.mount.write("cancel\n", "jobs", "2", "ctl")
        with open(self.mount.at("prompts", "b.txt"), "w") as file:
            file.write("hare --count")
            file.flush()
            file.write(" 2")
            file.flush()
            self.assertNotEqual(self.put("c.txt"), 0)
            file.seek(0)
            file.write("1 hare  ")  # "1 hare  ount 2": a count no more
            file.flush()
            self.assertEqual(self.put("c.txt"), 0)
        self.assertEqual(self.mount.prompts(), ["first", "fox", "fox", "1 hare  ount 2"])

    def test_a_part_is_not_painted(self):
        """Where a later write is refused, closing makes no job of what was written before."""
        fd = os.open(self.mount.at("prompts", "a.txt"), os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"fox\n")
        with self.assertRaises(BlockingIOError):
            os.write(fd, b"--count 2\n")
        os.close(fd)
        self.assertEqual(self.mount.prompts(), ["first"])
        self.assertEqual(self.put("b.txt"), 0, "the place that it had is free")
        self.assertEqual(self.mount.prompts(), ["first", "fox"])

    def test_the_rest_is_refused_too(self):
        """A prompt without its middle is none, but may be begun anew."""
        def write_first_two():
            fd = os.open(self.mount.at("prompts", "a.txt"), os.O_WRONLY | os.O_CREAT)
            os.write(fd, b"fox\n")
            with self.assertRaises(BlockingIOError):
                os.write(fd, b"--count 2\n")
            return fd
        fd = write_first_two()
        with self.assertRaises(BlockingIOError):
            os.write(fd, b"in snow\n")
        os.close(fd)
        self.assertEqual(self.mount.prompts(), ["first"])
        fd = write_first_two()
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"hare\n", 0)
        os.close(fd)
        self.assertEqual(self.mount.prompts(), ["first", "hare"])

    def test_rename_of_several(self):
        self.assertEqual(self.put(".hidden", "fox --count 2"), 0)
        with self.assertRaises(BlockingIOError):
            os.rename(self.mount.at("prompts", ".hidden"), self.mount.at("prompts", "b.txt"))
        self.assertEqual(os.listdir(self.mount.at("prompts")), [".hidden"])
        self.mount.write("cancel\n", "jobs", "1", "ctl")
        os.rename(self.mount.at("prompts", ".hidden"), self.mount.at("prompts", "b.txt"))
        self.assertEqual(self.mount.prompts(), ["first", "fox", "fox"])

    def test_rename(self):
        self.assertEqual(self.put(".hidden"), 0)
        self.assertEqual(self.put("a.txt"), 0)
        with self.assertRaises(BlockingIOError):
            os.rename(self.mount.at("prompts", ".hidden"), self.mount.at("prompts", "b.txt"))
        self.assertEqual(sorted(os.listdir(self.mount.at("prompts"))), [".hidden", "a.txt"])
        self.mount.write("cancel\n", "jobs", "1", "ctl")
        os.rename(self.mount.at("prompts", ".hidden"), self.mount.at("prompts", "b.txt"))
        self.assertEqual(self.mount.prompts(), ["first", "fox", "fox"])

    def test_an_editor_gives_a_name_back(self):
        self.assertEqual(self.put("a.txt"), 0)
        first, backup = self.mount.at("prompts", "a.txt"), self.mount.at("prompts", "a.txt~")
        os.rename(first, backup)
        self.assertNotEqual(self.put("a.txt", "hare"), 0)
        self.assertFalse(os.path.exists(first))
        os.rename(backup, first)
        with self.assertRaises(FileNotFoundError):
            os.rename(self.mount.at("prompts", "none"), self.mount.at("prompts", "b.txt"))
        self.assertEqual(self.mount.prompts(), ["first", "fox"])

    def test_nothing_is_held_by_what_is_no_prompt(self):
        for i in range(5):
            with open(self.mount.at("prompts", "empty.txt"), "w") as file:
                file.write(" ")
        self.assertEqual(self.put("a.txt"), 0)


if __name__ == "__main__":
    run()
