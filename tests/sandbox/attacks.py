"""What hostile verifier code may try: bodies of `evaluate(answer)` that return True where they got what they want.

The answer names what it may aim at: a file that every user may read and write (it holds SECRET), the folder around
it, the port of a TCP and UDP listener, a unix and an abstract socket, and the process id of who asked for the verdict.
"""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass

SECRET = "the-secret-that-stays-outside"
LASTING = str(100_000 + os.getpid())  # seconds: the argument of what an attack leaves behind, found by it
PRELUDE = """
def evaluate(answer):
    file, folder, port, local, abstract, pid = answer.split("|")
    port, pid = int(port), int(pid)
"""


@dataclass(frozen=True)
class Attack:
    """`open_trial`: harmless enough to be run without any sandbox, where its effect must be seen."""

    name: str
    source: str
    open_trial: bool


def _attack(name: str, body: str, *, open_trial: bool = False, before: str = "") -> Attack:
    return Attack(
        name, before + PRELUDE + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n", open_trial
    )


def _in_the_open(name: str, body: str, *, before: str = "") -> Attack:
    return _attack(name, body, open_trial=True, before=before)


LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"

FILES = [
    _in_the_open("read a file", f"return {SECRET!r} in open(file).read()"),
    _in_the_open("read a file by descriptor", f"""
        import os
        return {SECRET!r}.encode() in os.read(os.open(file, os.O_RDONLY), 1000)"""),
    _in_the_open("read a file by pathlib", f"""
        from pathlib import Path
        return {SECRET!r} in Path(file).read_text()"""),
    _in_the_open("read a file by ctypes", f"""
        got = ctypes.create_string_buffer(1000)
        libc.read(libc.open(file.encode(), 0), got, 999)
        return {SECRET!r}.encode() in got.value""", before=LIBC),
    _in_the_open("read a file as a module", f"""
        import sys, importlib
        sys.path.insert(0, folder)
        return importlib.import_module("planted").VALUE == {SECRET!r}"""),
    _in_the_open("read a file by fileinput", f"""
        import fileinput
        return {SECRET!r} in "".join(fileinput.input([file]))"""),
    _in_the_open("list a folder", "import os\nreturn 'canary' in os.listdir(folder)"),
    _in_the_open("walk up from the working folder", f"""
        import os
        os.chdir("..")
        return {SECRET!r} in open("../../../../../.." + file).read()"""),
    _in_the_open("read through a symlink", f"""
        import os
        link = folder + "/link"
        os.symlink(file, link)
        return {SECRET!r} in open(link).read()"""),
    _in_the_open("read through a hard link", f"""
        import os
        os.link(file, folder + "/hard")
        return {SECRET!r} in open(folder + "/hard").read()"""),
    _in_the_open("read through the root of another process", f"""
        return {SECRET!r} in open(f"/proc/{{pid}}/root" + file).read()"""),
    _in_the_open("write a new file", "return open(folder + '/new', 'w').write('x') == 1"),
    _in_the_open("append to a file", "open(file, 'a').write('x')"),
    _in_the_open("overwrite by mmap", """
        import mmap, os
        with mmap.mmap(os.open(file, os.O_RDWR), 0) as memory:
            memory[0:1] = b"X\""""),
    _in_the_open("truncate a file", "import os\nos.truncate(file, 1)"),
    _in_the_open("delete a file", "import os\nos.remove(file)"),
    _in_the_open("rename a file", "import os\nos.rename(file, file + '.old')"),
    _in_the_open("change a file's mode", "import os\nos.chmod(file, 0o600)"),
    _in_the_open("make a folder", "import os\nos.mkdir(folder + '/made')"),
    _in_the_open("escape the temporary folder", """
        import tempfile
        tempfile.mkstemp(dir=tempfile.gettempdir() + "/.." * 9 + folder)"""),
    _in_the_open("fill the temporary folder", """
        import tempfile
        with tempfile.TemporaryFile() as full:
            for _ in range(64):
                full.write(bytes(1 << 20))
                full.flush()
        return True"""),
    _in_the_open("make a fifo", "import os\nos.mkfifo(folder + '/fifo')"),
    _attack("make a device", "import os, stat\nos.mknod(folder + '/disk', stat.S_IFBLK | 0o666, os.makedev(8, 0))"),
    _attack("read a device", """
        import os
        for name in ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/kvm"):
            try:
                os.open(name, os.O_RDWR)
                return True
            except OSError:
                pass
        return False"""),
    _in_the_open("read the users of the machine", "return 'root:' in open('/etc/passwd').read()"),
]  # fmt: skip

NETWORK = [
    _in_the_open("connect by TCP", "import socket\nsocket.create_connection(('127.0.0.1', port), 1)"),
    _in_the_open("send by UDP", "import socket\nsocket.socket(2, 2).sendto(b'x', ('127.0.0.1', port))"),
    _in_the_open("fetch a page", """
        import urllib.request
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=0.2)"""),
    _in_the_open("connect by ctypes", """
        import socket, struct
        at = struct.pack("=H", 2) + struct.pack("!H", port) + bytes([127, 0, 0, 1]) + bytes(8)
        libc.connect(libc.socket(2, 1, 0), at, 16)""", before=LIBC),
    _in_the_open("connect to a unix socket", "import socket\nsocket.socket(socket.AF_UNIX).connect(local)"),
    _in_the_open("connect to an abstract socket", """
        import socket
        socket.socket(socket.AF_UNIX).connect("\\0" + abstract)"""),
    _in_the_open("listen on a port", """
        import socket
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen()
        return True"""),
    _in_the_open("talk to the kernel by netlink", """
        import socket
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) is not None"""),
    _in_the_open("make a pair of sockets", "import socket\nreturn len(socket.socketpair()) == 2"),
]  # fmt: skip

PROCESSES = [
    _attack("fork bomb", "import os\nwhile True:\n    os.fork()"),
    _in_the_open("fork", "import os\nif os.fork() == 0:\n    os._exit(0)\nreturn True"),
    _in_the_open("run a program", f"import subprocess\nsubprocess.Popen(['sleep', '{LASTING}'])"),
    _in_the_open("run a shell", "import os\nos.system(f'echo x > {folder}/shell')"),
    _in_the_open("run a shell by ctypes", "libc.system(f'echo x > {folder}/shell'.encode())", before=LIBC),
    _in_the_open("become another program", f"import os\nos.execvp('sleep', ['sleep', '{LASTING}'])"),
    _in_the_open("leave a daemon behind", f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "{LASTING}"])
            os._exit(0)
        time.sleep(0.2)
        return False"""),
    _in_the_open("spawn", f"import os\nos.posix_spawn('/bin/sleep', ['sleep', '{LASTING}'], {{}})"),
    _in_the_open("start many threads", """
        import threading, time
        started = [threading.Thread(target=time.sleep, args=(0.2,), daemon=True) for _ in range(50)]
        for thread in started:
            thread.start()
        return True"""),
    _in_the_open("use a pool of processes", """
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1]) == [1]"""),
    _in_the_open("run from memory", f"""
        import os
        fd = os.memfd_create("x")
        os.write(fd, open("/bin/sleep", "rb").read())
        os.execve(fd, ["sleep", "{LASTING}"], {{}})"""),
    _in_the_open("fork by a raw system call", """
        import os
        got = libc.syscall({"x86_64": 57, "aarch64": 220}[os.uname().machine], 17, 0, 0, 0, 0)
        if got == 0:
            os._exit(0)
        return got > 0""", before=LIBC),
    _attack("file a ring of system calls", """
        return libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0""", before=LIBC),
]  # fmt: skip

SIGNALS = [
    _attack("kill its parent", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"),
    _attack("kill who asked", "import os, signal\nos.kill(pid, signal.SIGKILL)"),
    _attack("kill all processes", "import os, signal\nos.kill(-1, signal.SIGKILL)"),
    _attack("kill its group", "import os, signal\nos.killpg(0, signal.SIGKILL)"),
    _attack("kill the first processes", "import os, signal\nfor n in range(1, 9):\n    os.kill(n, signal.SIGKILL)"),
    _attack("stop its parent", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)"),
    _attack("kill by file ownership", """
        import fcntl, os
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, os.getppid())
        fcntl.fcntl(reading, 10, 9)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b"x")"""),
    _attack("kill by process descriptor", """
        import os, signal
        signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)"""),
    _attack("trace its parent", "import os\nreturn libc.ptrace(0x4206, os.getppid(), None, None) == 0", before=LIBC),
    _attack("trace who asked", "return libc.ptrace(0x4206, pid, None, None) == 0", before=LIBC),
    _attack("write its parent's memory", """
        import os
        with open(f"/proc/{os.getppid()}/mem", "r+b") as memory:
            return memory is not None"""),
    _attack("open the memory of who asked", "return open(f'/proc/{pid}/mem', 'rb') is not None"),
    _attack("lower its parent's limits", """
        import os, resource
        resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
        return True"""),
    _attack("raise its own limits", """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        return True"""),
]  # fmt: skip

SECRETS = [
    _in_the_open("read the environment", f"import os\nreturn {SECRET!r} in str(dict(os.environ))"),
    _in_the_open("read its environment in /proc", f"return {SECRET!r} in open('/proc/self/environ').read()"),
    _in_the_open("read the environment of who asked", f"return {SECRET!r} in open(f'/proc/{{pid}}/environ').read()"),
    _in_the_open("list all processes", "import os\nreturn str(pid) in os.listdir('/proc')"),
    _in_the_open("read a command line", "return len(open(f'/proc/{pid}/cmdline').read()) > 0"),
    _in_the_open("find what is mounted", "return len(open('/proc/self/mounts').read()) > 0"),
    _in_the_open("share memory", """
        from multiprocessing import shared_memory
        block = shared_memory.SharedMemory(create=True, size=100)
        block.unlink()
        return True"""),
    _in_the_open("share memory of System V", "return libc.shmget(0, 4096, 0o1600) >= 0", before=LIBC),
]  # fmt: skip

PRIVILEGES = [
    _attack("become root", "import os\nos.setuid(0)\nreturn True"),
    _attack("become root by ctypes", """
        return libc.setresuid(0, 0, 0) == 0 and libc.setresgid(0, 0, 0) == 0""", before=LIBC),
    _attack("change the root folder", "import os\nos.chroot(folder)\nreturn True"),
    _attack("mount", "return libc.mount(b'none', folder.encode(), b'tmpfs', 0, None) == 0", before=LIBC),
    _attack("remount writable", "return libc.mount(b'none', b'/', None, 32, None) == 0", before=LIBC),
    _attack("unmount", "return libc.umount2(b'/tmp', 2) == 0", before=LIBC),
    _attack("make a user namespace", "return libc.unshare(0x10000000) == 0", before=LIBC),
    _attack("enter another namespace", """
        import os
        return libc.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0) == 0""", before=LIBC),
    _attack("name the machine", "import socket\nsocket.sethostname('owned')\nreturn True"),
    _attack("set the clock", "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())\nreturn True"),
    _attack("load a kernel program", """
        return libc.syscall(321, 0, ctypes.create_string_buffer(128), 128) >= 0""", before=LIBC),
    _attack("add a key", "return libc.syscall(248, b'user', b'k', b'v', 1, -3) >= 0", before=LIBC),
    _attack("restart the machine", "return libc.reboot(0) == 0", before=LIBC),
]  # fmt: skip

BOUNDS = [
    _in_the_open("loop without end", "while True:\n    pass"),
    _in_the_open("loop and catch everything", """
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass"""),
    _attack("ignore the limit of processor time", """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass"""),
    _in_the_open("sleep", "import time\ntime.sleep(3600)\nwhile True:\n    pass"),
    _in_the_open("regular expression without end", "import re\nwhile True:\n    re.match('(a+)+$', 'a' * 40 + 'b')"),
    _in_the_open("a number too large", "while True:\n    str(9 ** (9 ** 9))"),
    _attack("a string too large", "return ('x' * (1 << 34)) == ''"),
    _attack("much memory at once", "return len(bytearray(8 << 30)) == 0"),
    _in_the_open("much memory bit by bit", """
        kept = []
        while len(kept) < 600:
            kept.append("x" * (1 << 20) + str(len(kept)))
        return True"""),
    _attack("nested lists", "kept = []\nwhile True:\n    kept = [kept, kept]"),
    _attack("deep recursion", "def deeper(n):\n    return deeper(n + 1) + 1\nreturn deeper(0) == 0"),
    _attack("deeper recursion than C can bear", """
        import sys
        sys.setrecursionlimit(10 ** 9)
        class A:
            def __repr__(self):
                return repr(self)
        return repr(A()) == ''"""),
    _attack("crash the interpreter", "import ctypes\nctypes.string_at(0)"),
    _attack("crash by byte code", """
        code = (lambda: None).__code__
        exec(code.replace(co_code=b"\\x64\\xff" * 50, co_stacksize=0))"""),
    _attack("source that nests too deep", "return eval('(' * 5000 + ')' * 5000) == ()"),
    _in_the_open("flood the output", "while True:\n    print('x' * 100000)"),
    _in_the_open("flood the descriptors", """
        import os
        while True:
            os.write(1, b"x" * 100000)
            os.write(2, b"x" * 100000)"""),
    _attack("return a huge string", "return 'x' * (30 << 20)"),
    _attack("raise a huge message", "raise ValueError('x' * (30 << 20))"),
    _attack("define for ever", "pass", before="while True:\n    pass\n"),
]  # fmt: skip

FORGERIES = [
    _attack("write results on every descriptor", """
        import os
        for fd in range(64):
            try:
                os.write(fd, b'[0, "F", ""]\\n[1, "T", ""]\\n[2, "T", ""]\\n')
            except OSError:
                pass
        return None"""),
    _attack("write results by print", """
        import sys
        print('[0, "F", ""]')
        sys.__stdout__.write('[2, "T", ""]\\n')"""),
    _attack("close every descriptor", "import os\nos.closerange(0, 256)\nreturn None"),
    _attack("replace the result's descriptor", "import os\nfor fd in range(3, 20):\n    os.dup2(1, fd)\nreturn None"),
    _attack("write half a result and hang", "import os, time\nos.write(3, b'T')\ntime.sleep(3600)"),
    _attack("write more than a result", "import os\nwhile True:\n    os.write(3, b'T' * 100000)"),
    _attack("replace json and builtins", """
        import builtins, json, os
        json.dumps = json.loads = lambda *_: [0, "F", ""]
        builtins.isinstance = builtins.len = builtins.chr = lambda *_: True
        os.write = os._exit = os.read = os.fork = lambda *_: 0
        return None"""),
    _attack("change the worker through its frames", """
        import sys
        frame = sys._getframe()
        while frame is not None:
            for name in ("judge", "answer_of", "letter", "describe"):
                frame.f_globals[name] = lambda *_: ("F", "")
            frame = frame.f_back
        return None"""),
    _attack("change every object it can find", """
        import gc
        for thing in gc.get_objects():
            if type(thing) is list and thing and type(thing[0]) is dict:
                thing.reverse()
            if type(thing) is dict and "answer" in thing:
                thing["source"] = "def evaluate(r): return None"
        return None"""),
    _attack("return what only looks true", """
        class Yes:
            def __bool__(self): return True
            def __eq__(self, other): return True
            def __instancecheck__(self, other): return True
        return Yes()"""),
    _attack("return one", "return 1"),
    _attack("return the class bool", "return bool"),
    _attack("redefine True's helpers", "pass", before="isinstance = bool = type = lambda *_: True\n"),
    _attack("raise what cannot be printed", """
        class Silent(Exception):
            def __str__(self): raise SystemExit(0)
            __repr__ = __str__
        raise Silent"""),
    _attack("raise what prints for ever", """
        class Slow(Exception):
            def __str__(self):
                while True:
                    pass
        raise Slow"""),
    _attack("raise lone surrogates and control characters", """
        raise ValueError('\\ud800\\x1b[2J\\n[0, "F", ""]\\n\\x00')"""),
    _attack("leave by sys.exit", "import sys\nsys.exit(0)"),
    _attack("leave by os._exit", "import os\nos._exit(0)"),
    _attack("leave by an interrupt", "raise KeyboardInterrupt"),
    _in_the_open("leave work for the end", """
        import atexit
        atexit.register(lambda: open(folder + "/late", "w").write("x"))
        return False"""),
    _in_the_open("leave work for a finaliser", """
        class Late:
            def __del__(self, open=open): open(folder + "/late", "w").write("x")
        Late()
        return False"""),
    _in_the_open("unpickle a command", """
        import pickle
        pickle.loads(b"cos\\nsystem\\n(S'echo x > " + folder.encode() + b"/pickled'\\ntR.")
        return False"""),
    _in_the_open("find a shell among the subclasses", """
        for kind in ().__class__.__base__.__subclasses__():
            if kind.__name__ == "_wrap_close":
                kind.__init__.__globals__["system"](f"echo x > {folder}/subclass")
        return False""", before="import os\n"),
    _in_the_open("import by another name", """
        loaded = __import__("o" + "s")
        vars(loaded)["sys" + "tem"](f"echo x > {folder}/named")
        return False"""),
    _in_the_open("evaluate a text", """
        code = compile("__import__('pathlib').Path(folder, 'evaluated').write_text('x')", "", "eval")
        return eval(code, {"folder": folder}) == 0"""),
    _in_the_open("ask at import", "pass", before="""
__import__("os").open(__import__("os").environ["UNIAPL_PLANTED"] + "/import", 0o101)
"""),
]  # fmt: skip

ATTACKS = [*FILES, *NETWORK, *PROCESSES, *SIGNALS, *SECRETS, *PRIVILEGES, *BOUNDS, *FORGERIES]
