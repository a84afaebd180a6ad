"""Illegal requests through libnbd with its own checks switched off.

Usage: illegal.py SOCKET READ_ONLY_SOCKET. After each request the same connection must still read
what it read before.
"""

import errno
import sys

import nbd

checks = 0


def connect(socket, options=False):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_opt_mode(options)
    handle.connect_unix(socket)
    return handle


def expect(handle, wanted, call, *arguments):
    """The call fails with this errno, and the connection goes on."""
    global checks
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == wanted, f"{call.__name__}{arguments[1:]}: {error} instead of {wanted}"
    else:
        raise AssertionError(f"{call.__name__}{arguments[1:]} succeeded instead of {wanted}")
    assert bytes(handle.pread(4096, 0)) == before
    checks += 1


def succeed(handle, call, *arguments):
    global checks
    call(*arguments)
    assert bytes(handle.pread(4096, 0)) == before
    checks += 1


handle = connect(sys.argv[1])
size = handle.get_size()
before = bytes(handle.pread(4096, 0))
assert any(before)

# Out of range: reads EINVAL, writes ENOSPC (R7); sums that wrap; far beyond.
for offset, count in [(size, 1), (size - 1, 2), (size - 512, 1024), (2**63, 4096), (2**64 - 1, 2), (2**64 - 4096, 8192)]:
    expect(handle, errno.EINVAL, handle.pread, count, offset)
    expect(handle, errno.ENOSPC, handle.pwrite, b"x" * count, offset)
    expect(handle, errno.EINVAL, handle.trim, count, offset)
    expect(handle, errno.ENOSPC, handle.zero, count, offset)
    expect(handle, errno.EINVAL, handle.cache, count, offset)

# Flags that do not belong there (R4).
expect(handle, errno.EINVAL, handle.pwrite, b"x" * 512, 8192, 1 << 7)
expect(handle, errno.EINVAL, handle.pwrite, b"x" * 512, 8192, nbd.CMD_FLAG_FAST_ZERO)
expect(handle, errno.EINVAL, handle.trim, 512, 8192, nbd.CMD_FLAG_NO_HOLE)
expect(handle, errno.EINVAL, handle.zero, 512, 8192, 1 << 8)
expect(handle, errno.EINVAL, handle.cache, 512, 8192, nbd.CMD_FLAG_REQ_ONE)

# FUA is allowed everywhere; so is nothing at all (R6).
succeed(handle, handle.pwrite, b"x" * 512, 8192, nbd.CMD_FLAG_FUA)
succeed(handle, handle.trim, 4096, 8192, nbd.CMD_FLAG_FUA)
succeed(handle, handle.zero, 4096, 8192, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
succeed(handle, handle.flush)
for call in (handle.trim, handle.zero, handle.cache):
    succeed(handle, call, 0, 8192)
succeed(handle, handle.pwrite, b"", 8192)
succeed(handle, handle.pread, 0, 8192)

# A fast zero that would not be fast (z2), and one that is.
expect(handle, errno.ENOTSUP, handle.zero, 100, 20_001, nbd.CMD_FLAG_FAST_ZERO)
succeed(handle, handle.zero, 8192, 20_480, nbd.CMD_FLAG_FAST_ZERO)

# Longer payloads libnbd itself refuses to send, whatever its strict mode is.
handle.shutdown()

# Read-only (R8).
handle = connect(sys.argv[2])
assert handle.is_read_only()
expect(handle, errno.EPERM, handle.pwrite, b"x" * 4096, 0)
expect(handle, errno.EPERM, handle.pwrite, b"x" * 300_000, 0)
expect(handle, errno.EPERM, handle.trim, 4096, 0)
expect(handle, errno.EPERM, handle.zero, 4096, 0)
handle.shutdown()


# Options: unknown exports, too long names, what is not negotiated.
def refuse(handle, name):
    global checks
    handle.set_export_name(name)
    for call in (handle.opt_info, handle.opt_go):
        try:
            call()
        except nbd.Error:
            checks += 1
        else:
            raise AssertionError(f"{call.__name__} of an export of {len(name)} bytes succeeded")


handle = connect(sys.argv[1], options=True)
assert not handle.get_structured_replies_negotiated()
for name in ("nobody", "n" * 255, "n" * 4096):
    refuse(handle, name)
found = []
handle.opt_list(lambda name, description: found.append(name))
assert found == [""], found
handle.set_export_name("")
handle.opt_info()
assert handle.get_size() == size
handle.opt_go()
succeed(handle, handle.pread, 512, 0)
handle.shutdown()

handle = connect(sys.argv[1], options=True)
handle.opt_abort()
checks += 1

print(f"{checks} checks passed")
