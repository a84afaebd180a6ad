//! A whole server: devices, listeners and workers, from start to drain.

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use glassine_core::Limits;

use crate::config::{Config, Listen};
use crate::copy;
use crate::device::Device;
use crate::listener::Listener;
use crate::pool::Pool;
use crate::router::{Mail, Router, WORKERS_MAX};
use crate::shared::{CONNECTIONS_MAX, Exports, Shared};
use crate::sync::{Arc, AtomicU64, AtomicUsize, Mutex, Ordering};
use crate::sys;
use crate::template::{self, Template};
use crate::worker::Worker;

/// A running server.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Arc<Listener>>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens everything and begins to serve. When this returns, clients can connect.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        config.check()?;
        sys::raise_descriptor_limit();
        sys::become_io_flusher();
        copy::prepare().context("cannot install a signal handler")?;
        // Listening comes first: a server that is already there should be found before anything
        // else is touched.
        let bind = |listen| Listener::bind(listen).map(Arc::new);
        let listeners: Vec<_> = config.listen.iter().map(bind).collect::<anyhow::Result<_>>()?;
        let devices = open_devices(config)?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers = config.workers.unwrap_or(cores).min(WORKERS_MAX);
        let router = Arc::new(Router::new(workers).context("cannot make the workers' mailboxes")?);
        let shared = Arc::new(Shared {
            exports: Mutex::new(Exports::new(devices)),
            limits: Limits { detect_zeroes: config.detect_zeroes, ..Limits::default() },
            pool: Pool::new(Arc::clone(&router)),
            storage: Pool::new(Arc::clone(&router)),
            router,
            connections: AtomicUsize::new(0),
            spilled: AtomicU64::new(0),
        });
        let mut server = Self { shared, listeners, threads: Vec::new() };
        server.start_threads(workers).context("cannot start a thread")?;
        Ok(server)
    }

    fn start_threads(&mut self, workers: usize) -> io::Result<()> {
        for index in 0..workers {
            let worker = Worker::new(index, Arc::clone(&self.shared))?;
            let run = move || worker.run().expect("epoll works");
            self.threads.push(thread::Builder::new().name(format!("worker-{index}")).spawn(run)?);
        }
        let turn = Arc::new(AtomicUsize::new(0));
        for listener in &self.listeners {
            let (listener, shared) = (Arc::clone(listener), Arc::clone(&self.shared));
            let turn = Arc::clone(&turn);
            let run = move || {
                listener.run(|socket, peer| {
                    if !shared.admit() {
                        tracing::warn!(
                            peer,
                            CONNECTIONS_MAX,
                            "too many connections; one is refused"
                        );
                        return;
                    }
                    let worker = turn.fetch_add(1, Ordering::Relaxed) % shared.router.workers();
                    shared.router.send_to(worker, Mail::Accepted { socket, peer });
                });
            };
            self.threads.push(thread::Builder::new().name("listener".into()).spawn(run)?);
        }
        Ok(())
    }

    /// Where it listens, with the ports that the system chose.
    pub fn addresses(&self) -> impl Iterator<Item = &Listen> {
        self.listeners.iter().map(|listener| &listener.address)
    }

    /// What its threads have in common: the devices it serves, among others.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Takes no more clients, and lets those there are have their replies.
    pub fn drain(&self) {
        for listener in &self.listeners {
            listener.stop();
        }
        for worker in 0..self.shared.router.workers() {
            self.shared.router.send_to(worker, Mail::Drain);
        }
    }

    /// Waits until a drained server has ended, and releases everything.
    pub fn join(self) {
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.shared.pool.finish();
        self.shared.storage.finish();
        for device in self.shared.devices() {
            device.close();
        }
    }
}

/// Opens devices; those over one template share it.
fn open_devices(config: &Config) -> anyhow::Result<Vec<Arc<Device>>> {
    let mut templates: Vec<Arc<Template>> = Vec::new();
    let mut devices = Vec::new();
    for device in &config.devices {
        let template = match &device.template {
            None => None,
            Some(path) => {
                let identity = template::identity(path).ok();
                let same = |other: &&Arc<Template>| Some(other.identity()) == identity;
                Some(match templates.iter().find(same) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let opened = Arc::new(open_template(path, config)?);
                        templates.push(Arc::clone(&opened));
                        opened
                    }
                })
            }
        };
        devices.push(Arc::new(Device::open(device, template)?));
    }
    Ok(devices)
}

fn open_template(path: &Path, config: &Config) -> anyhow::Result<Template> {
    let began = std::time::Instant::now();
    let mut template = Template::open(path, &config.layer_dirs)?;
    if let Some(composed) = template.composed() {
        let milliseconds = began.elapsed().as_millis() as u64;
        let chain = composed.chain();
        let base = chain.base.as_ref().map(|base| base.path.display().to_string());
        let over = base.as_deref().unwrap_or("zeroes");
        let layers = chain.layers.len();
        tracing::info!(template = %path.display(), milliseconds, layers, over, "opened layers");
    } else if config.verify_templates {
        let sha256 = template.digest()?;
        let milliseconds = began.elapsed().as_millis() as u64;
        tracing::info!(template = %path.display(), milliseconds, sha256, "read the whole template");
    }
    Ok(template)
}
