//! `bridge`: a pair of devices for each container, one end in it and one on a bridge of the host.

use encap::MacAddr;

use super::worker::Worker;
use super::{Answer, Call, Plugin, container_netns, remaining_netns};
use crate::adapter::cni::{Link, Links, Netns, Pair, enter, settings};
use crate::cni::bridge::{AddressStep, BridgeConf, ensure_address};
use crate::cni::{Cidr, CniError, Code, Command, Interface, Outcome};

/// See the module.
pub(super) struct Bridge;

/// How often a name for the host's end is drawn: among 2^32 names two in a row do not collide by chance.
const DRAWS: usize = 10;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<Answer, CniError> {
        let conf = BridgeConf::parse(&call.conf, &call.request)?;
        if conf.ip_masq {
            return Err(CniError::new(
                Code::UnsupportedField,
                "ipMasq is not supported by the built-in bridge",
                "let the daemon masquerade (--ip-masq), or install the reference plugin `bridge` into the CNI folder",
            ));
        }
        let (netns, sandbox) = container_netns(&call.request)?;
        let ipam = call
            .conf
            .ipam_type()?
            .map(|kind| Worker::find(&kind, call.builtin_first, &call.request))
            .transpose()?;
        let mut host = Links::open()?;
        let bridge = ensure_bridge(&mut host, &conf)?;
        let host_end = connect(&mut host, &bridge, &conf, &netns, &call.request.ifname)?;
        let given = ipam.as_ref().map(|ipam| ipam.add(call)).transpose();
        let made = given.and_then(|given| {
            let attached =
                configured(call, &conf, given, &netns).and_then(|(mut outcome, gateways, container)| {
                    let bridge = ensure_gateways(&mut host, bridge, &conf, &gateways)?;
                    let end = host.wait_ready(&host_end.name)?;
                    outcome.interfaces =
                        vec![shown(&bridge, ""), shown(&end, ""), shown(&container, &sandbox)];
                    Ok(outcome)
                });
            attached.inspect_err(|_| {
                // Best effort, as below. What the address plugin refused is not undone: an earlier ADD may have it.
                if let Some(ipam) = &ipam {
                    let _ = ipam.ask(Command::Del, call, &call.input);
                }
            })
        });
        made.map(|outcome| Answer::Outcome(Box::new(outcome))).inspect_err(|_| {
            // Best effort: the failure of ADD is the one to tell of, and the runtime's DEL tries again.
            let _ = host.remove(&host_end.name);
        })
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        // DEL comes without the namespace, or with one that is gone, when the container died first.
        if let Some(netns) = remaining_netns(&call.request)? {
            enter(&netns, || Links::open()?.remove(&call.request.ifname))?;
        }
        match call.conf.ipam_type()? {
            None => Ok(()),
            Some(kind) => Worker::find(&kind, call.builtin_first, &call.request)?
                .ask(Command::Del, call, &call.input)
                .map(drop),
        }
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = BridgeConf::parse(&call.conf, &call.request)?;
        let previous = call.conf.previous()?.ok_or_else(|| {
            CniError::new(
                Code::NetworkConfig,
                "CHECK needs prevResult",
                "the runtime passes the result of ADD",
            )
        })?;
        if let Some(kind) = call.conf.ipam_type()? {
            Worker::find(&kind, call.builtin_first, &call.request)?.ask(Command::Check, call, &call.input)?;
        }
        let mut host = Links::open()?;
        let bridge = there(&mut host, &conf.bridge)?;
        for interface in previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
            let link = there(&mut host, &interface.name)?;
            if link.index != bridge.index && link.master != Some(bridge.index) {
                return Err(differs(format!("{} is no port of {}", link.name, bridge.name)));
            }
        }
        let (netns, _) = container_netns(&call.request)?;
        enter(&netns, || check_container(&call.request.ifname, &previous))
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        // Devices go with the container's namespace; addresses do not.
        ask_ipam(call, Command::Gc)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        ask_ipam(call, Command::Status)
    }
}

fn ask_ipam(call: &Call, command: Command) -> Result<(), CniError> {
    match call.conf.ipam_type()? {
        None => Ok(()),
        Some(kind) => {
            Worker::find(&kind, call.builtin_first, &call.request)?.ask(command, call, &call.input).map(drop)
        }
    }
}

/// Makes the bridge unless it is there, and sets it up.
fn ensure_bridge(host: &mut Links, conf: &BridgeConf) -> Result<Link, CniError> {
    let name = &conf.bridge;
    let bridge = match host.find(name)? {
        Some(link) => link,
        None => {
            // Another ADD may be faster: then its bridge is ours, too.
            host.make_bridge(name, conf.mtu)?;
            there(host, name)?
        }
    };
    if !bridge.is_bridge {
        return Err(CniError::new(
            Code::NetworkConfig,
            format!("{name:?} already exists but is not a bridge"),
            "remove that device, or name another bridge in the network configuration",
        ));
    }
    if conf.promiscuous {
        host.set_promiscuous(&bridge)?;
    }
    // The routes of this device are ours.
    settings::of_device("ipv6", name, "accept_ra", "0");
    host.set_up(&bridge)?;
    Ok(bridge)
}

/// Makes the pair, and the host's end a port of the bridge.
fn connect(
    host: &mut Links,
    bridge: &Link,
    conf: &BridgeConf,
    netns: &Netns,
    ifname: &str,
) -> Result<Link, CniError> {
    if enter(netns, || Links::open()?.find(ifname))?.is_some() {
        return Err(CniError::new(
            Code::NetworkConfig,
            format!("container veth name ({ifname:?}) already exists"),
            "the runtime has to DEL an attachment before it ADDs it again",
        ));
    }
    for _ in 0..DRAWS {
        let name = format!("veth{:08x}", fastrand::u32(..));
        let pair = Pair { host: &name, container: ifname, netns: netns.fd(), mtu: conf.mtu, mac: conf.mac };
        if host.make_pair(&pair)? {
            let end = there(host, &name)?;
            host.attach(&end, bridge.index, conf.hairpin, conf.isolated).inspect_err(|_| {
                // Best effort: the failure to attach it is the one to tell of.
                let _ = host.remove(&name);
            })?;
            return Ok(end);
        }
    }
    Err(CniError::new(
        Code::Io,
        "no name is free for the host's end of the pair",
        "remove veth devices that nobody uses",
    ))
}

/// Gives the container's end the addresses and routes that were given; what the bridge has to have for them.
fn configured(
    call: &Call,
    conf: &BridgeConf,
    given: Option<Outcome>,
    netns: &Netns,
) -> Result<(Outcome, Vec<Cidr>, Link), CniError> {
    let ifname = &call.request.ifname;
    let Some(mut outcome) = given else {
        let link = enter(netns, || {
            let mut links = Links::open()?;
            let link = there(&mut links, ifname)?;
            links.set_up(&link)?;
            Ok(link)
        })?;
        return Ok((Outcome { dns: conf.dns.clone(), ..Outcome::default() }, Vec::new(), link));
    };
    let gateways = conf.complete(&mut outcome)?;
    let link = enter(netns, || configure(ifname, conf, &outcome))?;
    Ok((outcome, gateways, link))
}

/// Inside the container.
fn configure(ifname: &str, conf: &BridgeConf, outcome: &Outcome) -> Result<Link, CniError> {
    let mut links = Links::open()?;
    let link = there(&mut links, ifname)?;
    if outcome.ips.iter().any(|ip| ip.address.addr.is_ipv6()) {
        settings::allow_ipv6(ifname)?;
        // Nobody else has the address: it was reserved. A probe would only delay the container's first packets.
        settings::of_device("ipv6", ifname, "accept_dad", if conf.duplicate_detection { "1" } else { "0" });
    }
    // Neighbours that knew the address before learn of its new device at once.
    settings::of_device("ipv4", ifname, "arp_notify", "1");
    for ip in &outcome.ips {
        links.add_address(&link, ip.address)?;
    }
    links.set_up(&link)?;
    for route in &outcome.routes {
        let same_family = |gateway: &std::net::IpAddr| gateway.is_ipv4() == route.dst.addr.is_ipv4();
        let default = || outcome.ips.iter().filter_map(|ip| ip.gateway).find(same_family);
        links.add_route(&link, route, route.gw.or_else(default))?;
    }
    if outcome.ips.iter().any(|ip| ip.address.addr.is_ipv6()) {
        links.wait_settled(&link)?;
    }
    Ok(link)
}

/// Gives the bridge the gateways' addresses, pins its Ethernet address and turns forwarding on.
fn ensure_gateways(
    host: &mut Links,
    bridge: Link,
    conf: &BridgeConf,
    gateways: &[Cidr],
) -> Result<Link, CniError> {
    if gateways.is_empty() {
        return there(host, &conf.bridge);
    }
    let has = host.addresses(&bridge)?;
    for gateway in gateways {
        match ensure_address(&conf.bridge, &has, *gateway, conf.force_address)? {
            AddressStep::Keep => {}
            AddressStep::Add => host.add_address(&bridge, *gateway)?,
            AddressStep::Replace(other) => {
                host.remove_address(&bridge, other)?;
                host.add_address(&bridge, *gateway)?;
            }
        }
        settings::forward(gateway.addr.is_ipv4())?;
    }
    // A bridge takes the lowest address of its ports until it is given one, and containers would have to learn each.
    let mac = bridge.mac.filter(|mac| mac.0 != [0; 6]).unwrap_or_else(random_mac);
    host.set_mac(&bridge, mac)?;
    Ok(Link { mac: Some(mac), ..bridge })
}

/// A random address of one device, administered locally (IEEE 802).
fn random_mac() -> MacAddr {
    let mut bytes: [u8; 6] = std::array::from_fn(|_| fastrand::u8(..));
    bytes[0] = bytes[0] & 0xfe | 0x02;
    MacAddr(bytes)
}

/// Whether the container still has what ADD gave it.
fn check_container(ifname: &str, previous: &Outcome) -> Result<(), CniError> {
    let mut links = Links::open()?;
    let link = there(&mut links, ifname)?;
    let has = links.addresses(&link)?;
    if let Some(ip) = previous.ips.iter().find(|ip| !has.contains(&ip.address)) {
        return Err(differs(format!("{ifname} of the container does not have {}", ip.address)));
    }
    let routes = links.routes(&link)?;
    let missing = previous.routes.iter().find(|route| {
        let dst = route.dst.network().map_or(route.dst, Cidr::from);
        !routes.iter().any(|(to, via)| *to == dst && (route.gw.is_none() || *via == route.gw))
    });
    match missing {
        None => Ok(()),
        Some(route) => Err(differs(format!("the container has no route to {}", route.dst))),
    }
}

fn there(links: &mut Links, name: &str) -> Result<Link, CniError> {
    links.find(name)?.ok_or_else(|| differs(format!("the device {name} is not there")))
}

fn differs(msg: String) -> CniError {
    CniError::new(Code::CheckFailed, msg, "somebody removed it; recreate the pod")
}

fn shown(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}
