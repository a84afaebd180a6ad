//! How far a command is, for people; and whether it is to go on.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::sync::{Arc, AtomicBool, Ordering};

/// How often a line is printed where there is no terminal for a bar.
const LINE_TIME: Duration = Duration::from_secs(5);

/// A bar on a terminal, a line now and then elsewhere; both on standard error. It goes when it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    what: String,
    total: u64,
    done: u64,
    bar: ProgressBar,
    next_line: Instant,
    is_interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// From now on SIGINT and SIGTERM make [`Self::advance`] and [`Self::check`] an error, so that a command ends in
    /// order and takes its unfinished files with it; a second one ends the process.
    pub(super) fn start() -> anyhow::Result<Self> {
        let is_interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 1, Arc::clone(&is_interrupted))
                .and_then(|_| flag::register(signal, Arc::clone(&is_interrupted)))
                .context("cannot handle signals")?;
        }
        let (what, bar) = (String::new(), ProgressBar::hidden());
        let next_line = Instant::now() + LINE_TIME;
        Ok(Self { what, total: 0, done: 0, bar, next_line, is_interrupted })
    }

    /// Now something is done with so many bytes.
    pub(super) fn begin(&mut self, what: String, total: u64) -> anyhow::Result<()> {
        self.check()?;
        self.bar.finish_and_clear();
        if std::io::stderr().is_terminal() {
            let style = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(style).context("cannot draw a bar")?;
            self.bar = ProgressBar::new(total).with_style(style).with_message(what.clone());
        }
        (self.what, self.total, self.done) = (what, total, 0);
        Ok(())
    }

    /// So many more bytes are done. An error if somebody wants the command to end.
    pub(super) fn advance(&mut self, bytes: u64) -> anyhow::Result<()> {
        self.check()?;
        self.done += bytes;
        self.bar.set_position(self.done);
        let now = Instant::now();
        if self.bar.is_hidden() && self.next_line <= now {
            self.next_line = now + LINE_TIME;
            let (done, total) = (BinaryBytes(self.done), BinaryBytes(self.total));
            eprintln!("{}: {done} of {total}", self.what);
        }
        Ok(())
    }

    /// An error if somebody wants the command to end.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.is_interrupted.load(Ordering::Relaxed) {
            bail!("interrupted; nothing was made");
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
