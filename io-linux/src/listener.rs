//! Listening sockets: bound once, each accepted from by a thread of its own.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, Socket as AnySocket, Type};

use crate::config::Listen;
use crate::sys;

/// A bound socket. A unix socket's file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// As given, or with the port that the system chose.
    pub address: Listen,
}

#[derive(Debug)]
enum Socket {
    Unix { listener: UnixListener, path: PathBuf, inode: u64 },
    Tcp(TcpListener),
}

impl Listener {
    /// Binds an address. A unix socket that nobody listens on any more is replaced.
    pub fn bind(listen: &Listen) -> anyhow::Result<Self> {
        match listen {
            Listen::Unix(path) => Self::bind_unix(path, |path| UnixListener::bind(path)),
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address.as_str()).with_context(|| {
                    format!(
                        "cannot listen on tcp:{address}; is the port taken, or the address not this \
                         host's? choose another"
                    )
                })?;
                let address = listener.local_addr().context("a bound socket has no address")?;
                let address = Listen::Tcp(address.to_string());
                Ok(Self { socket: Socket::Tcp(listener), address })
            }
        }
    }

    /// Binds a unix socket to which only this process's user, and root, can connect.
    pub fn bind_private(path: &Path) -> anyhow::Result<Self> {
        Self::bind_unix(path, bind_private)
    }

    fn bind_unix(
        path: &Path,
        bind: impl FnOnce(&Path) -> io::Result<UnixListener>,
    ) -> anyhow::Result<Self> {
        let shown = path.display();
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                bail!(
                    "cannot listen on unix:{shown}: a file that is no socket is there; remove it, or choose another path"
                );
            }
            match UnixStream::connect(path) {
                Ok(_) => bail!(
                    "cannot listen on unix:{shown}: another process listens there; stop it, or choose another path"
                ),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::info!(socket = %shown, "replacing the socket of a process that is gone");
                    fs::remove_file(path)
                        .with_context(|| format!("cannot remove the stale socket {shown}"))?;
                }
                Err(error) => bail!(
                    "cannot listen on unix:{shown}: a socket is there, and whether it is in use cannot be told ({error}); choose another path"
                ),
            }
        }
        let listener = bind(path).with_context(|| {
            format!("cannot listen on unix:{shown}; its directory must exist and be writable, and the path be under 108 bytes")
        })?;
        let inode = fs::symlink_metadata(path).map_or(0, |metadata| metadata.st_ino());
        let socket = Socket::Unix { listener, path: path.to_owned(), inode };
        Ok(Self { socket, address: Listen::Unix(path.to_owned()) })
    }

    /// Hands every client to `serve`, until [`Self::stop`].
    pub fn run(&self, mut serve: impl FnMut(OwnedFd, String)) {
        loop {
            match self.accept() {
                Ok((socket, peer)) => serve(socket, peer),
                // EINVAL is how `accept` says that the socket was stopped.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors or memory: it passes, and no client is lost by waiting.
                    tracing::warn!(address = %self.address, %error, "cannot accept a connection");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn accept(&self) -> io::Result<(OwnedFd, String)> {
        match &self.socket {
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                sys::enlarge_buffers(stream.as_fd());
                Ok((stream.into(), self.address.to_string()))
            }
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                sys::tune_tcp(stream.as_fd());
                Ok((stream.into(), format!("tcp:{peer}")))
            }
        }
    }

    /// Takes no more clients.
    pub fn stop(&self) {
        sys::shut_down(self.fd());
        if let Socket::Unix { path, inode, .. } = &self.socket {
            // Only our own socket: another process may have replaced it.
            if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.st_ino() == *inode) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The descriptor, for an event loop.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix { listener, .. } => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How many clients may wait to be accepted at a private socket.
const PRIVATE_BACKLOG: i32 = 128;

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket: OwnedFd = AnySocket::new(Domain::UNIX, Type::STREAM, None)?.into();
    // The file gets its mode from the socket. So there is no moment at which others can connect.
    let socket = File::from(socket);
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = AnySocket::from(OwnedFd::from(socket));
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(PRIVATE_BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_socket_is_private_from_its_first_moment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let bound = bind_private(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        bound.accept().unwrap();
    }
}
