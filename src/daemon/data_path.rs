//! Starts the data-path threads on a tunnel device, and replaces them when device or socket fail.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use encap::Framing;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::adapter::cpus;
use crate::adapter::packet::WakeFd;
use crate::adapter::packet::tun::{self, TunDevice};
use crate::adapter::packet::udp::{OuterSocket, UdpIo};
use crate::adapter::tasks::{self, Cause, End};
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
    /// How often threads were started.
    starts: u64,
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
    /// Which start of the threads it belonged to.
    start: u64,
    /// Which thread it was, and how it ended.
    pub(super) end: End,
}

impl Exit {
    /// Whether it ended because the kernel took its device away.
    pub(super) fn device_is_gone(&self) -> bool {
        let Cause::Failed(error) = &self.end.cause else { return false };
        error.downcast_ref().is_some_and(tun::is_gone)
    }
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
        Ok((
            Self { shared, framing, conf, endpoint, socket, other, running: None, starts: 0, exits },
            receiver,
        ))
    }

    /// Binds the sockets anew for `endpoint`, all of them or none. The device to start on again, if the threads run.
    pub(super) fn rebind(&mut self, endpoint: Endpoint) -> Result<Option<TunDevice>> {
        if endpoint == self.endpoint {
            return Ok(None);
        }
        // An address that stays is taken by the socket that stays.
        let bind = |address| bind(address, endpoint.port, self.framing, self.conf.queues);
        let socket = if endpoint.address == self.endpoint.address {
            self.socket.clone()
        } else {
            bind(endpoint.address)?
        };
        let other = if endpoint.other == self.endpoint.other {
            self.other.clone()
        } else {
            endpoint.other.map(bind).transpose()?
        };
        (self.socket, self.other, self.endpoint) = (socket, other, endpoint);
        Ok(self.running.as_ref().map(|running| running.device.clone()))
    }

    /// Datagrams lost to a full receive buffer since the socket was bound.
    pub(super) fn overflows(&self) -> Option<u64> {
        let other = self.other.as_ref().and_then(OuterSocket::overflows).unwrap_or_default();
        self.socket.overflows().map(|overflows| overflows + other)
    }

    /// Runs on `device` from now on.
    pub(super) fn start(&mut self, device: &TunDevice) -> Result<()> {
        self.stop();
        self.starts += 1;
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
            let (mut tun, mut udp, shared) = io(queue);
            threads.push(self.spawn("tun-to-udp", queue, move || {
                dataplane::encapsulate(&shared, queue, framing, &mut tun, &mut udp, monotonic_ns())
            })?);
        }
        for queue in 0..self.socket.queues() {
            let (mut tun, mut udp, shared) = io(queue);
            threads.push(self.spawn("udp-to-tun", queue, move || {
                dataplane::decapsulate(&shared, queue, framing, &mut udp, &mut tun)
            })?);
        }
        info!(
            queues = device.queues(),
            sockets = self.socket.queues(),
            "the data path runs, a thread for each queue of the tunnel device and for each socket"
        );
        Ok(())
    }

    /// Agrees with the kernel on what it does for us.
    fn set_offloads(&self, device: &TunDevice) {
        let (ours, wanted) = (device.offloads(), device.wanted());
        let on = self.socket.set_offloads(wanted);
        let both = self.other.as_ref().map_or(on, |other| other.set_offloads(wanted));
        let on = Features::from_bits(on.bits() & both.bits());
        let active = Feature::ALL
            .into_iter()
            .filter(|feature| on.has(*feature) || ours.has(*feature))
            .fold(Features::NONE, Features::with);
        self.shared.offloads.set(active);
        info!(%active, %wanted, "offloads of the data path");
    }

    fn spawn(
        &self,
        name: &'static str,
        queue: usize,
        body: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let (exits, shared) = (self.exits.clone(), self.shared.clone());
        let (start, pin) = (self.starts, self.conf.pin);
        let work = move || {
            if pin {
                match cpus::pin(queue) {
                    Ok(cpu) => info!(thread = name, queue, cpu, "stays on its CPU"),
                    Err(failure) => warn!(thread = name, queue, "runs on any CPU: {failure:#}"),
                }
            }
            body()
        };
        tasks::thread(name, work, move |cause| {
            if matches!(cause, Cause::Returned) && shared.stopped() {
                return;
            }
            let end = End { name: format!("packet thread {name} of queue {queue}"), cause };
            // Nobody listens any more at shutdown.
            let _ = exits.send(Exit { start, end });
        })
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
            // A panic is caught within.
            let _ = thread.join();
        }
    }

    /// Cleans up after a thread that ended by itself, and says which device it ran on; `None` if all were
    /// started anew already.
    pub(super) fn ended(&mut self, exit: &Exit) -> Option<TunDevice> {
        if exit.start != self.starts {
            return None;
        }
        let device = self.running.as_ref()?.device.clone();
        self.stop();
        Some(device)
    }
}

impl Drop for DataPath {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind(address: IpAddr, port: u16, framing: Framing, queues: usize) -> Result<OuterSocket> {
    let above = dataplane::judges_ports(framing);
    let socket = OuterSocket::bind(address, port, queues)?.spread(address, above)?;
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
