//! The data path of a backend whose packets go through this process, and what may happen to it. The others have none.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;
use tracing::info;

use super::concerns::Concerns;
use super::data_path::{DataPath, Endpoint, Exit, Threads};
use super::gauges::Gauges;
use super::parts::Parts;
use super::restarts::Restarts;
use super::setup::Setup;
use super::underlay;
use crate::adapter::kernel::TunSlot;
use crate::adapter::netlink;
use crate::adapter::packet::tun::{TunDevice, TunOptions};
use crate::adapter::tasks::{Cause, spawn_short};
use crate::backend::Transport;
use crate::config::iface::ExternalInterface;
use crate::dataplane;
use crate::lease::{FAMILIES, NodeFacts};
use crate::report::{Code, Concern};

/// A device that fails again and again is opened this often at most.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// A running data path.
pub(super) struct Forwarding {
    setup: Rc<Setup>,
    concerns: Concerns,
    data_path: DataPath,
    port: u16,
    gauges: Gauges,
    exits: mpsc::UnboundedReceiver<Exit>,
    openings: mpsc::UnboundedReceiver<TunDevice>,
    failed: mpsc::UnboundedSender<u32>,
    restarts: Restarts,
    /// Why the packet threads do not run.
    stopped: Option<String>,
    /// The address that the node has and packets cannot be taken at yet, and why.
    unreached: Option<(ExternalInterface, String)>,
}

/// Something that happened to it.
pub(super) enum Event {
    /// The kernel side has opened another device.
    Opened(TunDevice),
    /// A thread ended by itself.
    Ended(Exit),
}

/// What a data path of ours is made of.
pub(super) struct Tunnel {
    endpoint: Endpoint,
    transport: Transport,
}

impl Tunnel {
    /// What the data path is made of; `None` where packets do not go through this process. `facts` are what the source
    /// says of our own Node.
    pub(super) fn new(
        setup: &Setup,
        external: &ExternalInterface,
        facts: Option<&NodeFacts>,
    ) -> Result<Option<Self>> {
        let vteps = underlay::vteps(setup, facts);
        let Some(transport) = setup.backend.transport(|family| vteps.get(family).address()) else {
            return Ok(None);
        };
        let endpoint = endpoint(setup, external, transport.port)?;
        Ok(Some(Self { endpoint, transport }))
    }
}

/// Where packets are sent from and taken, of one family or of both.
fn endpoint(setup: &Setup, external: &ExternalInterface, port: u16) -> Result<Endpoint> {
    let addresses: Vec<IpAddr> = if setup.backend.pairs_families() {
        // As with the kernel's devices: pods of each family over nodes' addresses of that family.
        let families = setup.families();
        let carried = FAMILIES.into_iter().filter(|family| families.contains(family));
        carried.filter_map(|family| external.addresses(family).map(|(own, _)| own)).collect()
    } else {
        external.address().into_iter().collect()
    };
    let mut addresses = addresses.into_iter();
    let address = addresses.next().context("the external interface has no address for the tunnel")?;
    Ok(Endpoint { address, other: addresses.next(), port })
}

impl Forwarding {
    /// Opens device and socket and starts; the slot is the kernel side's end.
    pub(super) async fn start(parts: &Parts, tunnel: Tunnel) -> Result<(TunSlot, Self)> {
        let Parts { setup, shared, concerns, .. } = parts;
        for name in &tunnel.transport.instead_of {
            // It holds the name, the port and, were it to stay, the routes.
            let removed = netlink::remove_vxlan(name).await;
            if removed.with_context(|| format!("cannot remove the kernel's {name}"))? {
                info!(name, "the kernel's VXLAN device made way for ours");
            }
        }
        let (mut data_path, exits) = DataPath::bind(
            shared.clone(),
            tunnel.endpoint,
            tunnel.transport.framing,
            Threads { queues: setup.queues, spin: setup.conf.spin, pin: setup.conf.pin },
        )?;
        let options = TunOptions {
            offloads: setup.offloads,
            frames: dataplane::needs_headers(tunnel.transport.framing),
            queues: setup.queues,
        };
        let device = TunDevice::open(&parts.underlay.tunnel_name(), options)?;
        data_path.start(&device)?;
        let gauges = Gauges::new(parts, device.index());
        let (opened, openings) = mpsc::unbounded_channel();
        let (failed, failures) = mpsc::unbounded_channel();
        let slot = TunSlot { device: Some(device), options, opened, failed: failures };
        let forwarding = Self {
            setup: setup.clone(),
            concerns: concerns.clone(),
            data_path,
            port: tunnel.endpoint.port,
            gauges,
            exits,
            openings,
            failed,
            restarts: Restarts::default(),
            stopped: None,
            unreached: None,
        };
        Ok((slot, forwarding))
    }

    /// The node has another address: takes packets there. As long as that fails it is tried again by
    /// [`Forwarding::settle`].
    pub(super) fn relocate(&mut self, external: &ExternalInterface) {
        let endpoint = endpoint(&self.setup, external, self.port);
        let outcome = endpoint.and_then(|endpoint| self.data_path.rebind(endpoint));
        if let Ok(Some(device)) = &outcome {
            self.restart(device);
        }
        let why = |error| format!("the data path cannot follow the node's address: {error:#}");
        self.unreached = outcome.err().map(|error| (external.clone(), why(error)));
        self.tell();
    }

    /// The next event; never, where there is no data path.
    pub(super) async fn event(forwarding: &mut Option<Self>) -> Event {
        let Some(this) = forwarding else { return std::future::pending().await };
        tokio::select! {
            Some(device) = this.openings.recv() => Event::Opened(device),
            Some(exit) = this.exits.recv() => Event::Ended(exit),
            else => std::future::pending().await,
        }
    }

    /// Tries again what failed because of somebody else, and forgets a packet thread that was started again once it has
    /// run for a while.
    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) fn settle(&mut self) {
        if let Some((external, _)) = self.unreached.take() {
            self.relocate(&external);
        }
        if self.restarts.is_quiet(Instant::now()) {
            self.concerns.clear(Code::PacketThreadRestarted);
        }
    }

    /// Reads what the kernel counts.
    pub(super) async fn read_gauges(&mut self) {
        self.gauges.read(&self.data_path).await;
    }

    fn restart(&mut self, device: &TunDevice) {
        let started = self.data_path.start(device).map_err(|error| format!("{error:#}"));
        if started.is_err() {
            self.data_path.stop();
            self.reopen(device.index());
        }
        self.stopped = started.err();
        self.tell();
    }

    fn tell(&self) {
        let unreached = self.unreached.as_ref().map(|(_, why)| why);
        self.concerns.set(Code::DataPathDown, self.stopped.as_ref().or(unreached).cloned());
    }

    /// Has the kernel side open another device in place of the one with this index, after a pause.
    fn reopen(&self, device: u32) {
        let failed = self.failed.clone();
        spawn_short("reopen-tunnel", async move {
            tokio::time::sleep(RESTART_PAUSE).await;
            let _ = failed.send(device);
        });
    }

    /// Starts the packet threads again after one has ended.
    ///
    /// # Errors
    /// It ended too often.
    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    fn recover(&mut self, exit: &Exit) -> Result<()> {
        let Some(device) = self.data_path.ended(exit) else { return Ok(()) };
        // A device that somebody deletes takes its threads along, however often: that is repaired as it always is.
        if !exit.device_is_gone() && !self.restarts.allow(Instant::now()) {
            bail!(
                "{}; packet threads have ended more than three times in a minute, so the daemon ends",
                exit.end
            );
        }
        let text = exit.end.to_string();
        if !exit.device_is_gone() {
            let text = format!("{text}; it was started again within the last minute");
            self.concerns.raise(Concern::new(Code::PacketThreadRestarted, text));
        }
        if !matches!(exit.end.cause, Cause::Failed(_)) {
            self.restart(&device);
            return Ok(());
        }
        self.stopped = Some(text);
        self.tell();
        // When the device is gone, the kernel's own event is faster and opens the next one at once. When it is there
        // and fails, it is opened again after a pause, and the fresh one comes back to us.
        self.reopen(device.index());
        Ok(())
    }
}

impl Event {
    /// Does what is to be done about it.
    ///
    /// # Errors
    /// Packet threads end again and again.
    pub(super) fn handle(self, forwarding: &mut Option<Forwarding>) -> Result<()> {
        let Some(forwarding) = forwarding else { return Ok(()) };
        match self {
            Self::Opened(device) => {
                forwarding.gauges.new_tunnel(device.index());
                forwarding.restart(&device);
                Ok(())
            }
            Self::Ended(exit) => forwarding.recover(&exit),
        }
    }
}
