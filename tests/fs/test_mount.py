# SPDX-License-Identifier: MIT
"""mount(8), fstab, and mounts of ordinary users: in a mount namespace of our own, where a fluxfs lies
on the path that mount(8) gives its helpers."""

import ctypes
import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import unittest

from mount import FLUXFS, PATIENCE, Mount, is_mounted, needs, run, wait_for

CLONE_NEWNS = 0x20000
PROGRAMS = "/usr/local/sbin"  # the first folder in which a shell without PATH looks


def setUpModule():
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tempfile.mkdtemp(prefix="fluxfs-programs-")
    unittest.addModuleCleanup(shutil.rmtree, folder)
    shutil.copy(FLUXFS, os.path.join(folder, "fluxfs"))
    os.chmod(folder, 0o755)
    if not os.path.isdir(PROGRAMS) or libc.unshare(CLONE_NEWNS) != 0:
        raise unittest.SkipTest("no mount namespace can be had")
    for command in (["--make-rprivate", "/"], ["--bind", folder, PROGRAMS]):
        subprocess.run(["mount", *command], check=True)
    unittest.addModuleCleanup(subprocess.run, ["umount", "-l", PROGRAMS], check=True)


def wait_for_end(state):
    """A daemon keeps a lock on its state folder."""
    def is_free():
        fd = os.open(state, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    wait_for(is_free, "the daemon's end", 6 * PATIENCE)


@needs("mount.fuse", "mount.fuse3")
class MountProgram(unittest.TestCase):
    def make(self, name):
        """A folder for a mount, the model and the state; nothing is mounted yet."""
        made = Mount(start=False, environment={"FLUXFS_FAKE_BLOCK_US": "0"})
        self.addCleanup(self.end, made)
        made.path = os.path.join(made.folder, name)
        os.makedirs(made.path, exist_ok=True)
        return made

    def end(self, made):
        if is_mounted(made.path):
            subprocess.run(["umount", made.path], check=True)
        if os.path.isdir(made.state):
            wait_for_end(made.state)
        made.clean()

    def mount(self, *words, made=None):
        environment = dict(os.environ, **(made.environment if made else {}))
        return subprocess.run(["mount", *words], env=environment, capture_output=True, text=True,
                              timeout=6 * PATIENCE)

    def assert_mounts(self, *words, made=None):
        done = self.mount(*words, made=made)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def assert_refused(self, says, *words):
        done = self.mount(*words)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count(says), 1, done.stderr)

    def fstab(self, made, *lines):
        path = os.path.join(made.folder, "fstab")
        with open(path, "w") as file:
            file.write("# a table of its own\n" + "".join(line.replace(" ", "\\040").replace("\t", " ") + "\n"
                                                           for line in lines))
        return path

    def shown(self, made):
        """Source and options, as the kernel tells them."""
        path = made.path.replace(" ", "\\040")
        with open("/proc/self/mounts") as file:
            lines = [line.split() for line in file if line.split()[1] == path]
        self.assertEqual([line[2] for line in lines], ["fuse.fluxfs"])
        return lines[0][0].replace("\\040", " "), lines[0][3].split(",")

    def test_mount_t(self):
        made = self.make("mnt")
        self.assert_mounts("-t", "fuse.fluxfs", "-o", f"noexec,nofail,x-systemd.automount,state_dir={made.state}",
                           made.folder, made.path, made=made)
        source, options = self.shown(made)
        self.assertEqual(source, made.folder)
        self.assertLessEqual({"rw", "nosuid", "nodev", "noexec"}, set(options))
        made.paint("a fox\n")
        self.assert_refused("a fluxfs is mounted here already", "-t", "fuse.fluxfs", made.folder, made.path)
        self.assertEqual(made.read("status", "health"), "ok\n")

    def test_fstab(self):
        made = self.make("a mount")
        model = os.path.join(made.folder, "a model")
        os.mkdir(model)
        # The line of the manual, but for the paths and the state.
        table = self.fstab(made, f"{model}\t{made.path}\tfuse.fluxfs\tvram_budget=128M,allow_other,_netdev,"
                                 f"state_dir={made.state}\t0\t0")
        self.assert_mounts("-T", table, made.path, made=made)
        source, options = self.shown(made)
        self.assertEqual(source, model)
        self.assertIn("allow_other", options)
        self.assertNotIn("noexec", options)
        wait_for(lambda: "model a model\n" in made.read("status", "device"), "the model")
        self.assertIn("budget 128.0 MiB\n", made.read("status", "vram"))
        made.paint("a fox\n")

    def test_mount_all(self):
        """Again too: what is mounted is known by the source that the table names."""
        sources = ("fluxfs", "none", None, None)
        all_made = [self.make(f"mnt{i}") for i in range(len(sources))]
        lines = []
        for made, source in zip(all_made, sources):
            options = f"model={made.folder}," if source else ""
            words = "noauto" if made is all_made[-1] else "nofail"
            lines.append(f"{source or made.folder + '/'}\t{made.path}\tfuse.fluxfs\t{options}state_dir={made.state},{words}"
                         "\t0\t0")
        table = self.fstab(all_made[0], *lines)
        for _ in range(2):
            self.assert_mounts("-a", "-T", table, made=all_made[0])
            self.assertEqual([is_mounted(made.path) for made in all_made], [True, True, True, False])
        for made, source in zip(all_made[:-1], sources):
            self.assertEqual(self.shown(made)[0].rstrip("/"), source or made.folder)
            made.paint("a fox\n")

    def test_mounted_again_at_once(self):
        """The daemon that was unmounted still ends when the next one comes, which waits for it."""
        made = self.make("mnt")
        made.environment["FLUXFS_FAKE_BLOCK_US"] = "100000"
        words = ("-t", "fuse.fluxfs", "-o", f"state_dir={made.state}", made.folder, made.path)
        self.assert_mounts(*words, made=made)
        job = made.prompt("a fox --steps 1\n")[0]
        wait_for(lambda: made.read("status", "progress").startswith("job"), "the job to run")
        made.environment["FLUXFS_FAKE_BLOCK_US"] = "0"
        subprocess.run(["umount", made.path], check=True)
        self.assert_mounts(*words, made=made)
        self.assertEqual(made.wait(job), "done")

    def test_refusals(self):
        made = self.make("mnt")
        for says, options in (("-o bogus: unknown", "bogus=3"), ("mount it rw", "ro"),
                              ("-o vram_budget: ", "vram_budget=12Q"), ("unmount it first", "remount")):
            self.assert_refused(says, "-t", "fuse.fluxfs", "-o", f"{options},state_dir={made.state}", made.folder,
                                made.path)
            self.assertFalse(is_mounted(made.path), options)
        self.assert_refused("nowhere: No such file or directory", "-t", "fuse.fluxfs", "-o",
                            f"state_dir={made.state}", made.folder, made.folder + "/nowhere")
        self.assert_refused("mount it rw", "-r", "-t", "fuse.fluxfs", made.folder, made.path)
        self.assertFalse(os.path.exists(made.state))


@needs("setpriv", "fusermount3")
class OrdinaryUser(unittest.TestCase):
    """Who isn't root mounts through fusermount3, and nobody else may look in, not even root."""

    def setUp(self):
        self.user = pwd.getpwnam("nobody")
        self.folder = tempfile.mkdtemp(prefix="fluxfs-home-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "mnt")
        os.mkdir(self.path)
        for path in (self.folder, self.path):
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
            self.open_device()

    def open_device(self):
        """Some machines give /dev/fuse to root only."""
        device = os.path.join(self.folder, "fuse")
        os.mknod(device, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(device, 0o666)
        subprocess.run(["mount", "--bind", device, "/dev/fuse"], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", "/dev/fuse"], check=True)
        if self.run_as_user("exec 3<>/dev/fuse").returncode != 0:
            self.skipTest("others than root can't open /dev/fuse")

    def run_as_user(self, script):
        environment = dict(os.environ, HOME=self.folder, M=self.path, MODEL=self.folder, FLUXFS_FAKE_BLOCK_US="0",
                           FLUXFS=os.path.join(PROGRAMS, "fluxfs"))
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            environment.pop(name, None)
        command = ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups", "bash"]
        return subprocess.run([*command, "-c", script], cwd="/", env=environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=6 * PATIENCE)

    def assert_runs(self, script, output=""):
        done = self.run_as_user(script)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, output, ""))

    def test_mounts_and_mounts_again(self):
        state = os.path.join(self.folder, ".local/state/fluxfs", self.path.strip("/").replace("/", "-"))
        self.assert_runs("$FLUXFS -c /dev/null --model=$MODEL $M")
        try:
            self.assert_runs("exec 3<>$M/new; echo a fox >&3; read id <&3; cat $M/jobs/$id/wait; ls $M/images",
                             "done\n0001-a-fox.png\nlatest.png\n")
            with self.assertRaises(PermissionError):
                os.listdir(self.path)
            self.assertTrue(os.path.exists(os.path.join(state, "queue.db")))
            self.assert_runs("fusermount3 -u $M; $FLUXFS -c /dev/null --model=$MODEL $M; ls $M/jobs", "1\n")
        finally:
            self.run_as_user("fusermount3 -u $M")
            wait_for_end(state)
        self.assertFalse(is_mounted(self.path))

    def test_state_folder_must_be_writable(self):
        done = self.run_as_user("$FLUXFS -c /dev/null --model=$MODEL --state-dir=/ $M")
        self.assertEqual((done.returncode, done.stderr),
                         (1, "fluxfs: /: can't write to the state folder: Permission denied\n"))

    def test_sharing_must_be_allowed(self):
        empty = os.path.join(self.folder, "fuse.conf")
        open(empty, "w").close()
        if os.path.exists("/etc/fuse.conf"):
            subprocess.run(["mount", "--bind", empty, "/etc/fuse.conf"], check=True)
            self.addCleanup(subprocess.run, ["umount", "-l", "/etc/fuse.conf"], check=True)
        done = self.run_as_user("$FLUXFS -c /dev/null --model=$MODEL --allow-other $M")
        self.assertEqual(done.returncode, 1)
        self.assertIn("user_allow_other", done.stderr)
        self.assertFalse(is_mounted(self.path))


if __name__ == "__main__":
    run()
