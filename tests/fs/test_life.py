# SPDX-License-Identifier: MIT
"""How a mount begins and ends, and what outlives it."""

import fcntl
import errno
import os
import shutil
import signal
import socket
import subprocess
import time
import unittest

import mount
from mount import FLUXFS, PATIENCE, Mount, is_mounted, needs, needs_root, run, wait_for


class Life(unittest.TestCase):
    def make(self, *options, **keywords):
        made = Mount(*options, **keywords)
        self.addCleanup(made.clean)
        return made

    def test_mounted_at_once(self):
        made = self.make(start=False)
        made.hold(-1)
        made.start(loaded=False)
        self.assertTrue(made.read("status", "health").startswith("loading"))
        made.release()
        made.paint("a fox\n")

    def test_signals_end_it(self):
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            made = self.make()
            made.paint("a fox\n")  # handlers are no longer what they were
            self.assertEqual(made.stop(sig), 0)
            self.assertFalse(is_mounted(made.path))

    def test_signals_end_what_cannot_be_reached(self):
        """No way leads to the mount any more, but someone still holds it."""
        made = self.make()
        with open(made.at("status", "events")):
            made.shell("umount -l mnt", check=True)
            self.assertFalse(is_mounted(made.path))
            self.assertEqual(made.stop(), 0)

    def test_signals_while_starting(self):
        """It waits for its state folder, which is another's; its child comes before that."""
        made = self.make()
        other = self.make(state=made.state, start=False)
        other.start(wait=False)
        wait_for(lambda: subprocess.run(["pgrep", "-P", str(other.process.pid)], stdout=subprocess.DEVNULL).returncode == 0
                 or other.process.poll() is not None, "the notifier")
        self.assertEqual(other.stop(), -signal.SIGTERM, other.read_log())

    def test_signals_at_any_moment(self):
        """Of its start. Nothing stays mounted, and mounting does not fail for it."""
        made = self.make(start=False)
        for ms in range(50):
            made.start(wait=False)
            time.sleep(0.001 * ms)
            self.assertIn(made.stop(), (0, -signal.SIGTERM), made.read_log())
            self.assertFalse(is_mounted(made.path))

    def test_second_signal_waits_for_nothing(self):
        """Once it is unmounted, a signal ends it whatever the engine does."""
        made = self.make(start=False)
        made.hold(-1)
        made.start(loaded=False)
        made.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not is_mounted(made.path), "the unmount")
        wait_for(lambda: made.process.send_signal(signal.SIGTERM) or made.process.poll() is not None, "the end")
        self.assertEqual(made.stop(), -signal.SIGTERM)

    def test_ignored_signals_stay_ignored(self):
        """As nohup wants it."""
        made = self.make(start=False)
        command = made.command()
        made.command = lambda *more: ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *command[:-1], *more, command[-1]]
        made.start()
        made.process.send_signal(signal.SIGHUP)
        made.paint("a fox\n")
        self.assertEqual(made.stop(), 0)

    def test_file_larger_than_allowed(self):
        """As ulimit -f has it: whoever writes it is told."""
        made = self.make(start=False)
        command = made.command()
        made.command = lambda *more: ["sh", "-c", "ulimit -f 1000; exec \"$@\"", "sh", *command[:-1], *more, command[-1]]
        made.start()
        with open(made.at("prompts", "large.txt"), "wb", buffering=0) as file, self.assertRaises(OSError) as raised:
            while True:
                file.write(bytes(1 << 16))
        self.assertEqual(raised.exception.errno, errno.EFBIG)
        made.paint("a fox\n")

    def test_mountpoint_however_written(self):
        """Where libfuse asks the mount before anyone serves it, none of these ends by itself."""
        for folder, name in (("mnt", "."), ("mnt", "./"), ("mnt/x", ".."), (".", "mnt/."), (".", "mnt/"),
                             (".", "./mnt/x/.."), (".", "link"), (".", "link/."), ("mnt", "../up/mnt")):
            made = self.make(start=False)
            os.mkdir(os.path.join(made.path, "x"))
            os.symlink("mnt", os.path.join(made.folder, "link"))
            os.symlink(".", os.path.join(made.folder, "up"))
            command = made.command()[:-1]
            made.command = lambda *more: ["env", "-C", os.path.join(made.folder, folder), *command, name]
            made.start(wait=False)
            wait_for(lambda: is_mounted(made.path), "the mount")
            # A process of its own can be killed where this one would wait for ever.
            subprocess.run(["stat", "-f", made.path], stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)
            self.assertEqual(made.prompt("a fox\n"), [1])
            self.assertEqual(made.stop(), 0, name)

    def umount(self, made):
        """Which may find the mount busy while something is still looked at."""
        wait_for(lambda: made.shell("umount mnt").returncode == 0, "umount")

    def test_umount_ends_it(self):
        made = self.make()
        self.umount(made)
        self.assertEqual(made.process.wait(PATIENCE), 0)

    def test_stops_within_a_block(self):
        made = self.make()
        made.hold(5)  # so that it never ends
        made.prompt("a fox\n")
        wait_for(lambda: "step" in made.read("status", "progress"), "a step")
        self.assertEqual(made.stop(), 0)
        made.release()
        made.start()
        self.assertEqual(made.wait(1), "done")  # it ran again

    def background(self, made, *more, **how):
        command = [word for word in made.command(*more) if word != "--foreground"]
        return subprocess.run(command, env=dict(os.environ, **made.environment), capture_output=True,
                              text=True, timeout=PATIENCE, **how)

    def end_background(self, made):
        self.umount(made)
        # The state is free again once the daemon is gone.
        wait_for(lambda: "EBUSY" not in self.try_state(made), "the daemon's end")

    def try_state(self, made):
        return subprocess.run(["fuser", made.state + "/queue.db"], capture_output=True, text=True).stdout and "EBUSY"

    @needs("fuser")
    def test_background_returns_mounted(self):
        made = self.make(start=False)
        result = self.background(made)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertTrue(is_mounted(made.path))
        self.assertEqual(made.read("status", "health").split(":")[0] in ("ok\n", "loading"), True)
        made.paint("a fox\n")
        self.end_background(made)

    @needs("fuser")
    def test_background_holds_nothing_of_the_shell(self):
        """Under `flock lock script` the lock is free once the script has ended."""
        made = self.make(start=False)
        lock = os.path.join(made.folder, "lock")
        with open(lock, "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.assertEqual(self.background(made, pass_fds=[held.fileno()]).returncode, 0)
        with open(lock) as free:
            fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made.paint("a fox\n")
        self.end_background(made)

    @needs("fuser")
    def test_background_with_nothing_open(self):
        """As some that start daemons leave them: not even standard input."""
        made = self.make(start=False)
        command = made.command()
        made.command = lambda *more: ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
        self.assertEqual(self.background(made).returncode, 0)
        made.paint("a fox\n")
        self.end_background(made)

    def test_background_reports_failure(self):
        made = self.make(start=False)
        os.rmdir(made.path)
        result = self.background(made)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(made.path, result.stderr)
        open(made.state, "w").close()  # a file where a folder should be
        os.mkdir(made.path)
        result = self.background(made)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("state", result.stderr)

    def test_trace_that_cannot_be_written(self):
        made = self.make(start=False)
        made.options = ["--trace=/no/such/folder/t"]
        result = self.background(made)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("trace: /no/such/folder/t: No such file or directory", result.stderr)
        self.assertFalse(is_mounted(made.path))

    @needs("fuser")
    def test_background_warns(self):
        """Of what is no reason not to mount."""
        made = self.make(start=False)
        open(os.path.join(made.path, "hidden"), "w").close()
        open(os.path.join(made.folder, "unreadable"), "w").close()
        result = self.background(made)
        self.assertEqual((result.returncode, result.stderr),
                         (0, f"fluxfs: {made.path} is not empty: what lies there is hidden by the mount\n"
                             f"fluxfs: model: {made.folder}: is unreadable; prompts wait until it can be read\n"))
        self.end_background(made)
        os.unlink(os.path.join(made.path, "hidden"))

    @needs("fuser")
    def test_background_says_that_prompts_wait(self):
        """Where the engine can't be opened, which is tried once it is mounted."""
        made = self.make("--vram-budget=1M", start=False)
        result = self.background(made)
        self.assertEqual((result.returncode, result.stderr),
                         (0, "fluxfs: prompts wait: the budget is too small: at least 64 MiB are needed; tried again "
                             "every 10 s, and at once when control/model or control/vram_budget is written\n"))
        self.end_background(made)

    def test_as_mount_8_calls_it(self):
        made = self.make(start=False)
        options = ("rw,noexec,nosuid,nodev,noauto,nofail,user,_netdev,x-systemd.automount,"
                   f"state_dir={made.state},allow_other,foreground")
        model = os.path.join(made.folder, "model, with a comma")
        os.mkdir(model)
        made.command = lambda *more: [FLUXFS, model, made.path, "-o", options]
        made.start()
        self.assertIn(" - fuse.fluxfs ", open("/proc/self/mountinfo").read())
        self.assertIn("with", [line for line in open("/proc/mounts") if made.path in line][0])
        wait_for(lambda: "model, with a comma" in made.read("status", "device"), "the model")

    @needs("mount.fuse3", "fuser")
    def test_mount_t_fuse(self):
        made = self.make(start=False)
        folder = os.path.join(made.folder, "bin")
        os.mkdir(folder)
        shutil.copy(FLUXFS, os.path.join(folder, "fluxfs"))
        # What mount(8) calls for this type; it looks for fluxfs on the path.
        result = subprocess.run(["mount.fuse3", made.folder, made.path, "-t", "fuse.fluxfs", "-o",
                                 f"rw,nofail,state_dir={made.state}"], capture_output=True, text=True,
                                env=dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}"), timeout=PATIENCE)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        made.paint("a fox\n")
        self.end_background(made)

    def test_state_in_use(self):
        made = self.make()
        other = self.make(state=made.state, start=False)
        result = self.background(other)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, rf"another fluxfs( \(process {made.process.pid}\))? uses this state folder.*wait")
        self.assertFalse(is_mounted(other.path))

    def test_stale_mount_is_healed(self):
        made = self.make()
        made.stop(signal.SIGKILL)
        self.assertTrue(is_mounted(made.path))
        with self.assertRaises(OSError):
            os.listdir(made.path)
        made.start()
        made.paint("a fox\n")
        made.stop()
        self.assertFalse(is_mounted(made.path))

    def test_living_mount_is_left_alone(self):
        made = self.make()
        result = self.background(made)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("already", result.stderr)
        self.assertEqual(made.read("status", "health"), "ok\n")

    def test_living_mount_is_found_through_a_link(self):
        made = self.make()
        link = os.path.join(made.folder, "link")
        os.symlink("mnt", link)
        command = [word for word in made.command()[:-1] if word != "--foreground"]
        result = subprocess.run([*command, f"--state-dir={made.folder}/other", link], capture_output=True, text=True,
                                timeout=PATIENCE)
        self.assertEqual((result.returncode, result.stderr),
                         (1, f"fluxfs: {made.path}: a fluxfs is mounted here already\n"))
        self.assertEqual(made.read("status", "health"), "ok\n")
        made.stop(signal.SIGKILL)
        made.command = lambda *more: [FLUXFS, "--foreground", *command[1:], link]
        made.start()
        made.paint("a fox\n")

    def test_killed_daemon_leaves_no_process(self):
        made = self.make()
        children = subprocess.run(["pgrep", "-P", str(made.process.pid)], capture_output=True, text=True).stdout.split()
        self.assertEqual(len(children), 1)
        made.stop(signal.SIGKILL)
        wait_for(lambda: self.has_ended(children[0]), "the notifier's end")

    def has_ended(self, process):
        try:
            with open(f"/proc/{process}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def test_systemd_is_told(self):
        made = self.make(start=False)
        path = os.path.join(made.folder, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(path)
            server.settimeout(PATIENCE)
            made.environment = {"NOTIFY_SOCKET": path}
            made.start()
            self.assertIn(b"READY=1", server.recv(4096))
            made.stop()
            self.assertIn(b"STOPPING=1", server.recv(4096))

    def test_history_outlives_it(self):
        made = self.make()
        made.paint("a fox\n")
        made.stop()
        made.start()
        self.assertEqual(made.read("jobs", "1", "state"), "done\n")
        self.assertEqual(made.read("jobs", "1", "wait"), "done\n")
        self.assertIn("denoise_s", made.read("jobs", "1", "timing"))
        self.assertTrue(os.path.exists(made.at("jobs", "1", "image.png")))
        self.assertEqual(made.prompt("a bear\n"), [2])

    def test_owner_options(self):
        made = self.make("-o", "uid=12,gid=34,umask=027")
        found = os.stat(made.at("new"))
        self.assertEqual((found.st_uid, found.st_gid, found.st_mode & 0o777), (12, 34, 0o640))


@needs_root
@needs("setpriv")
class Others(unittest.TestCase):
    """Users other than whoever mounts; here that is root."""

    def make(self, *options):
        made = Mount(*options)
        self.addCleanup(made.clean)
        os.chmod(made.folder, 0o755)
        return made

    def run_as(self, made, script, uid=4711):
        command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "bash", "-c", script]
        # bash wants no working folder but one it may enter, and no input.
        return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=PATIENCE,
                              stdin=subprocess.DEVNULL, env=dict(os.environ, M=made.path))

    def assert_runs(self, made, script, output="", uid=4711):
        result = self.run_as(made, script, uid)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, output, ""), script)

    def assert_refused(self, made, script, uid=4711):
        self.assertNotEqual(self.run_as(made, script, uid).returncode, 0, script)

    def test_not_shared_unless_asked(self):
        self.assert_refused(self.make(), "cat $M/README")

    def test_status_is_for_all_and_prompts_are_not(self):
        made = self.make("--allow-other", "--umask=0")
        job = made.paint("a secret fox\n")
        self.assert_runs(made, f"cat $M/status/[!e]* $M/jobs/{job}/{{state,progress,timing,vram.csv,wait}} > /dev/null")
        for name in ("prompt", "parameters", "error", "image.png"):
            self.assert_refused(made, f"cat $M/jobs/{job}/{name}")
        self.assert_refused(made, "cat $M/images/0001-a-secret-fox.png")
        self.assert_refused(made, f"echo cancel > $M/jobs/{job}/ctl")
        self.assert_refused(made, "echo 3 > $M/control/width")
        self.assert_runs(made, "echo an open fox > $M/new")
        self.assertEqual(made.wait(job + 1), "done")
        self.assert_runs(made, f"cat $M/jobs/{job + 1}/prompt; file -bL $M/jobs/{job + 1}/image.png | cut -c1-14",
                         "an open fox\nPNG image data\n")

    def test_no_word_of_others_is_to_be_found(self):
        """Nor in names, in events or in errors."""
        made = self.make("--allow-other", "--umask=0")
        made.paint("a secret fox\n")
        with open(made.at("prompts", "secret.txt"), "w") as file:
            file.write("a secret bear\n")
        made.wait(2)
        for text, path in (("fox --secret\n", "new"), ("fox --secret\n", "prompts/secret.txt")):
            with self.assertRaises(OSError):
                made.write(text, path)
        made.prompt("a secret [fail]\n")
        self.assertEqual(made.wait(3), "failed")
        everything = ("cd $M; ls -lR; find; tail -n 1000 status/events; cat status/[!e]*; cat status/error; "
                      "grep -r --exclude=events . ")
        found = self.run_as(made, everything)
        self.assertIn("job 3 failed", found.stdout)
        self.assertNotIn("secret", (found.stdout + found.stderr).lower())
        self.assertIn("secret", self.run_as(made, everything, uid=0).stdout)
        # Each sees his own, and who mounts sees all.
        for uid, word in ((4711, "lion"), (4712, "tiger")):
            self.assert_runs(made, f"echo a {word} > $M/new", uid=uid)
            self.assert_refused(made, f"echo fox --{word} > $M/new", uid=uid)
        made.wait(5)
        for uid, word, name in ((4711, "lion", "0004-a-lion.png"), (4712, "tiger", "0005-a-tiger.png")):
            self.assert_runs(made, "ls $M/images; readlink $M/images/latest.png", f"{name}\nlatest.png\n{name}\n", uid)
            self.assertIn(f"--{word}: ", self.run_as(made, "cat $M/status/error", uid).stdout)
        self.assertEqual(len(os.listdir(made.at("images"))), 5)
        self.assertIn("--tiger: ", made.read("status", "error"))

    def test_files_of_others_in_prompts(self):
        made = self.make("--allow-other", "--umask=0")
        self.assert_runs(made, "cd $M/prompts; umask 077; echo a lion > lion.txt; echo a red lion > lion.txt; "
                         "cat lion.txt; sed -i s/red/blue/ lion.txt; ls; stat -c %u:%g:%a lion.txt",
                         "a red lion\nlion.txt\n4711:4711:600\n")
        for _ in range(2):
            made.wait(made.jobs()[-1])
        self.assertEqual(made.prompts(), ["a lion", "a red lion", "a blue lion"])
        self.assertEqual(os.stat(made.at("jobs", "1", "prompt")).st_uid, 4711)
        for script in ("cat lion.txt", "rm -f lion.txt", "mv -f lion.txt x.txt", "echo > lion.txt", "chmod 644 lion.txt",
                       "echo x > y.txt && mv -f y.txt lion.txt"):
            self.assert_refused(made, "cd $M/prompts; " + script, uid=4712)
        made.shell("chown 4712:4712 mnt/prompts/lion.txt", check=True)
        self.assert_runs(made, "cat $M/prompts/lion.txt; rm $M/prompts/lion.txt", "a blue lion\n", uid=4712)

    def test_images_of_others_are_not_replaced(self):
        """A file of the same name, and even the same words, is another's picture."""
        made = self.make("--allow-other", "--umask=0", "--seed=7")
        for job, (uid, word) in enumerate(((4711, "lion"), (4712, "lion"), (4713, "tiger"), (4711, "bear")), 1):
            self.assert_runs(made, f"cd $M/prompts; echo a {word} > cat.txt; rm cat.txt", uid=uid)
            self.assertEqual(made.wait(job), "done")
        for uid, job, name in ((4711, 4, "cat.png"), (4712, 2, "0002-cat.png"), (4713, 3, "0003-cat.png")):
            self.assert_runs(made, f"readlink $M/jobs/{job}/image.png; ls $M/images",
                             f"../../images/{name}\n{name}\nlatest.png\n", uid)
        with open(made.at("prompts", "cat.txt"), "w") as file:  # by who mounts
            file.write("a wolf\n")
        self.assertEqual(made.wait(5), "done")
        self.assertEqual(made.image(5), "cat.png")

    def test_prompts_may_be_shown(self):
        made = self.make("--allow-other", "--read-prompts")
        made.paint("an open fox\n")
        self.assert_runs(made, "cat $M/jobs/1/prompt; ls $M/images; readlink $M/jobs/1/image.png; cmp "
                         "$M/jobs/1/image.png $M/images/latest.png",
                         "an open fox\n0001-an-open-fox.png\nlatest.png\n../../images/0001-an-open-fox.png\n")


if __name__ == "__main__":
    run()
