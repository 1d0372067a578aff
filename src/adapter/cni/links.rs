//! Devices, addresses and routes of one network namespace, over a netlink socket that waits for its answers.

mod message;

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use encap::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;

use self::message::{address_message, address_of, at, family, is_tentative, link, route_of, up};
use crate::adapter::netlink::blocking::Socket;
use crate::adapter::netlink::wire::{Change, Error, Rtnetlink};
use crate::cni::{Cidr, CniError, Code, Route};

/// How long a device may take to come up, and an address to be usable.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device as far as the plugins look at one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Ethernet address.
    pub mac: Option<MacAddr>,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether the kernel has taken note that packets can pass (operational state up): a bridge forwards to a port, and
    /// IPv6 addresses of a device can be used, from then on and not before.
    pub is_ready: bool,
}

/// The host's end of a pair, and what the pair is to be like.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Name of the host's end.
    pub host: &'a str,
    /// Name of the container's end.
    pub container: &'a str,
    /// The container's namespace.
    pub netns: BorrowedFd<'a>,
    /// MTU of both, bytes; `None` for the kernel's.
    pub mtu: Option<u32>,
    /// Ethernet address of the container's end; `None` for a random one.
    pub mac: Option<MacAddr>,
}

/// A socket in the namespace that it was opened in.
#[derive(Debug)]
pub struct Links(Socket<Rtnetlink>);

impl Links {
    /// Opens one where this thread is.
    ///
    /// # Errors
    /// Code 5.
    pub fn open() -> Result<Self, CniError> {
        Socket::open()
            .map(Self)
            .map_err(|error| CniError::new(Code::Io, "cannot open a netlink socket", error.to_string()))
    }

    /// The device of this name.
    ///
    /// # Errors
    /// Code 5.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, CniError> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.0.get(&Message::GetLink(question), |part| part.object::<Message>()) {
            Ok(Some(Message::NewLink(message))) => Ok(Some(link(&message))),
            Ok(_) => Ok(None),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("cannot look for {name}"), &error)),
        }
    }

    /// Name of the device by which packets to `address` leave; `None` if there is no route.
    ///
    /// # Errors
    /// Code 5.
    pub fn toward(&mut self, address: IpAddr) -> Result<Option<String>, CniError> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        question.attributes.push(RouteAttribute::Destination(address.into()));
        let failed = |error: &Error| failed(format!("cannot look for the route to {address}"), error);
        let route = match self.0.get(&Message::GetRoute(question), |part| part.object::<Message>()) {
            Ok(Some(Message::NewRoute(route))) => route,
            Ok(_) => return Ok(None),
            Err(error) if error.errno() == Some(Errno::ENETUNREACH) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let out = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let Some(index) = out else { return Ok(None) };
        let found = self.0.get(&Message::GetLink(at(index)), |part| part.object::<Message>());
        match found.map_err(|error| failed(&error))? {
            Some(Message::NewLink(message)) => Ok(Some(link(&message).name)),
            _ => Ok(None),
        }
    }

    /// Makes a bridge, unless there is a device of its name.
    ///
    /// # Errors
    /// Code 5.
    pub fn make_bridge(&mut self, name: &str, mtu: Option<u32>) -> Result<(), CniError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.change(
            format!("cannot make the bridge {name}"),
            &[(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)],
            Some(Errno::EEXIST),
        )
    }

    /// Makes a pair of devices, one end in the container; `false` if the host has a device of that name.
    ///
    /// # Errors
    /// Code 5.
    pub fn make_pair(&mut self, pair: &Pair<'_>) -> Result<bool, CniError> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(pair.container.to_owned()));
        peer.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        peer.attributes.extend(pair.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        peer.attributes.push(LinkAttribute::NetNsFd(pair.netns.as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(pair.host.to_owned()));
        message.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let changes = [(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)];
        match self.0.write(&changes).map(|outcomes| outcomes.into_iter().find_map(Result::err)) {
            Ok(None) => Ok(true),
            Ok(Some(refusal)) if refusal.errno == Errno::EEXIST => Ok(false),
            Ok(Some(refusal)) => {
                Err(failed(format!("cannot make the pair of {}", pair.container), &refusal.into()))
            }
            Err(error) => Err(failed(format!("cannot make the pair of {}", pair.container), &error)),
        }
    }

    /// Makes a device a port of a bridge, and sets it up.
    ///
    /// # Errors
    /// Code 5.
    pub fn attach(
        &mut self,
        port: &Link,
        bridge: u32,
        hairpin: bool,
        isolated: bool,
    ) -> Result<(), CniError> {
        let mut join = at(port.index);
        join.attributes.push(LinkAttribute::Controller(bridge));
        let mut settings = at(port.index);
        settings.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(hairpin),
                InfoBridgePort::Isolated(isolated),
            ])),
        ]));
        let changes = [join, settings, up(port.index)].map(|message| (Message::NewLink(message), 0));
        self.change(format!("cannot make {} a port of the bridge", port.name), &changes, None)
    }

    /// Sets a device up.
    ///
    /// # Errors
    /// Code 5.
    pub fn set_up(&mut self, link: &Link) -> Result<(), CniError> {
        self.change(format!("cannot set {} up", link.name), &[(Message::NewLink(up(link.index)), 0)], None)
    }

    /// Makes a device promiscuous.
    ///
    /// # Errors
    /// Code 5.
    pub fn set_promiscuous(&mut self, link: &Link) -> Result<(), CniError> {
        let mut message = at(link.index);
        message.header.flags = LinkFlags::Promisc;
        message.header.change_mask = LinkFlags::Promisc;
        self.change(format!("cannot make {} promiscuous", link.name), &[(Message::NewLink(message), 0)], None)
    }

    /// Pins the Ethernet address of a device.
    ///
    /// # Errors
    /// Code 5.
    pub fn set_mac(&mut self, link: &Link, mac: MacAddr) -> Result<(), CniError> {
        let mut message = at(link.index);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.change(
            format!("cannot set the address of {}", link.name),
            &[(Message::NewLink(message), 0)],
            None,
        )
    }

    /// Removes a device; `false` if there is none of that name.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(&mut self, name: &str) -> Result<bool, CniError> {
        let Some(link) = self.find(name)? else { return Ok(false) };
        let changes = [(Message::DelLink(at(link.index)), 0)];
        self.change(format!("cannot remove {name}"), &changes, Some(Errno::ENODEV)).map(|()| true)
    }

    /// Addresses of a device, both families.
    ///
    /// # Errors
    /// Code 5.
    pub fn addresses(&mut self, link: &Link) -> Result<Vec<Cidr>, CniError> {
        let found = self.list_addresses(link)?;
        Ok(found.iter().filter_map(|message| address_of(message, link.index)).collect())
    }

    fn list_addresses(&mut self, link: &Link) -> Result<Vec<Message>, CniError> {
        let mut question = AddressMessage::default();
        question.header.index = link.index;
        self.0
            .list(&Message::GetAddress(question))
            .map_err(|error| failed(format!("cannot list the addresses of {}", link.name), &error))
    }

    /// Waits until the kernel has taken note that packets can pass a device; it tells itself later than the devices do.
    ///
    /// # Errors
    /// Code 5: it is gone, or does not come up within ten seconds.
    pub fn wait_ready(&mut self, name: &str) -> Result<Link, CniError> {
        self.wait(|links| Ok(links.find(name)?.filter(|link| link.is_ready)))?.ok_or_else(|| {
            CniError::new(
                Code::Io,
                format!("{name} does not come up"),
                "somebody removed it or set it down meanwhile",
            )
        })
    }

    /// Waits until no address of a device is tentative any more: one that is cannot be used.
    ///
    /// # Errors
    /// Code 5: an address is still tentative after ten seconds.
    pub fn wait_settled(&mut self, link: &Link) -> Result<(), CniError> {
        let settled = self.wait(|links| {
            let tentative = links.list_addresses(link)?.iter().any(|message| match message {
                Message::NewAddress(message) => message.header.index == link.index && is_tentative(message),
                _ => false,
            });
            Ok((!tentative).then_some(()))
        })?;
        settled.ok_or_else(|| {
            let msg = format!("an IPv6 address of {} stays tentative", link.name);
            CniError::new(Code::Io, msg, "the device does not come up, or another one has the address")
        })
    }

    /// Looks until there is something, for ten seconds.
    fn wait<T>(
        &mut self,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, CniError>,
    ) -> Result<Option<T>, CniError> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let found = look(self)?;
            if found.is_some() || begun.elapsed() > PATIENCE {
                return Ok(found);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Gives a device an address.
    ///
    /// # Errors
    /// Code 5. An address that is there is fine.
    pub fn add_address(&mut self, link: &Link, address: Cidr) -> Result<(), CniError> {
        let changes = [(Message::NewAddress(address_message(link, address)), NLM_F_CREATE | NLM_F_EXCL)];
        self.change(format!("cannot add {address} to {}", link.name), &changes, Some(Errno::EEXIST))
    }

    /// Takes an address from a device.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove_address(&mut self, link: &Link, address: Cidr) -> Result<(), CniError> {
        let changes = [(Message::DelAddress(address_message(link, address)), 0)];
        self.change(
            format!("cannot remove {address} from {}", link.name),
            &changes,
            Some(Errno::EADDRNOTAVAIL),
        )
    }

    /// Adds a route out of a device, through `gateway` if there is one.
    ///
    /// # Errors
    /// Code 5. A route that is there is fine.
    pub fn add_route(&mut self, link: &Link, route: &Route, gateway: Option<IpAddr>) -> Result<(), CniError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.dst.addr);
        message.header.destination_prefix_length = route.dst.len;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.header.scope = route.scope.map_or(RouteScope::Universe, RouteScope::from);
        if route.dst.len != 0 {
            let network = route.dst.network().map_or(route.dst.addr, |network| network.addr());
            message.attributes.push(RouteAttribute::Destination(network.into()));
        }
        message.attributes.push(RouteAttribute::Oif(link.index));
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message.attributes.extend(route.priority.map(RouteAttribute::Priority));
        message.attributes.extend(route.table.map(RouteAttribute::Table));
        let metrics: Vec<RouteMetric> = route
            .mtu
            .map(RouteMetric::Mtu)
            .into_iter()
            .chain(route.advmss.map(RouteMetric::Advmss))
            .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        let changes = [(Message::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)];
        self.change(format!("cannot add the route to {}", route.dst), &changes, Some(Errno::EEXIST))
    }

    /// Destinations and gateways of the routes out of a device.
    ///
    /// # Errors
    /// Code 5.
    pub fn routes(&mut self, link: &Link) -> Result<Vec<(Cidr, Option<IpAddr>)>, CniError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let listed = self
                .0
                .list(&Message::GetRoute(question))
                .map_err(|error| failed("cannot list routes".into(), &error))?;
            found.extend(listed.iter().filter_map(|message| route_of(message, link.index)));
        }
        Ok(found)
    }

    /// Carries out changes one after the other; one that is refused with `fine` counts as done.
    fn change(
        &mut self,
        doing: String,
        changes: &[Change<Rtnetlink>],
        fine: Option<Errno>,
    ) -> Result<(), CniError> {
        let outcomes = self.0.write(changes).map_err(|error| failed(doing.clone(), &error))?;
        match outcomes.into_iter().filter_map(Result::err).find(|refusal| Some(refusal.errno) != fine) {
            None => Ok(()),
            Some(refusal) => Err(failed(doing, &refusal.into())),
        }
    }
}

fn failed(doing: String, error: &Error) -> CniError {
    let remedy = match error.errno() {
        Some(Errno::EPERM) => "; plugins need CAP_NET_ADMIN, which the container runtime has",
        Some(Errno::EOPNOTSUPP) => "; this kernel lacks the module",
        _ => "",
    };
    CniError::new(Code::Io, doing, format!("{error}{remedy}"))
}
