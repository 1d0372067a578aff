//! The kernel's links, addresses and routes, by rtnetlink.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use encap::Prefix;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use nix::errno::Errno;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc;

use super::firewall::Firewall;
use super::tun::TunDevice;
use crate::config::offload::Features;
use crate::plan::{LinkState, Observed, Op, TunnelState};
use crate::ports::{Kernel, KernelError, Watched};

/// Events come in bursts (a device that goes down takes its routes along); one look afterwards is enough.
const SETTLE: Duration = Duration::from_millis(20);

/// The real kernel.
pub struct LinuxKernel {
    handle: Handle,
    firewall: Firewall,
    route_events: mpsc::Receiver<Touched>,
    /// The tunnel device that this process holds; the data path has clones of it.
    tunnel: Option<TunDevice>,
    /// What a device is opened with.
    offloads: Features,
    opened: mpsc::UnboundedSender<TunDevice>,
    /// Indices of tunnel devices whose data path has given up.
    failed: mpsc::UnboundedReceiver<u32>,
    watched: Option<(Watched, Option<u32>)>,
}

/// What a netlink event was about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Touched {
    Link {
        index: u32,
        name: Option<String>,
    },
    Device(u32),
    /// Events were lost, or one was not understood: look at everything.
    Unknown,
}

impl LinuxKernel {
    /// The kernel, with `tunnel` already open. Each device that a plan opens in its place goes to `opened`; a
    /// device whose index comes out of `failed` is opened again.
    pub fn new(
        handle: Handle,
        firewall: Firewall,
        tunnel: TunDevice,
        opened: mpsc::UnboundedSender<TunDevice>,
        failed: mpsc::UnboundedReceiver<u32>,
    ) -> Result<Self> {
        Ok(Self {
            handle,
            firewall,
            route_events: subscribe()?,
            offloads: tunnel.wanted(),
            tunnel: Some(tunnel),
            opened,
            failed,
            watched: None,
        })
    }

    async fn tunnel_state(&self) -> Result<Option<TunnelState>> {
        let Some(tunnel) = &self.tunnel else { return Ok(None) };
        let Some(link) = link_by_index(&self.handle, tunnel.index()).await? else { return Ok(None) };
        let addresses = addresses(&self.handle, tunnel.index()).await?;
        let routes = routes(&self.handle, tunnel.index()).await?;
        Ok(Some(TunnelState { link, addresses, routes }))
    }

    fn tunnel_index(&self, op: &Op) -> Result<u32, KernelError> {
        let missing = || KernelError {
            doing: op.to_string(),
            cause: "the tunnel device is not open".into(),
            remedy: None,
        };
        self.tunnel.as_ref().map(TunDevice::index).ok_or_else(missing)
    }

    fn open_tunnel(&mut self, name: &str) -> Result<(), KernelError> {
        // Two devices cannot have one name, and the old one stays for as long as a clone of it is alive.
        self.tunnel = None;
        let device = TunDevice::open(name, self.offloads).map_err(|error| KernelError {
            doing: format!("open tunnel device {name}"),
            cause: format!("{error:#}"),
            remedy: None,
        })?;
        self.tunnel = Some(device.clone());
        // The receiver lives as long as the daemon; at shutdown nobody needs the device any more.
        let _ = self.opened.send(device);
        Ok(())
    }

    async fn apply_link(&self, op: &Op) -> Result<(), KernelError> {
        let index = self.tunnel_index(op)?;
        let request = |message| self.handle.link().set(message);
        let outcome = match op {
            Op::SetQueueLen { packets, .. } => {
                request(LinkUnspec::new_with_index(index).txqueuelen(*packets).build()).execute().await
            }
            Op::SetMtu { mtu, .. } => {
                request(LinkUnspec::new_with_index(index).mtu(*mtu).build()).execute().await
            }
            Op::SetUp { .. } => request(LinkUnspec::new_with_index(index).up().build()).execute().await,
            Op::AddAddress { address, .. } => {
                self.handle.address().add(index, address.addr(), address.len()).execute().await
            }
            Op::RemoveAddress { address, len, .. } => self.remove_address(index, *address, *len).await,
            Op::AddRoute { to, .. } => self.handle.route().add(route(index, *to)).execute().await,
            Op::OpenTunnel { .. } | Op::Firewall(_) => Ok(()),
        };
        outcome.map_err(|error| explain(op, &error))
    }

    async fn remove_address(&self, index: u32, address: IpAddr, len: u8) -> Result<(), rtnetlink::Error> {
        let all = self.handle.address().get().set_link_index_filter(index).execute();
        let found: Vec<_> = all
            .try_filter(|message| std::future::ready(local_address(message) == Some((address, len))))
            .try_collect()
            .await?;
        for message in found {
            self.handle.address().del(message).execute().await?;
        }
        Ok(())
    }

    /// Whether an event is about something that the last observation looked at.
    fn concerns(&self, touched: &Touched) -> bool {
        let Some((watched, tunnel)) = &self.watched else { return true };
        let known = |index: u32| index == watched.external || Some(index) == *tunnel;
        match touched {
            Touched::Link { index, name } => known(*index) || name.as_ref() == Some(&watched.tunnel),
            Touched::Device(index) => known(*index),
            Touched::Unknown => true,
        }
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self, watched: &Watched) -> Result<Observed, KernelError> {
        let fail = |cause: anyhow::Error| KernelError {
            doing: "read links, addresses, routes and rules".into(),
            cause: format!("{cause:#}"),
            remedy: None,
        };
        let external = link_by_index(&self.handle, watched.external).await.map_err(fail)?;
        let tunnel = self.tunnel_state().await.map_err(fail)?;
        let firewall = self.firewall.observe().await.map_err(fail)?;
        self.watched = Some((watched.clone(), tunnel.as_ref().map(|tunnel| tunnel.link.index)));
        Ok(Observed { external, tunnel, firewall })
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::OpenTunnel { name } => self.open_tunnel(name),
            Op::Firewall(op) => self.firewall.apply(op).await,
            _ => self.apply_link(op).await,
        }
    }

    async fn changed(&mut self) {
        loop {
            let touched = tokio::select! {
                () = self.firewall.changed() => Touched::Unknown,
                event = self.route_events.recv() => event.unwrap_or(Touched::Unknown),
                Some(index) = self.failed.recv() => {
                    if self.tunnel.as_ref().is_some_and(|tunnel| tunnel.index() == index) {
                        self.tunnel = None;
                    }
                    Touched::Unknown
                }
            };
            if self.concerns(&touched) {
                break;
            }
        }
        tokio::time::sleep(SETTLE).await;
        while self.route_events.try_recv().is_ok() {}
    }
}

/// Opens a connection to rtnetlink.
pub fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Packets that the kernel dropped because the queue of device `index` was full, since the device was made.
pub async fn queue_drops(handle: &Handle, index: u32) -> Option<u64> {
    let link = handle.link().get().match_index(index).execute().try_next().await.ok()??;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
        _ => None,
    })
}

fn subscribe() -> Result<mpsc::Receiver<Touched>> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot subscribe to netlink events")?;
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        // The connection ends when its last handle is gone.
        let _handle = handle;
        while let Some((message, _)) = messages.next().await {
            // A full channel means that a look at everything is due anyway.
            let _ = sender.try_send(touched(&message));
        }
    });
    Ok(receiver)
}

fn touched(message: &NetlinkMessage<RouteNetlinkMessage>) -> Touched {
    use RouteNetlinkMessage as M;
    match &message.payload {
        NetlinkPayload::InnerMessage(M::NewLink(link) | M::DelLink(link)) => {
            Touched::Link { index: link.header.index, name: link_name(link) }
        }
        NetlinkPayload::InnerMessage(M::NewAddress(address) | M::DelAddress(address)) => {
            Touched::Device(address.header.index)
        }
        NetlinkPayload::InnerMessage(M::NewRoute(route) | M::DelRoute(route)) => {
            route_device(route).map_or(Touched::Unknown, Touched::Device)
        }
        _ => Touched::Unknown,
    }
}

fn link_name(message: &LinkMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn link_state(message: &LinkMessage) -> LinkState {
    let mut state = LinkState {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..LinkState::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            LinkAttribute::TxQueueLen(packets) => state.queue_len = *packets,
            _ => {}
        }
    }
    state
}

async fn link_by_index(handle: &Handle, index: u32) -> Result<Option<LinkState>> {
    let mut links = handle.link().get().match_index(index).execute();
    match links.try_next().await {
        Ok(message) => Ok(message.as_ref().map(link_state)),
        Err(error) if matches!(errno(&error), Some(Errno::ENODEV)) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read interface {index}")),
    }
}

pub(super) fn local_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    // On a point-to-point device IFA_ADDRESS is the far end and IFA_LOCAL the near one; IPv6 has only the former.
    let near = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    near.or(any).map(|address| (address, message.header.prefix_len))
}

async fn addresses(handle: &Handle, index: u32) -> Result<BTreeSet<(IpAddr, u8)>> {
    let all = handle.address().get().set_link_index_filter(index).execute();
    all.try_filter_map(|message| std::future::ready(Ok(local_address(&message))))
        .try_collect()
        .await
        .context("cannot read addresses")
}

pub(super) fn route_device(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn destination(message: &RouteMessage) -> Option<Prefix> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Prefix::new(address?, message.header.destination_prefix_length).ok()
}

async fn routes(handle: &Handle, index: u32) -> Result<BTreeSet<Prefix>> {
    let mut found = BTreeSet::new();
    for filter in [RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), {
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
    }] {
        let mut all = std::pin::pin!(handle.route().get(filter).execute());
        while let Some(message) = all.try_next().await.context("cannot read routes")? {
            let ours = message.header.table == RouteHeader::RT_TABLE_MAIN
                && message.header.kind == RouteType::Unicast
                && route_device(&message) == Some(index);
            if ours {
                found.extend(destination(&message));
            }
        }
    }
    Ok(found)
}

fn route(index: u32, to: Prefix) -> RouteMessage {
    // As flannel's: main table, protocol boot, scope global, no source.
    match to.addr() {
        IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(address, to.len())
            .output_interface(index)
            .protocol(rtnetlink::packet_route::route::RouteProtocol::Boot)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(address, to.len())
            .output_interface(index)
            .protocol(rtnetlink::packet_route::route::RouteProtocol::Boot)
            .build(),
    }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| Errno::from_raw(-code.get())),
        _ => None,
    }
}

fn explain(op: &Op, error: &rtnetlink::Error) -> KernelError {
    let (cause, remedy) = match (errno(error), op) {
        (Some(Errno::EPERM), _) => ("operation not permitted".into(), Some("the daemon needs CAP_NET_ADMIN")),
        (Some(Errno::EEXIST), Op::AddRoute { .. }) => (
            "there is a route to this network by another device".into(),
            Some("`ip route show` names it; remove it, or choose another Network"),
        ),
        (Some(errno), _) => (errno.desc().to_owned(), None),
        (None, _) => (error.to_string(), None),
    };
    KernelError { doing: op.to_string(), cause, remedy }
}
