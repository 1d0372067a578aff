//! `bridge`: what the host's bridge and the container's device should be, computed from the configuration and the
//! addresses that were given.

use std::collections::BTreeSet;
use std::net::IpAddr;

use encap::{MacAddr, Prefix};
use serde::Deserialize;

use super::{Cidr, CniError, Code, Dns, NetConf, Outcome, Request, Route};

/// Index of the container's device in the result's interfaces, behind the bridge and the host's end.
pub const CONTAINER: usize = 2;

/// The plugin's own fields of a network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConf {
    /// `bridge`: name of the bridge.
    pub bridge: String,
    /// `isGateway`, which `isDefaultGateway` implies: the bridge has the gateway's addresses.
    pub is_gateway: bool,
    /// `isDefaultGateway`: the container's default route leads to the bridge.
    pub is_default_gateway: bool,
    /// `forceAddress`: another address of the bridge in the same network is replaced.
    pub force_address: bool,
    /// `ipMasq`: packets that leave the network are masqueraded.
    pub ip_masq: bool,
    /// `mtu` in bytes; `None` for the kernel's.
    pub mtu: Option<u32>,
    /// `hairpinMode`: a packet may leave by the port that it came in by.
    pub hairpin: bool,
    /// `promiscMode`: the bridge is promiscuous.
    pub promiscuous: bool,
    /// `portIsolation`: isolated ports do not reach each other.
    pub isolated: bool,
    /// `enabledad`: IPv6 addresses are probed before they are used.
    pub duplicate_detection: bool,
    /// `runtimeConfig.mac`, else `args.cni.mac`, else `MAC` of `CNI_ARGS`.
    pub mac: Option<MacAddr>,
    /// `dns`, which wins over what the address plugin says.
    pub dns: Dns,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<serde_json::Value>>,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    dns: Dns,
    args: Args,
    runtime_config: Mac,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            bridge: "cni0".into(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            port_isolation: false,
            vlan: 0,
            vlan_trunk: None,
            macspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            dns: Dns::default(),
            args: Args::default(),
            runtime_config: Mac::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Mac,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mac {
    mac: String,
}

impl BridgeConf {
    /// Reads the plugin's fields.
    ///
    /// # Errors
    /// Code 6 for a field of another form, 7 for fields that contradict each other, 2 for what this plugin cannot do.
    pub fn parse(conf: &NetConf, request: &Request) -> Result<Self, CniError> {
        let fields: Fields = serde_json::from_value(conf.fields.clone().into()).map_err(|error| {
            CniError::new(Code::Decode, "the configuration of the bridge cannot be read", error.to_string())
        })?;
        fields.refuse()?;
        let by_env = request.arg("MAC").unwrap_or_default();
        let macs = [fields.runtime_config.mac.as_str(), fields.args.cni.mac.as_str(), by_env];
        let mac = macs.into_iter().find(|mac| !mac.is_empty()).map(|text| {
            text.parse::<MacAddr>().map_err(|error| {
                CniError::new(
                    Code::NetworkConfig,
                    format!("the requested MAC {text:?} cannot be used"),
                    error.to_string(),
                )
            })
        });
        Ok(Self {
            bridge: fields.bridge,
            is_gateway: fields.is_gateway || fields.is_default_gateway,
            is_default_gateway: fields.is_default_gateway,
            force_address: fields.force_address,
            ip_masq: fields.ip_masq,
            mtu: Some(fields.mtu).filter(|mtu| *mtu != 0),
            hairpin: fields.hairpin_mode,
            promiscuous: fields.promisc_mode,
            isolated: fields.port_isolation,
            duplicate_detection: fields.enabledad,
            mac: mac.transpose()?,
            dns: fields.dns,
        })
    }

    /// Completes what the address plugin returned: gateways, default routes, the device of each address. Returns the
    /// addresses that the bridge has to have.
    ///
    /// # Errors
    /// Code 7 for an address plugin that gave no address.
    pub fn complete(&self, outcome: &mut Outcome) -> Result<Vec<Cidr>, CniError> {
        if outcome.ips.is_empty() {
            return Err(CniError::new(
                Code::NetworkConfig,
                "the address plugin gave no address",
                "see its configuration under \"ipam\"",
            ));
        }
        let mut gateways = Vec::new();
        let mut routed = BTreeSet::new();
        for ip in &mut outcome.ips {
            ip.interface = Some(CONTAINER);
            if ip.gateway.is_none() && self.is_gateway {
                ip.gateway = gateway_of(ip.address);
            }
            let default = Cidr::default_of(ip.address.addr);
            if self.is_default_gateway && routed.insert(default) {
                let there = outcome.routes.iter().any(|route| route.gw.is_some() && route.dst == default);
                if !there {
                    outcome.routes.push(Route { gw: ip.gateway, ..Route::to(default) });
                }
            }
            if let Some(gateway) = ip.gateway.filter(|_| self.is_gateway) {
                gateways.push(Cidr { addr: gateway, len: ip.address.len });
            }
        }
        if !self.dns.is_empty() {
            outcome.dns = self.dns.clone();
        }
        Ok(gateways)
    }
}

impl Fields {
    /// What cannot be, and what this plugin does not do.
    fn refuse(&self) -> Result<(), CniError> {
        if self.hairpin_mode && self.promisc_mode {
            return Err(CniError::new(
                Code::NetworkConfig,
                "hairpinMode and promiscMode are both set",
                "a promiscuous bridge returns each packet itself: remove one of the two",
            ));
        }
        let unknown = [
            ("vlan", self.vlan != 0),
            ("vlanTrunk", self.vlan_trunk.is_some()),
            ("macspoofchk", self.macspoofchk),
            ("disableContainerInterface", self.disable_container_interface),
        ];
        match unknown.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((field, _)) => Err(CniError::new(
                Code::UnsupportedField,
                format!("{field} is not supported by the built-in bridge"),
                "install the reference plugin `bridge` into the CNI folder; it is used where it is there",
            )),
        }
    }
}

/// The first host address of the network.
fn gateway_of(address: Cidr) -> Option<IpAddr> {
    address.network().ok().and_then(|network| network.nth(1))
}

/// What stands between an address that the bridge has and one that it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressStep {
    /// The wanted address is there already.
    Keep,
    /// The wanted address is added beside what is there.
    Add,
    /// This one is in the way and has to go first.
    Replace(Cidr),
}

/// How the bridge comes to have `wanted`, of those that it has. IPv4 addresses and overlapping IPv6 networks exclude each
/// other, as in the reference plugin.
///
/// # Errors
/// Code 7: another address is in the way and `force` is not set.
pub fn ensure_address(
    bridge: &str,
    has: &[Cidr],
    wanted: Cidr,
    force: bool,
) -> Result<AddressStep, CniError> {
    if has.contains(&wanted) {
        return Ok(AddressStep::Keep);
    }
    let network = wanted.network().ok();
    let clashes = |other: &&Cidr| {
        let same_family = other.addr.is_ipv4() == wanted.addr.is_ipv4();
        let overlap = || {
            let theirs: Option<Prefix> = other.network().ok();
            network
                .zip(theirs)
                .is_some_and(|(ours, theirs)| ours.contains(other.addr) || theirs.contains(wanted.addr))
        };
        // Every IPv6 device has a link-local address.
        let link_local = matches!(other.addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
        same_family && !link_local && (wanted.addr.is_ipv4() || overlap())
    };
    match has.iter().find(clashes) {
        None => Ok(AddressStep::Add),
        Some(other) if force => Ok(AddressStep::Replace(*other)),
        Some(other) => Err(CniError::new(
            Code::NetworkConfig,
            format!("{bridge:?} already has an IP address different from {wanted}"),
            format!(
                "it has {other}, most likely of an earlier podCIDR: drain the node and `ip link delete {bridge}`, or set \"forceAddress\": true"
            ),
        )),
    }
}
