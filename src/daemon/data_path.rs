//! Starts the data-path threads on a tunnel device, and replaces them when device or socket fail.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use encap::Framing;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::adapter::cpus;
use crate::adapter::packet::WakeFd;
use crate::adapter::packet::tun::{DeviceIo, TunDevice};
use crate::adapter::packet::udp::{OuterSocket, UdpIo};
use crate::dataplane::{self, BATCH, Shared};
use encap::offload::{Feature, Features};

/// Where the overlay's datagrams come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    /// The address of the other family, where both are used.
    pub(super) other: Option<IpAddr>,
    pub(super) port: u16,
}

/// How its threads run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threads {
    /// How many for each direction, if the device takes as many queues.
    pub(super) queues: usize,
    /// How long each stays awake with nothing to do.
    pub(super) spin: Duration,
    /// Whether those of one queue stay on one CPU.
    pub(super) pin: bool,
}

/// The data path and what it runs on.
pub(super) struct DataPath {
    shared: Arc<Shared>,
    framing: Framing,
    conf: Threads,
    endpoint: Endpoint,
    socket: OuterSocket,
    other: Option<OuterSocket>,
    running: Option<Running>,
    exits: mpsc::UnboundedSender<Exit>,
}

struct Running {
    device: TunDevice,
    wake: Arc<WakeFd>,
    threads: Vec<JoinHandle<()>>,
}

/// A thread that ended although nobody told it to.
#[derive(Debug)]
pub(super) struct Exit {
    /// Index of the tunnel device that it ran on.
    pub(super) device: u32,
    /// Why, in words.
    pub(super) cause: String,
}

impl DataPath {
    /// Binds the socket; threads start with the first [`DataPath::start`].
    pub(super) fn bind(
        shared: Arc<Shared>,
        endpoint: Endpoint,
        framing: Framing,
        conf: Threads,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Exit>)> {
        let bind = |address| bind(address, endpoint.port, framing, conf.queues);
        let socket = bind(endpoint.address)?;
        let other = endpoint.other.map(bind).transpose()?;
        let (exits, receiver) = mpsc::unbounded_channel();
        Ok((Self { shared, framing, conf, endpoint, socket, other, running: None, exits }, receiver))
    }

    /// Takes datagrams at `endpoint` from now on.
    pub(super) fn rebind(&mut self, endpoint: Endpoint) -> Result<()> {
        if endpoint == self.endpoint {
            return Ok(());
        }
        // An address that stays is taken by the socket that stays.
        let bind = |address| bind(address, endpoint.port, self.framing, self.conf.queues);
        if endpoint.address != self.endpoint.address {
            self.socket = bind(endpoint.address)?;
        }
        if endpoint.other != self.endpoint.other {
            self.other = endpoint.other.map(bind).transpose()?;
        }
        self.endpoint = endpoint;
        match self.running.as_ref().map(|running| running.device.clone()) {
            Some(device) => self.start(&device),
            None => Ok(()),
        }
    }

    /// Datagrams lost to a full receive buffer since the socket was bound.
    pub(super) fn overflows(&self) -> Option<u64> {
        let other = self.other.as_ref().and_then(OuterSocket::overflows).unwrap_or_default();
        self.socket.overflows().map(|overflows| overflows + other)
    }

    /// Runs on `device` from now on.
    pub(super) fn start(&mut self, device: &TunDevice) -> Result<()> {
        self.stop();
        self.shared.resume();
        let wake = Arc::new(WakeFd::new(self.conf.spin)?);
        self.set_offloads(device);
        let mut threads = Vec::new();
        let outcome = self.threads(device, &wake, &mut threads);
        // Also those that were started before one could not be.
        self.running = Some(Running { device: device.clone(), wake, threads });
        outcome
    }

    /// A thread for each queue of the device, and one for each socket.
    fn threads(
        &self,
        device: &TunDevice,
        wake: &Arc<WakeFd>,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Result<()> {
        let framing = self.framing;
        let io = |queue| {
            let udp = UdpIo::new(self.socket.clone(), self.other.clone(), queue, wake, BATCH);
            (device.io(queue, wake), udp, self.shared.clone())
        };
        for queue in 0..device.queues() {
            let (tun, mut udp, shared) = io(queue);
            threads.push(self.spawn("tun-to-udp", device.index(), queue, move || match tun {
                DeviceIo::Plain(mut tun) => {
                    dataplane::encapsulate(&shared, &mut tun, &mut udp, monotonic_ns())
                }
                DeviceIo::Frames(mut tun) => {
                    let now = monotonic_ns();
                    dataplane::encapsulate_offloaded(&shared, queue, framing, &mut tun, &mut udp, now)
                }
            })?);
        }
        for queue in 0..self.socket.queues() {
            let (tun, mut udp, shared) = io(queue);
            threads.push(self.spawn("udp-to-tun", device.index(), queue, move || match tun {
                DeviceIo::Plain(mut tun) => dataplane::decapsulate(&shared, queue, &mut udp, &mut tun),
                DeviceIo::Frames(mut tun) => {
                    dataplane::decapsulate_offloaded(&shared, queue, framing, &mut udp, &mut tun)
                }
            })?);
        }
        info!(
            queues = device.queues(),
            sockets = self.socket.queues(),
            "the data path runs, a thread for each queue of the tunnel device and for each socket"
        );
        Ok(())
    }

    /// Agrees with the kernel on what it does for us. A plain device has no use for what the socket could do.
    fn set_offloads(&self, device: &TunDevice) {
        let ours = device.offloads();
        let wanted = if ours == Features::NONE { Features::NONE } else { device.wanted() };
        let on = self.socket.set_offloads(wanted);
        let both = self.other.as_ref().map_or(on, |other| other.set_offloads(wanted));
        let on = Features::from_bits(on.bits() & both.bits());
        let active = Feature::ALL
            .into_iter()
            .filter(|feature| on.has(*feature) || ours.has(*feature))
            .fold(Features::NONE, Features::with);
        self.shared.offloads.set(active);
        info!(active = %active, wanted = %device.wanted(), "offloads of the data path");
    }

    fn spawn(
        &self,
        name: &'static str,
        device: u32,
        queue: usize,
        body: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let (exits, pin) = (self.exits.clone(), self.conf.pin);
        let work = move || {
            if pin {
                match cpus::pin(queue) {
                    Ok(cpu) => info!(thread = name, queue, cpu, "stays on its CPU"),
                    Err(failure) => warn!(thread = name, queue, "runs on any CPU: {failure:#}"),
                }
            }
            if let Err(failure) = body() {
                // Nobody listens any more at shutdown.
                let _ = exits.send(Exit { device, cause: format!("thread {name} ended: {failure}") });
            }
        };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(work)
            .with_context(|| format!("cannot start {name}"))
    }

    /// Stops the threads and lets go of the device; the socket stays bound.
    pub(super) fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.shared.stop();
        if let Err(failure) = running.wake.ring() {
            error!("{failure:#}");
            return;
        }
        for thread in running.threads {
            if thread.join().is_err() {
                error!("a data-path thread panicked");
            }
        }
    }

    /// Cleans up after a thread that ended by itself. `false` when its device was replaced already.
    pub(super) fn ended(&mut self, exit: &Exit) -> bool {
        if self.running.as_ref().is_none_or(|running| running.device.index() != exit.device) {
            return false;
        }
        warn!(cause = exit.cause, "the data path stopped and is started again");
        self.stop();
        true
    }
}

impl Drop for DataPath {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind(address: IpAddr, port: u16, framing: Framing, queues: usize) -> Result<OuterSocket> {
    // In the UDP backend nodes know each other by their ports.
    let socket = OuterSocket::bind(address, port, queues)?.spread(address, framing == Framing::Plain)?;
    let buffers = socket.enlarge_buffers()?;
    if buffers.limited {
        warn!(
            receive = buffers.receive,
            send = buffers.send,
            "socket buffers are limited by net.core.rmem_max and wmem_max and will lose bursts: \
             raise both to 16777216, or give the daemon CAP_NET_ADMIN in the host's user namespace"
        );
    }
    info!(%address, port, receive_buffer = buffers.receive, "UDP socket is bound");
    Ok(socket)
}

#[expect(clippy::disallowed_methods, reason = "the wiring place hands the clock to the data path")]
fn monotonic_ns() -> impl Fn() -> u64 {
    let start = Instant::now();
    move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
