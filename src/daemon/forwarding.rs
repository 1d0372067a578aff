//! The data path of a backend whose packets go through this process, and what may happen to it. The others have none.

use std::time::Duration;

use anyhow::{Context, Result};
use rtnetlink::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tracing::warn;

use super::data_path::{DataPath, Endpoint, Exit};
use super::gauges::Gauges;
use super::state::State;
use crate::adapter::netlink::TunSlot;
use crate::adapter::tun::TunDevice;
use crate::config::iface::ExternalInterface;
use crate::config::netconf::BackendConf;
use crate::plan::TUN;

/// A device that fails again and again is opened this often at most.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// A running data path.
pub(super) struct Forwarding {
    data_path: DataPath,
    gauges: Gauges,
    exits: mpsc::UnboundedReceiver<Exit>,
    openings: mpsc::UnboundedReceiver<TunDevice>,
    failed: mpsc::UnboundedSender<u32>,
}

/// Something that happened to it.
pub(super) enum Event {
    /// The kernel side has opened another device.
    Opened(TunDevice),
    /// A thread ended by itself.
    Ended(Exit),
}

impl Forwarding {
    /// Opens device and socket and starts; the slot is the kernel side's end.
    pub(super) fn start(
        state: &State,
        external: &ExternalInterface,
        port: u16,
        handle: Handle,
    ) -> Result<(TunSlot, Self)> {
        let address = external.address().context("the external interface has no address any more")?;
        let (mut data_path, exits) = DataPath::bind(state.shared.clone(), Endpoint { address, port })?;
        let tunnel = TunDevice::open(TUN, state.offloads)?;
        data_path.start(&tunnel)?;
        let gauges = Gauges::new(handle, tunnel.index());
        let (opened, openings) = mpsc::unbounded_channel();
        let (failed, failures) = mpsc::unbounded_channel();
        let slot = TunSlot { device: Some(tunnel), offloads: state.offloads, opened, failed: failures };
        Ok((slot, Self { data_path, gauges, exits, openings, failed }))
    }

    /// The node has another address: takes packets there.
    pub(super) fn relocate(&mut self, state: &State, external: &ExternalInterface) -> Result<()> {
        let BackendConf::Udp { port } = state.conf.backend else { return Ok(()) };
        let address = external.address().context("the external interface has no address any more")?;
        let outcome = self.data_path.rebind(Endpoint { address, port });
        state.health.borrow_mut().data_path_trouble =
            outcome.as_ref().err().map(|error| format!("{error:#}"));
        outcome
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

    /// Reads what the kernel counts.
    pub(super) async fn read_gauges(&mut self, state: &State) {
        self.gauges.read(state, &self.data_path).await;
    }

    fn restart(&mut self, state: &State, device: &TunDevice) {
        self.gauges.new_tunnel(device.index());
        let started = self.data_path.start(device).map_err(|error| format!("{error:#}"));
        if let Err(text) = &started {
            warn!("{text}");
        }
        state.health.borrow_mut().data_path_trouble = started.err();
    }

    fn give_up_device(&mut self, state: &State, exit: Exit) {
        if !self.data_path.ended(&exit) {
            return;
        }
        state.health.borrow_mut().data_path_trouble = Some(exit.cause);
        // When the device is gone, the kernel's own event is faster and opens the next one at once. When it is there
        // and fails, it is opened again after a pause, and the fresh one comes back to us.
        let (failed, device) = (self.failed.clone(), exit.device);
        spawn_local(async move {
            tokio::time::sleep(RESTART_PAUSE).await;
            let _ = failed.send(device);
        });
    }
}

impl Event {
    /// Does what is to be done about it.
    pub(super) fn handle(self, state: &State, forwarding: &mut Option<Forwarding>) {
        let Some(forwarding) = forwarding else { return };
        match self {
            Self::Opened(device) => forwarding.restart(state, &device),
            Self::Ended(exit) => forwarding.give_up_device(state, exit),
        }
    }
}
