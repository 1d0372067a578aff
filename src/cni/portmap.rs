//! `portmap`: ports of the host that lead to a container, as rules of nftables. Tables, chains and rules are those of the
//! reference plugin's `nftables` backend.

use std::net::IpAddr;

use serde::Deserialize;

use super::{CniError, Code, NetConf, Outcome};
use crate::tables::{
    AddressType, Base, Chain, Family, Hook, NatFlags, Rule, Table, TableName, Transport, daddr, daddr_type,
    dnat, dport, jump, masquerade, priority, rule, saddr,
};

/// The chains in which each container has rules of its own. Older plugins used the last.
pub const CONTAINERS: [&str; 3] = [HOST_PORTS, MASQUERADING, WITH_HOST_IP];

/// The only `backend` that is served.
const NFTABLES: &str = "nftables";

const HOST_PORTS: &str = "hostports";
const MASQUERADING: &str = "masquerading";
const WITH_HOST_IP: &str = "hostip_hostports";
const ALL: &str = "hostports_all";

/// The table of an address family.
pub const fn table_name(v4: bool) -> TableName {
    TableName { family: if v4 { Family::Ip } else { Family::Ip6 }, name: "cni_hostport" }
}

/// The plugin's own fields of a network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMap {
    /// `snat`: packets that come back to the container they are from, or are from 127.0.0.1, are masqueraded.
    pub snat: bool,
    /// `runtimeConfig.portMappings`.
    pub mappings: Vec<Mapping>,
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The host's.
    pub host_port: u16,
    /// The container's.
    pub container_port: u16,
    /// Of which protocol.
    pub protocol: Transport,
    /// The only address of the host for which this holds.
    pub host_ip: Option<IpAddr>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Runtime {
    port_mappings: Option<Vec<Written>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

impl PortMap {
    /// Reads the plugin's fields.
    ///
    /// # Errors
    /// Code 6 for a field of another form, 7 for a port, protocol or address that is none, 2 for what only the reference
    /// plugin does.
    pub fn parse(conf: &NetConf) -> Result<Self, CniError> {
        refuse(conf)?;
        let runtime: Runtime = conf.field("runtimeConfig")?.unwrap_or_default();
        let written = runtime.port_mappings.unwrap_or_default();
        let mappings = written.iter().map(mapping).collect::<Result<_, _>>()?;
        Ok(Self { snat: conf.field("snat")?.unwrap_or(true), mappings })
    }

    /// The table of an address family without what is in it for containers.
    pub fn table(&self, v4: bool) -> Table {
        let local = || vec![rule([daddr_type().is(AddressType::Local), jump(ALL)])];
        let mut chains = vec![
            Chain::regular(HOST_PORTS, Vec::new()),
            Chain::regular(WITH_HOST_IP, Vec::new()),
            Chain::regular(ALL, vec![rule([jump(WITH_HOST_IP)]), rule([jump(HOST_PORTS)])]),
            Chain::base("prerouting", Base::nat(Hook::Prerouting, priority::DSTNAT), local()),
            Chain::base("output", Base::nat(Hook::Output, priority::DSTNAT), local()),
        ];
        if self.snat {
            let base = Base::nat(Hook::Postrouting, priority::SRCNAT);
            chains.push(Chain::base(MASQUERADING, base, Vec::new()));
        }
        Table { comment: Some("CNI portmap plugin"), chains, ..Table::new(table_name(v4)) }
    }

    /// The rules for a container with this address, each with its chain.
    pub fn rules(&self, container_id: &str, address: IpAddr) -> Vec<(&'static str, Rule)> {
        let family = if address.is_ipv4() { encap::Family::V4 } else { encap::Family::V6 };
        let mut rules = Vec::new();
        for mapping in self.of_family(address) {
            let to_host = mapping.host_ip.filter(|ip| !ip.is_unspecified()).map(|ip| daddr(family).is(ip));
            let statements =
                [dport(mapping.protocol).is(mapping.host_port), dnat(address, Some(mapping.container_port))];
            rules.push((HOST_PORTS, rule(to_host.into_iter().chain(statements))));
        }
        if self.snat {
            let loopback = address.is_ipv4().then(|| IpAddr::from([127, 0, 0, 1]));
            for source in [Some(address), loopback].into_iter().flatten() {
                let statements =
                    [saddr(family).is(source), daddr(family).is(address), masquerade(NatFlags::default())];
                rules.push((MASQUERADING, rule(statements)));
            }
        }
        rules.into_iter().map(|(chain, rule)| (chain, rule.comment(container_id.to_owned()))).collect()
    }

    fn of_family(&self, address: IpAddr) -> impl Iterator<Item = &Mapping> {
        self.mappings
            .iter()
            .filter(move |mapping| mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == address.is_ipv4()))
    }
}

/// The container's first address of each family, IPv4 first. Addresses of other devices do not count.
pub fn addresses(previous: &Outcome, ifname: &str) -> Vec<IpAddr> {
    let of_container = |index: Option<usize>| {
        let interface = index.and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    };
    let own = || previous.ips.iter().filter(|ip| of_container(ip.interface)).map(|ip| ip.address.addr);
    [own().find(IpAddr::is_ipv4), own().find(IpAddr::is_ipv6)].into_iter().flatten().collect()
}

/// What only the reference plugin does.
fn refuse(conf: &NetConf) -> Result<(), CniError> {
    let writes_to: Option<String> = conf.field("backend")?;
    let words: Option<Vec<String>> = conf.field("conditionsV4")?;
    let words6: Option<Vec<String>> = conf.field("conditionsV6")?;
    let has = |words: &Option<Vec<String>>| words.as_ref().is_some_and(|words| !words.is_empty());
    let refused = [
        ("backend: iptables", writes_to.is_some_and(|to| to != NFTABLES)),
        ("conditionsV4", has(&words)),
        ("conditionsV6", has(&words6)),
        ("externalSetMarkChain", conf.fields.contains_key("externalSetMarkChain")),
    ];
    match refused.into_iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((field, _)) => Err(CniError::new(
            Code::UnsupportedField,
            format!("{field} is not supported by the built-in portmap"),
            "it writes rules of nftables only: remove the field, or install the reference plugin `portmap`",
        )),
    }
}

fn mapping(written: &Written) -> Result<Mapping, CniError> {
    let bad = |what: &str, value: &str| {
        CniError::new(
            Code::NetworkConfig,
            format!("{what} {value:?} of portMappings cannot be used"),
            "correct it in the pod: a port is 1 to 65535, a protocol tcp, udp or sctp",
        )
    };
    let port = |what: &str, number: i64| {
        u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| bad(what, &number.to_string()))
    };
    let host_ip = match written.host_ip.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| bad("hostIP", text))?.to_canonical()),
    };
    Ok(Mapping {
        host_port: port("hostPort", written.host_port)?,
        container_port: port("containerPort", written.container_port)?,
        protocol: match written.protocol.to_ascii_lowercase().as_str() {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            other => return Err(bad("protocol", other)),
        },
        host_ip,
    })
}
