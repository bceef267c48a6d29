"""A program as it looks in a terminal, and as it fares when nobody reads its output any more."""

import os
import pty
import subprocess


def in_terminal(argv, stdout=None, **environment):
    """What a terminal shows of a program, whose standard output may go elsewhere."""
    main, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}
    process = subprocess.Popen(argv, stdin=terminal, stdout=stdout or terminal, stderr=terminal, env=env)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait() == 0, shown
    return shown.decode()


def unread(argv, **options):
    """Run a program whose output goes into a pipe that is closed at the other end; its exit code and its errors."""
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, **options)
    os.close(writer)
    return ran.returncode, ran.stderr
