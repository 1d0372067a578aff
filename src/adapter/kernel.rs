//! The kernel as the loop that programs it knows it: netlink, traffic rules, the TUN device and settings, as one.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use tokio::sync::mpsc;

use super::firewall::Firewall;
use super::netlink::events::Events;
use super::netlink::read::{self, Indices};
use super::netlink::wire::{Error, kind_of};
use super::netlink::{CAPABILITY, Rtnl, look, write};
use super::packet::tun::{TunDevice, TunOptions};
use super::{ethtool, sysctl};
use crate::plan::object::link;
use crate::plan::{Belief, Device, LinkChange, LinkKind, LinkSpec, LinkState, Op, Parts, Watched};
use crate::ports::{FaultKind, Kernel, KernelError, Seen};

/// Events come in bursts (a device that goes down takes its routes along); one look afterwards is enough.
const SETTLE: Duration = Duration::from_millis(20);

/// How often settings are looked at of which the kernel tells nobody.
const SETTINGS: Duration = Duration::from_secs(2);

/// The tunnel device that this process holds, where the data path is ours; the data path has clones of it.
pub struct TunSlot {
    /// The device, unless it was given up.
    pub device: Option<TunDevice>,
    /// How a device is opened.
    pub options: TunOptions,
    /// Takes each device that a plan opens in its place.
    pub opened: mpsc::UnboundedSender<TunDevice>,
    /// Indices of devices whose data path has failed: they are opened again.
    pub failed: mpsc::UnboundedReceiver<u32>,
}

/// The real kernel.
pub struct LinuxKernel {
    rtnl: Rtnl,
    events: Events,
    firewall: Firewall,
    tun: Option<TunSlot>,
    watched: Option<Watched>,
    indices: Indices,
    belief: Belief,
    /// Whether each device of ours took router advertisements when it was last looked at.
    accepted_ra: Vec<(String, Option<bool>)>,
}

impl LinuxKernel {
    /// The kernel; `tun` where packets go through this process.
    pub fn new(firewall: Firewall, tun: Option<TunSlot>) -> Result<Self> {
        let rtnl = Rtnl::open().context("cannot open a netlink socket")?;
        Ok(Self {
            // Subscribed before the first look, so that no change falls in between.
            events: Events::subscribe(rtnl.port())?,
            rtnl,
            firewall,
            tun,
            watched: None,
            indices: Indices::new(),
            belief: Belief::default(),
            accepted_ra: Vec::new(),
        })
    }

    /// Reads what is always read, and of the rest what is doubtful, or `everything`; how many entries were not as they
    /// were believed to be.
    async fn look(&mut self, watched: &Watched, everything: bool) -> Result<usize> {
        let held = self.tun.as_ref().map(|tun| tun.device.as_ref().map(TunDevice::index));
        let (mut seen, indices) = look::devices(&mut self.rtnl, watched, held).await?;
        self.indices = indices;
        let parts = self.belief.begin(&seen, everything);
        look::entries(&mut self.rtnl, parts, &self.indices, &mut seen).await?;
        let setting =
            |(device, state): (&Device, &LinkState)| (watched.name(*device).to_owned(), state.accepts_ra);
        let ours = seen.links.iter().filter(|(device, _)| **device != Device::External);
        self.accepted_ra = ours.map(setting).collect();
        seen.firewall = self.firewall.observe().await?;
        if everything {
            self.events.meanwhile(watched, &self.indices, &mut self.belief);
        }
        let unannounced = self.belief.renew(seen, parts);
        if self.rtnl.has_raced() {
            self.belief.doubt(Parts::ALL);
        }
        Ok(unannounced)
    }

    fn open_tunnel(&mut self, device: Device, spec: &LinkSpec) -> Result<(), KernelError> {
        let fail = |cause: String| KernelError::new(format!("open tunnel device {}", spec.name), cause);
        let slot = self.tun.as_mut().ok_or_else(|| fail("no data path was started for it".into()))?;
        // Two devices cannot have one name, and the old one stays for as long as a clone of it is alive.
        slot.device = None;
        let opened = TunDevice::open(&spec.name, slot.options).map_err(|error| fail(format!("{error:#}")))?;
        self.indices.insert(device, opened.index());
        slot.device = Some(opened.clone());
        // The receiver lives as long as the daemon; at shutdown nobody needs the device any more.
        let _ = slot.opened.send(opened);
        Ok(())
    }

    /// Carries out a step that is no netlink request; `None` for one that is.
    async fn apply_otherwise(&mut self, op: &Op, watched: &Watched) -> Option<Result<(), KernelError>> {
        match op {
            Op::Link(link::Step::Create { device, spec }) if matches!(spec.kind, LinkKind::Tun { .. }) => {
                Some(self.open_tunnel(*device, spec))
            }
            Op::Link(link::Step::Set { device, change: LinkChange::TxChecksum(on) }) => {
                let done = ethtool::set_tx_checksum(watched.name(*device), *on);
                Some(done.map_err(|cause| system_error(op.describe(watched), &cause)))
            }
            Op::Link(link::Step::Set { device, change: LinkChange::IgnoreRa }) => {
                let done = sysctl::ignore_ra(watched.name(*device));
                Some(done.map_err(|cause| KernelError {
                    remedy: sysctl::remedy(&cause),
                    ..system_error(op.describe(watched), &cause)
                }))
            }
            Op::Firewall(op) => Some(self.firewall.apply(op).await),
            _ => None,
        }
    }

    /// Learns the index of a device that has just been made.
    async fn find(&mut self, device: Device, name: &str) {
        if let Ok(Some(state)) = read::link_by_name(&mut self.rtnl, name).await {
            self.indices.insert(device, state.index);
        }
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self, watched: &Watched, everything: bool) -> Result<Seen<'_>, KernelError> {
        if self.watched.as_ref() != Some(watched) {
            self.belief.doubt(Parts::ALL);
        }
        self.watched = Some(watched.clone());
        self.events.catch_up(watched, &self.indices, &mut self.belief);
        match self.look(watched, everything).await {
            Ok(unannounced) => Ok(Seen { observed: self.belief.observed(), unannounced }),
            Err(cause) => {
                self.belief.doubt(Parts::ALL);
                Err(unreadable(&cause))
            }
        }
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let Some(watched) = self.watched.clone() else { return Vec::new() };
        let mut outcomes: Vec<Option<Result<(), KernelError>>> = Vec::with_capacity(ops.len());
        let (mut requests, mut places) = (Vec::new(), Vec::new());
        for (place, op) in ops.iter().enumerate() {
            let outcome = self.apply_otherwise(op, &watched).await;
            if outcome.is_none()
                && let Some(request) = write::request(op, &self.indices, &watched.alias)
            {
                requests.push(request);
                places.push(place);
            }
            outcomes.push(outcome);
        }
        let failed = |op: &Op, cause: String| KernelError::new(op.describe(&watched), cause);
        match self.rtnl.write(&requests).await {
            Ok(answers) => {
                for (&place, mut answer) in places.iter().zip(answers) {
                    let op = &ops[place];
                    if let Err(refusal) = &answer
                        && let Some(detour) = write::detour(op, refusal, &self.indices)
                        && let Ok(mut answers) = self.rtnl.write(&detour).await
                    {
                        answer = answers.pop().unwrap_or(answer);
                    }
                    outcomes[place] = Some(answer.or_else(|refusal| write::judge(op, &refusal, &watched)));
                }
            }
            Err(error) => {
                for &place in &places {
                    outcomes[place] = Some(Err(failed(&ops[place], error.to_string())));
                }
            }
        }
        for op in ops {
            if let Op::Link(link::Step::Create { device, spec }) = op {
                self.find(*device, &spec.name).await;
            }
        }
        let missing = |op: &Op| failed(op, "its device is not there".into());
        let outcome = |(op, outcome): (&Op, Option<Result<(), KernelError>>)| {
            let outcome = outcome.unwrap_or_else(|| Err(missing(op)));
            match outcome {
                Ok(()) => self.belief.note(op),
                // Whatever is in its way is nothing that is believed.
                Err(_) => self.belief.doubt(Parts::ALL),
            }
            outcome
        };
        ops.iter().zip(outcomes).map(outcome).collect()
    }

    async fn changed(&mut self) {
        loop {
            let failed = async {
                match &mut self.tun {
                    Some(tun) => tun.failed.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.firewall.changed() => break,
                () = settings_changed(&self.accepted_ra) => break,
                () = self.events.changed(self.watched.as_ref(), &self.indices, &mut self.belief) => break,
                Some(index) = failed => {
                    let slot = self.tun.as_mut();
                    if let Some(slot) = slot.filter(|slot| slot.device.as_ref().is_some_and(|d| d.index() == index)) {
                        slot.device = None;
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Why the kernel could not be read, by the netlink error behind it.
fn unreadable(cause: &anyhow::Error) -> KernelError {
    let error = KernelError::new("read what the kernel holds", format!("{cause:#}"));
    let Some(netlink) = cause.downcast_ref::<Error>() else { return error };
    let kind = netlink.kind();
    let remedy = (kind == FaultKind::NotPermitted).then_some(CAPABILITY);
    KernelError { remedy, kind, errno: netlink.errno().map(|errno| errno as i32), ..error }
}

fn system_error(doing: String, cause: &io::Error) -> KernelError {
    let errno = cause.raw_os_error();
    let kind = errno.map_or(FaultKind::Other, |errno| kind_of(Errno::from_raw(errno)));
    KernelError { kind, errno, ..KernelError::new(doing, cause.to_string()) }
}

/// Waits until a device takes router advertisements that took none, or the other way round.
async fn settings_changed(seen: &[(String, Option<bool>)]) {
    loop {
        tokio::time::sleep(SETTINGS).await;
        if seen.iter().any(|(device, accepted)| sysctl::accepts_ra(device) != *accepted) {
            return;
        }
    }
}
