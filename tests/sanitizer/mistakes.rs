//! Mistakes made on purpose, one a run: `tests/sanitize --prove` requires that each is reported.
//!
//! They go through the library that the server is made of, built as the server is.

use std::fs;
use std::hint::black_box;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::thread;
use std::time::Duration;

use glassine::mapping::Mapping;
use glassine::sync::{Mutex, lock};
use glassine::sys::{self, IoVec};

/// A number without a lock around it.
struct Unguarded(u64);

fn add(number: *mut Unguarded, how_often: u32) {
    for _ in 0..how_often {
        // SAFETY: none. This is the mistake, unless the caller holds a lock.
        unsafe { (*number).0 = black_box((*number).0 + 1) };
    }
}

/// Two threads change a number; each takes a lock for it, or not.
fn count(locks: [bool; 2]) {
    let mutex = Mutex::new(());
    let mut number = Unguarded(0);
    let place = (&raw mut number) as usize;
    thread::scope(|scope| {
        for locked in locks {
            let mutex = &mutex;
            scope.spawn(move || {
                for _ in 0..1000 {
                    let _guard = locked.then(|| lock(mutex));
                    add(ptr::with_exposed_provenance_mut(place), 100);
                }
            });
        }
    });
    println!("{}", number.0);
}

/// One thread has the kernel write to memory that another has the kernel read.
fn kernel_race() {
    let buffer = vec![0u8; 4096].leak();
    let (start, length) = (buffer.as_mut_ptr() as usize, buffer.len());
    let piece = move || [IoVec::at(ptr::with_exposed_provenance_mut(start), length)];
    thread::scope(|scope| {
        for receives in [true, false] {
            scope.spawn(move || {
                let (socket, other) = UnixStream::pair().expect("a socket pair");
                for _ in 0..10 {
                    if receives {
                        let _ = sys::send(other.as_fd(), &[IoVec::of(&[7; 4096])]);
                        let _ = sys::receive(socket.as_fd(), &piece());
                    } else {
                        let _ = sys::send(socket.as_fd(), &piece());
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
    });
}

/// The kernel is asked to write more than a piece of memory holds.
fn kernel_overflow() {
    let (socket, other) = UnixStream::pair().expect("a socket pair");
    sys::send(other.as_fd(), &[IoVec::of(&[7; 200])]).expect("it is sent");
    let mut buffer = vec![0u8; 100];
    let _ = sys::receive(socket.as_fd(), &[IoVec::at(buffer.as_mut_ptr(), 200)]);
    black_box(buffer);
}

fn use_after_free() {
    let buffer = vec![1u8; 100];
    let start = buffer.as_ptr();
    drop(black_box(buffer));
    // SAFETY: none, that is the mistake.
    black_box(unsafe { *black_box(start) });
}

fn use_after_unmap() {
    let path = std::env::temp_dir().join(format!("glassine-mistake-{}", std::process::id()));
    fs::write(&path, [1; 4096]).expect("the file can be written");
    let file = fs::File::open(&path).expect("just written");
    fs::remove_file(&path).expect("just written");
    let mapping = Mapping::new(4096, false);
    mapping.extend(&file, 4096).expect("the file can be mapped");
    let mut start: *mut u8 = ptr::null_mut();
    mapping.pieces(0, 4096, &mut |piece| start = piece.start());
    drop(mapping);
    // SAFETY: none, that is the mistake.
    black_box(unsafe { *black_box(start) });
}

fn leak() {
    for _ in 0..10 {
        std::mem::forget(black_box(vec![1u8; 1000]));
    }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("none") => count([true, true]),
        Some("race") => count([false, false]),
        Some("forgotten-lock") => count([true, false]),
        Some("kernel-race") => kernel_race(),
        Some("kernel-overflow") => kernel_overflow(),
        Some("use-after-free") => use_after_free(),
        Some("use-after-unmap") => use_after_unmap(),
        Some("leak") => leak(),
        other => panic!("no such mistake: {other:?}"),
    }
}
