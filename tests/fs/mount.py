# SPDX-License-Identifier: MIT
"""What tests of the mount share: a fluxfs with the fake engine, mounted in a folder of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

FLUXFS = os.path.abspath(os.environ.get("FLUXFS", "build/tests/fs/fluxfs-fake"))
# Seconds; sanitizers and busy machines make everything slower, and nothing waits so long unless
# something is wrong. No test may depend on how long anything takes.
PATIENCE = 100
PATIENCE_MS = 1000 * PATIENCE
# What random tests draw is the same in each run, unless one wants to see more.
SEED = int(os.environ.get("FLUXFS_SEED", "1"))
# Whoever runs us under nohup has it ignored, and a daemon inherits that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(condition, what="condition", seconds=PATIENCE):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def is_mounted(path):
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4].replace("\\040", " ") == path for line in mounts)


class Mount:
    """Starts at once unless told otherwise. `environment` is for the fake engine, as is hold()."""

    def __init__(self, *options, state=None, environment=None, start=True):
        self.folder = tempfile.mkdtemp(prefix="fluxfs-test-")  # the model too: the fake engine takes any
        self.state = state or os.path.join(self.folder, "state")
        self.path = os.path.join(self.folder, "mnt")
        os.mkdir(self.path)
        self.options = list(options)
        self.hold_path = os.path.join(self.folder, "hold")
        self.taken_path = os.path.join(self.folder, "taken")
        self.environment = environment or {}
        self.process = None
        self.log_path = os.path.join(self.folder, "log")
        open(self.log_path, "w").close()
        if start:
            try:
                self.start()
            except BaseException:
                self.clean()
                raise

    def command(self, *more):
        return [FLUXFS, "--config=/dev/null", "--foreground", f"--state-dir={self.state}",
                f"--model={self.folder}",
                *self.options, *more, self.path]

    def start(self, *more, wait=True, loaded=True):
        """Returns once the mount is there; unless told otherwise, once the engine is open too (or
        could not be opened), and all that start-up has to say is in status/events."""
        environment = dict(os.environ, FLUXFS_FAKE_HOLD=self.hold_path,
                           FLUXFS_FAKE_TAKEN=self.taken_path, **self.environment)
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(self.command(*more), env=environment, stderr=self.log,
                                        stdin=subprocess.DEVNULL, stdout=self.log)
        if wait:
            wait_for(lambda: self.is_up() or self.process.poll() is not None, "the mount")
            if self.process.poll() is not None:
                raise AssertionError("fluxfs ended: " + self.read_log())
        if wait and loaded:
            wait_for(lambda: not self.read("status", "health").startswith("loading"), "the engine")
        return self

    def hold(self, blocks):
        """The fake engine passes no more blocks, counted from its opening, until released; with -1
        it doesn't even open. An image has 3 for its text, 7 a step, and 1 for decoding."""
        with open(self.hold_path + ".new", "w") as file:
            file.write(f"{blocks}\n")
        os.rename(self.hold_path + ".new", self.hold_path)

    def release(self):
        if os.path.exists(self.hold_path):
            os.unlink(self.hold_path)

    def is_up(self):
        """The kernel remembers `new` of a mount that is dead; statvfs asks the daemon."""
        try:
            return bool(os.statvfs(self.path)) and os.path.exists(self.at("new"))
        except OSError:
            return False

    def stop(self, sig=signal.SIGTERM):
        """Ends the daemon and returns its exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = "hung"
        self.process = None
        self.log.close()
        return status

    def clean(self):
        self.release()
        status = self.stop()
        if is_mounted(self.path):
            subprocess.run(["umount", "-l", self.path], check=False)
            status = "left mounted"
        log = self.read_log()
        shutil.rmtree(self.folder, ignore_errors=True)
        return status, log

    def read_log(self):
        with open(self.log_path) as log:
            return log.read()

    def at(self, *names):
        return os.path.join(self.path, *names)

    def read(self, *names):
        with open(self.at(*names)) as file:
            return file.read()

    def write(self, text, *names):
        """One open, one write, one close, as a careful program does it."""
        fd = os.open(self.at(*names), os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, text.encode() if isinstance(text, str) else text)
        finally:
            os.close(fd)

    def prompt(self, text):
        """Writes a prompt and returns the ids of its jobs."""
        fd = os.open(self.at("new"), os.O_RDWR)
        try:
            os.write(fd, text.encode() if isinstance(text, str) else text)
            return [int(line) for line in os.read(fd, 4096).split()]
        finally:
            os.close(fd)

    def wait(self, job):
        return self.read("jobs", str(job), "wait").strip()

    def paint(self, text):
        """Returns when nothing shows any more that the image was being made."""
        job = self.prompt(text)[0]
        state = self.wait(job)
        assert state == "done", f"job {job}: {state}: {self.read('jobs', str(job), 'error')}"
        wait_for(lambda: f"job {job} " not in self.read("status", "progress"), f"job {job} to leave")
        return job

    def image(self, job):
        return os.path.basename(os.readlink(self.at("jobs", str(job), "image.png")))

    def jobs(self):
        return sorted(int(name) for name in os.listdir(self.at("jobs")))

    def prompts(self):
        return [self.read("jobs", str(job), "prompt").rstrip("\n") for job in self.jobs()]

    def shell(self, script, shell="bash", check=False, timeout=PATIENCE):
        """Runs a script in the mount's folder (beside it, so that nothing keeps it busy)."""
        result = subprocess.run([shell, "-c", script], cwd=self.folder, capture_output=True,
                                text=True, timeout=timeout, env=dict(os.environ, LC_ALL="C.UTF-8"))
        if check and result.returncode != 0:
            raise AssertionError(f"{script}: {result.returncode}: {result.stderr}")
        return result


class MountTest(unittest.TestCase):
    """A test with a mount of its own, which must end cleanly."""

    options = ()
    environment = {}

    def setUp(self):
        self.mount = Mount(*self.options, environment=self.environment)
        self.addCleanup(self.clean)

    def clean(self):
        status, log = self.mount.clean()
        failed = "Sanitizer" in log or "runtime error" in log
        self.assertFalse(failed, log[-6000:])
        self.assertIn(status, (0, None), log[-3000:])


needs_root = unittest.skipIf(os.getuid() != 0, "needs root")


def needs(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    return unittest.skipIf(missing, "not installed: " + " ".join(missing))


def run():
    """For the end of a test file: exits 77 where FUSE can't be used."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        print("skipped: no /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
