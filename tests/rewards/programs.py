"""Programs that try to get out of the sandbox. Each prints, as JSON, a list of what it managed; [] is contained."""

PRELUDE = """
import ctypes, errno, json, os, signal, socket, sys, time
done = []

def attempt(name, action):
    try:
        action()
    except BaseException:
        return
    done.append(name)

def syscall(number, *arguments):
    result = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno())
    return result
"""
REPORT = "\nprint(json.dumps(done))\n"

FORK = """
def fork():
    if os.fork() == 0:
        while True:
            time.sleep(1)
for _ in range(2000):
    attempt("fork", fork)
"""

DAEMON = """
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        os._exit(0)
attempt("daemon", daemon)
"""

FILES = """
def read(path):
    with open(path, "rb") as file:
        file.read(1)

def write(path):
    with open(path, "ab") as file:
        file.write(b"x")

for path in ("/etc/passwd", "/etc/shadow", "/etc/hosts", SECRET, "/proc/1/environ", "/proc/self/environ",
             f"/proc/{PARENT}/environ", f"/proc/{PARENT}/mem", "/proc/self/mem", "/sys/kernel/mm", "/dev/mem",
             os.path.expanduser("~root/.bashrc")):
    attempt("read " + path, lambda: read(path))
for path in ("/evil", "/usr/lib/evil", "/etc/evil", "/dev/shm/evil", "/proc/evil", "/var/tmp/evil", SECRET,
             FOLDER + "/evil", json.__file__, "/dev/evil", "/root/evil"):
    attempt("write " + path, lambda: write(path))
for path in ("/root", "/home", "/proc", "/etc", "/var", FOLDER):
    attempt("list " + path, lambda: os.listdir(path) and None)
attempt("truncate", lambda: os.truncate(SECRET, 0))
attempt("chmod", lambda: os.chmod(json.__file__, 0o777))
attempt("symlink", lambda: os.symlink("/etc/passwd", "link"))
attempt("mknod", lambda: os.mknod("device", 0o600 | 0o060000, os.makedev(8, 0)))
attempt("chroot", lambda: os.chroot("/usr"))
"""

NETWORK = """
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16, 17, 40):
    def connect():
        opened = socket.socket(family, socket.SOCK_STREAM if family < 16 else socket.SOCK_RAW)
        if family == socket.AF_INET:
            opened.connect(("127.0.0.1", PORT))
        elif family == socket.AF_UNIX:
            opened.connect(SECRET + ".sock")
        elif family == 40:
            opened.connect((2, 22))
        else:
            opened.connect(("::1", PORT))
    attempt(f"connect {family}", connect)
attempt("name", lambda: socket.getaddrinfo("example.com", 80))
"""

SIGNALS = """
for target in (PARENT, GRANDPARENT, os.getppid() or PARENT, 1, -1, 0, -PARENT):
    for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM, 0):
        # nothing but itself is there to be signalled, so a "success" on group 0 is its own group
        if target not in (0, -1):
            attempt(f"kill {target} {number}", lambda: os.kill(target, number))

def by_pipe(target):
    # the kernel sends a signal of one's choice when a pipe can be read: F_SETSIG, F_SETOWN, O_ASYNC
    import fcntl
    read, write = os.pipe()
    fcntl.fcntl(read, 10, signal.SIGKILL)
    fcntl.fcntl(read, 8, target)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
    os.write(write, b"x")
    time.sleep(0.05)

for target in (1, PARENT, -PARENT):
    attempt("owner of a pipe", lambda: by_pipe(target))
attempt("limits of others", lambda: __import__("resource").prlimit(1, 7, (0, 0)))
attempt("limits of the trainer", lambda: __import__("resource").prlimit(PARENT, 7, (0, 0)))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
attempt("group", lambda: os.setpgid(0, 1))
"""

#: by number on x86_64
CALLS = {
    "ptrace": 101,
    "process_vm_readv": 310,
    "unshare": 272,
    "setns": 308,
    "mount": 165,
    "pivot_root": 155,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "keyctl": 250,
    "add_key": 248,
    "memfd_create": 319,
    "open_by_handle_at": 304,
    "kexec_load": 246,
    "init_module": 175,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "setuid": 105,
    "setresuid": 117,
    "capset": 126,
    "personality": 135,
    "execve": 59,
    "execveat": 322,
    "vfork": 58,
    "clone3": 435,
    "rt_sigqueueinfo": 129,
    "tkill": 200,
    "shmget": 29,
    "msgget": 68,
    "mq_open": 240,
    "splice": 275,
    "vmsplice": 278,
    "sendmsg": 46,
    "landlock_create_ruleset": 444,
    "seccomp": 317,
    "socketpair": 53,
    "quotactl": 179,
    "reboot": 169,
    "swapon": 167,
    "acct": 163,
    "syslog": 103,
    "name_to_handle_at": 303,
    "x32 fork": 0x40000039,
}
SYSCALLS = f"""
pair = ctypes.create_string_buffer(64)
for name, number in {CALLS!r}.items():
    ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = ctypes.CDLL(None, use_errno=True).syscall(number, 0, 0, pair, 0, 0)
    if result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        done.append((name, result, ctypes.get_errno()))
"""

SECRETS = """
import gc
attempt("environment", lambda: [name for name in os.environ if "SECRET" in name][0])
for fd in range(3, 1024):
    attempt(f"descriptor {fd}", lambda: os.fstat(fd))
frame = sys._getframe()
while frame:
    if "sentinel-7" + "4123" in repr(frame.f_locals):
        done.append("a frame")
    frame = frame.f_back
for thing in gc.get_objects():
    if isinstance(thing, (dict, list, tuple)) and type(thing) in (dict, list, tuple):
        for item in thing.values() if type(thing) is dict else thing:
            if type(item) in (str, bytes) and ("sentinel-7" + "4123") in str(item) and len(item) < 10000:
                if "gc.get_objects" not in str(item):
                    done.append("an object")
"""

EXHAUST = """
written = 0
try:
    for number in range(100000):
        with open(f"f{number}", "wb") as file:
            written += file.write(bytes(1 << 20))
except OSError:
    pass
files = 0
for name in list(os.listdir("."))[:]:
    os.unlink(name)
try:
    for number in range(100000):
        open(f"g{number}", "wb").close()
        files += 1
except OSError:
    pass
print(written >> 20, files)
"""

DEAF = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
"""
