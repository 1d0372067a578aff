//! What ADD returns, in the form of each version of the specification.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Cidr, CniError, Code, Version};

/// The result of ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Devices that were made, on the host and in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses that were given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes inside the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution inside the container.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// A device of an [`Outcome`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name of the device.
    pub name: String,
    /// Ethernet address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes, from version 1.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the namespace that it lies in; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of an [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index of its device in [`Outcome::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address and its network's length.
    pub address: Cidr,
    /// The gateway of its network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route, of an [`Outcome`] or of a configuration's `ipam.routes`. Fields are in the order in which libcni prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Gateway; the network's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gw: Option<IpAddr>,
    /// MTU toward the destination, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "zero_is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to advertise, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "zero_is_none")]
    pub advmss: Option<u32>,
    /// Metric.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "zero_is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (`rtm_scope`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route to `dst` with nothing else said.
    pub fn to(dst: Cidr) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name resolution inside the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of resolvers.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains that are tried for short names.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the lines `nameserver`, `domain`, `search` and `options` of a resolv.conf.
    pub fn from_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            let (Some(key), Some(first)) = (words.next(), words.next()) else { continue };
            let all = || std::iter::once(first).chain(words).map(str::to_owned);
            match key {
                "nameserver" => dns.nameservers.push(first.to_owned()),
                "domain" => first.clone_into(&mut dns.domain),
                "search" => dns.search.extend(all()),
                "options" => dns.options.extend(all()),
                _ => {}
            }
        }
        dns
    }
}

impl Outcome {
    /// Reads a delegate's standard output, of any version that is spoken.
    ///
    /// # Errors
    /// Code 6 for something that is no result.
    pub fn parse(output: &[u8]) -> Result<Self, CniError> {
        serde_json::from_slice(output).map_err(|error| {
            CniError::new(Code::Decode, "the delegate's result cannot be read", error.to_string())
        })
    }

    /// The result in the form of `version`.
    pub fn to_json(&self, version: Version) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_else(|_| json!({}));
        let Some(fields) = value.as_object_mut() else { return value };
        fields.insert("cniVersion".into(), version.as_str().into());
        if version < Version::V1_0_0 {
            // Before 1.0.0 each address names its family, and `dns` is always there.
            fields.entry("dns").or_insert_with(|| json!({}));
            for (ip, shown) in self.ips.iter().zip(array(fields.get_mut("ips"))) {
                shown.insert("version".into(), if ip.address.addr.is_ipv4() { "4" } else { "6" }.into());
            }
        }
        if version < Version::V1_1_0 {
            for interface in array(fields.get_mut("interfaces")) {
                interface.remove("mtu");
            }
        }
        value
    }
}

fn array(value: Option<&mut Value>) -> impl Iterator<Item = &mut serde_json::Map<String, Value>> {
    value.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Go prints an absent list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// In Go a number that is 0 is an absent one.
fn zero_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Ok(Option::<u32>::deserialize(deserializer)?.filter(|number| *number != 0))
}

/// Go prints an absent address as an empty string.
fn empty_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text
            .parse::<IpAddr>()
            .map(|addr| Some(addr.to_canonical()))
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is no IP address"))),
    }
}
