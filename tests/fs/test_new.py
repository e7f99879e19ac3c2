# SPDX-License-Identifier: MIT
"""`new`: how shells and programs write prompts, when they are taken, and how they are refused."""

import errno
import os
import subprocess
import threading
import unittest

from mount import MountTest, needs, run, wait_for


class New(MountTest):
    environment = {"FLUXFS_FAKE_BLOCK_US": "0"}

    def assert_prompts(self, *prompts):
        wait_for(lambda: len(self.mount.jobs()) >= len(prompts), f"{len(prompts)} jobs")
        self.assertEqual(self.mount.prompts(), list(prompts))

    def test_shells(self):
        for shell in ("bash", "dash", "sh"):
            result = self.mount.shell("echo hi > mnt/new", shell=shell)
            self.assertEqual((result.returncode, result.stderr), (0, ""), shell)
        self.assert_prompts("hi", "hi", "hi")

    def test_script_waits_for_its_picture(self):
        """As README has it."""
        for shell in ("bash", "dash"):
            said = self.mount.shell("exec 3<>mnt/new; echo 'a star --name star' >&3; read id <&3; exec 3>&-; "
                                    "cat mnt/jobs/$id/wait && cp mnt/jobs/$id/image.png star.png && cat mnt/jobs/*/wait",
                                    shell=shell, check=True).stdout
            self.assertLessEqual(set(said.split()), {"done"})
            with open(os.path.join(self.mount.folder, "star.png"), "rb") as file:
                self.assertEqual(file.read(4), b"\x89PNG")

    def test_refusal_is_told_by_write_or_close(self):
        """And shells tell of the first only."""
        for written, status in (("'fox --steps 0\n'", 1), ("'fox --steps 0'", 0), ("'fox --negative \"x\n'", 0)):
            said = self.mount.shell(f"printf {written} > mnt/new")
            self.assertEqual(said.returncode, status, written)
            self.assertIn("--steps 0" if "steps" in written else "not closed", self.mount.read("status", "error"))
        self.assertEqual(self.mount.jobs(), [])

    def test_append(self):
        self.mount.shell("echo a fox >> mnt/new", check=True)
        self.assert_prompts("a fox")

    def test_without_newline(self):
        self.mount.shell("printf 'a fox' > mnt/new", check=True)
        self.assert_prompts("a fox")

    def test_three_lines_are_one_prompt(self):
        self.mount.shell("echo 'one\ntwo\nthree' > mnt/new", check=True)
        self.assert_prompts("one\ntwo\nthree")

    def test_long_prompt_comes_in_pieces(self):
        words = "word " * 2000
        self.mount.shell(f"echo '{words}' > mnt/new", check=True)
        self.assert_prompts(words.strip())

    def test_several_writers_of_one_open_file(self):
        self.mount.shell("printf 'a red' > a; printf ' fox\\n' > b; { cat a; cat b; } > mnt/new",
                         check=True)
        self.assert_prompts("a red fox")

    def test_two_jobs_of_one_open_file(self):
        self.mount.shell("exec 3> mnt/new; echo a >&3; echo b >&3; exec 3>&-", check=True)
        self.assert_prompts("a", "b")

    def test_open_and_close_makes_nothing(self):
        self.mount.shell(": > mnt/new; true >> mnt/new; exec 3<>mnt/new; exec 3>&-", check=True)
        self.assertEqual(self.mount.jobs(), [])
        self.assertEqual(self.mount.read("status", "error"), "")

    def test_id_is_read_back(self):
        script = "exec 3<>mnt/new; echo fox >&3; read id <&3; echo bear >&3; read other <&3; echo $id $other"
        self.assertEqual(self.mount.shell(script).stdout, "1 2\n")

    def test_ids_of_several_images(self):
        self.assertEqual(self.mount.prompt("fox --count 4 --seed 9\n"), [1, 2, 3, 4])
        self.assertIn("seed=12\n", self.mount.read("jobs", "4", "parameters"))
        script = "exec 3<>mnt/new; echo 'a --count 3' >&3; read x <&3; read y <&3; read z <&3; echo $x$y$z"
        self.assertEqual(self.mount.shell(script).stdout, "567\n")

    def test_read_without_close(self):
        fd = os.open(self.mount.at("new"), os.O_RDWR)
        for expected in (b"1\n", b"2\n", b"3\n"):
            os.write(fd, b"a fox")
            self.assertEqual(os.read(fd, 100), expected)
            self.assertEqual(os.read(fd, 100), b"")
        os.close(fd)

    def test_fsync_takes_it(self):
        fd = os.open(self.mount.at("new"), os.O_WRONLY)
        os.write(fd, b"a fox")
        os.fsync(fd)
        self.assert_prompts("a fox")
        os.close(fd)
        self.assertEqual(self.mount.jobs(), [1])

    def test_python(self):
        with open(self.mount.at("new"), "w") as file:
            file.write("a fox\n")
        self.assert_prompts("a fox")

    def test_closed_by_another_thread(self):
        fd = os.open(self.mount.at("new"), os.O_WRONLY)
        os.write(fd, b"a fox\n")
        thread = threading.Thread(target=os.close, args=(fd,))
        thread.start()
        thread.join()
        self.assertEqual(self.mount.jobs(), [1])  # at once: close() has returned

    def test_programs(self):
        self.mount.shell("echo a fox > p; cp p mnt/new", check=True)
        self.mount.shell("cat p > mnt/new", check=True)
        self.mount.shell("tee mnt/new < p", check=True)
        self.mount.shell("dd if=p of=mnt/new status=none", check=True)
        self.mount.shell("dd if=p of=mnt/new conv=notrunc,fsync status=none", check=True)
        self.assert_prompts(*["a fox"] * 5)

    @needs("curl")
    def test_curl(self):
        self.mount.shell("echo a fox > p; curl -s -o mnt/new file://$PWD/p", check=True)
        self.assert_prompts("a fox")

    @needs("curl")
    def test_curl_uploads(self):
        self.mount.shell("echo a fox > p; curl -sS -T p file://$PWD/mnt/new; printf 'a bear' | "
                         "curl -sS -T - file://$PWD/mnt/new", check=True)
        self.assert_prompts("a fox", "a bear")

    @needs("curl")
    def test_curl_reports_a_refusal(self):
        self.mount.shell("echo fox --stepz 4 > p", check=True)
        for command in ("-T p file://$PWD/mnt/new", "-o mnt/new file://$PWD/p"):
            result = self.mount.shell("curl -sS " + command)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("curl: ", result.stderr)
            self.assertIn("--stepz", self.mount.read("status", "error"))
        self.assertEqual(self.mount.jobs(), [])

    @needs("vim")
    def test_vim(self):
        self.mount.shell("vim -es -u NONE -c 'set noswapfile' -c 'normal ia fox' -c 'w! mnt/new' -c q!")
        self.assert_prompts("a fox")

    def test_modes_and_times_may_be_set(self):
        path = self.mount.at("new")
        os.chmod(path, 0o600)
        os.utime(path)
        os.truncate(path, 0)
        self.mount.shell("touch mnt/new", check=True)
        self.assertEqual(os.stat(path).st_size, 0)

    def test_kill_before_close_still_takes_it(self):
        script = "exec 3> mnt/new; printf 'a fox' >&3; kill -9 $$"
        self.mount.shell(script)
        self.assert_prompts("a fox")

    def test_job_belongs_to_its_writer(self):
        self.mount.prompt("a fox\n")
        self.assertEqual(os.stat(self.mount.at("jobs", "1", "prompt")).st_uid, os.getuid())

    # ---- Refusals ----

    def assert_refused(self, text, reason):
        with self.assertRaises(OSError) as caught:
            self.mount.write(text, "new")
        self.assertEqual(caught.exception.errno, errno.EINVAL)
        self.assertIn(reason, self.mount.read("status", "error"))

    def test_refused_with_a_reason(self):
        for text, reason in (
            ("\n", "empty"),
            ("fox --stepz 4\n", "--stepz"),
            ("fox --steps 0\n", "steps"),
            ("fox --steps\n", "steps"),
            ("fox --guidance nan\n", "guidance"),
            ("fox --size 100x100\n", "16"),
            ("fox --size 4096x64\n", "2048"),
            ("fox --seed 9223372036854775808\n", "seed"),
            ("fox --count 65\n", "count"),
            (b"fox \xff\xfe\n", "UTF-8"),
            (b"fo\0x\n", ""),
            ("x" * 65537 + "\n", "65536"),
        ):
            with self.subTest(text[:30]):
                self.assert_refused(text, reason)
        self.assertEqual(self.mount.jobs(), [])

    def test_write_reports_to_every_program(self):
        self.mount.shell("echo 'fox --stepz 4' > p", check=True)
        for command in ("bash -c 'echo fox --stepz 4 > mnt/new'", "dash -c 'echo fox --stepz > mnt/new'",
                        "cat p > mnt/new", "cp p mnt/new", "tee mnt/new < p",
                        "python3 -c 'with open(\"mnt/new\", \"w\") as f: f.write(\"fox --stepz 4\\n\")'"):
            result = self.mount.shell(command)
            self.assertNotEqual((result.returncode, result.stderr), (0, ""), command)
            self.assertRegex(result.stderr, "Invalid argument|I/O error|Errno 22", command)
        self.assertEqual(self.mount.jobs(), [])

    def test_close_reports_what_write_could_not(self):
        fd = os.open(self.mount.at("new"), os.O_WRONLY)
        os.write(fd, b"fox --stepz 4")  # might go on
        with self.assertRaises(OSError) as caught:
            os.close(fd)
        self.assertEqual(caught.exception.errno, errno.EINVAL)

    def test_refusal_ends_with_close(self):
        script = ("exec 3> mnt/new; echo 'fox --stepz' >&3; echo ' more' >&3; echo a bear >&3; exec 3>&-")
        self.mount.shell(script)
        # Each echo closes its duplicate, so only the first is refused.
        self.assert_prompts("more", "a bear")

    def test_refused_prompt_is_dropped_whole(self):
        fd = os.open(self.mount.at("new"), os.O_WRONLY)
        os.write(fd, b"one\n")
        for text in (b"--stepz 4\n", b"two\n"):
            with self.assertRaises(OSError):
                os.write(fd, text)
        os.close(fd)
        self.assertEqual(self.mount.jobs(), [])

    def test_writers_at_once(self):
        def write(index):
            for i in range(20):
                self.mount.write(f"writer {index} prompt {i}\n", "new")

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = sorted(f"writer {w} prompt {i}" for w in range(8) for i in range(20))
        self.assertEqual(sorted(self.mount.prompts()), expected)

    def test_parameters_of_an_image_make_it_again(self):
        first = self.mount.paint("a red fox, with \"quotes\" --steps 3 --guidance 2.25 --size 96x64 --seed 7\n")
        text = subprocess.run([os.path.join(os.path.dirname(__file__), "png_text.py"),
                               self.mount.at("images", self.mount.image(first))],
                              capture_output=True, text=True, check=True).stdout
        second = self.mount.paint(text)
        for name in ("prompt", "parameters"):
            self.assertEqual(self.mount.read("jobs", str(first), name),
                             self.mount.read("jobs", str(second), name))
        def pixels(job):
            with open(self.mount.at("images", self.mount.image(job)), "rb") as file:
                return file.read()
        self.assertEqual(pixels(first), pixels(second))


class FullQueue(MountTest):
    options = ("--queue-limit=3",)
    environment = {"FLUXFS_FAKE_BLOCK_US": "100000"}

    def test_full_queue_answers_at_once(self):
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("fox --count 3\n")
        with self.assertRaises(OSError) as caught:
            self.mount.write("one more\n", "new")
        self.assertIn(caught.exception.errno, (errno.EAGAIN, errno.ENOSPC))
        self.assertIn("queue", self.mount.read("status", "error"))
        self.assertEqual(len(self.mount.jobs()), 3)

    def open_new(self):
        fd = os.open(self.mount.at("new"), os.O_WRONLY)
        self.addCleanup(os.close, fd)
        return fd

    def test_last_place_is_kept_from_write_to_close(self):
        """Whoever comes second is told by write(), for shells say nothing when close() fails."""
        self.mount.write("1\n", "control", "pause")
        self.mount.prompt("fox --count 2\n")
        first, second = self.open_new(), self.open_new()
        os.write(first, b"the last")
        for words in (b"too late", b"too late\n"):
            with self.assertRaises(BlockingIOError):
                os.write(self.open_new(), words)
        with self.assertRaises(OSError):
            os.write(first, b" --option\n")  # and has no place any more
        os.write(second, b"the last after all\n")
        os.close(os.dup(second))  # a flush, as close() is
        self.assertEqual(self.mount.prompts(), ["fox", "fox", "the last after all"])
        with self.assertRaises(BlockingIOError):
            os.write(self.open_new(), b"x")

    def test_places_of_those_who_wrote_nothing_in_the_end(self):
        self.mount.write("1\n", "control", "pause")
        for _ in range(5):
            fd = os.open(self.mount.at("new"), os.O_WRONLY)
            os.write(fd, b"fox --count 3\n")
            os.ftruncate(fd, 0)
            os.close(fd)
            with self.assertRaises(OSError):
                self.mount.write("fox --count 4\n", "new")
        self.assertEqual(self.mount.jobs(), [])
        self.assertEqual(self.mount.prompt("fox --count 3\n"), [1, 2, 3])

    def test_each_of_many_writers_is_told(self):
        self.mount.write("1\n", "control", "pause")
        codes = self.mount.shell("for i in $(seq 20); do (echo fox $i >mnt/new; echo $?) 2>/dev/null & done; wait")
        self.assertEqual(sorted(codes.stdout.split()), ["0"] * 3 + ["1"] * 17)
        self.assertEqual(len(self.mount.jobs()), 3)


if __name__ == "__main__":
    run()
