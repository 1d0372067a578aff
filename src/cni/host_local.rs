//! `host-local`: which address a container gets from the ranges of this node.
//!
//! The choice goes round: it begins behind the address that was given last, so that an address rests as long as possible
//! before somebody else has it. Files and locks are the adapter's business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::Prefix;
use serde::Deserialize;

use super::{CniError, Code, NetConf, Request, Route};

/// Where reservations are kept unless the configuration names another folder.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// `ipam` of a network configuration that names `host-local`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLocal {
    /// One address is given from each set.
    pub sets: Vec<RangeSet>,
    /// Routes for the container.
    pub routes: Vec<Route>,
    /// `dataDir`.
    pub data_dir: String,
    /// `resolvConf`: a file whose resolvers the container gets.
    pub resolv_conf: Option<String>,
    /// Addresses that somebody asked for.
    pub requested: Vec<IpAddr>,
}

/// Ranges of one family; an address comes from any of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// Consecutive addresses of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The network.
    pub subnet: Prefix,
    /// First address that may be given.
    pub first: IpAddr,
    /// Last address that may be given.
    pub last: IpAddr,
    /// The gateway, which is never given.
    pub gateway: IpAddr,
}

/// A range as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    #[serde(flatten)]
    single: Written,
    ranges: Option<Vec<Vec<Written>>>,
    routes: Option<Vec<Route>>,
    data_dir: String,
    resolv_conf: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Runtime {
    ip_ranges: Option<Vec<Vec<Written>>>,
    ips: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Option<CniArgs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Option<Vec<String>>,
}

impl HostLocal {
    /// Reads `ipam`, `runtimeConfig` and `args` of the configuration, and `IP` of `CNI_ARGS`.
    ///
    /// # Errors
    /// Code 6 for a field of another form, 7 for ranges that contradict each other or themselves.
    pub fn parse(conf: &NetConf, request: &Request) -> Result<Self, CniError> {
        let ipam: Ipam = conf.field("ipam")?.ok_or_else(|| wrong("IPAM config missing 'ipam' key", ""))?;
        let runtime: Runtime = conf.field("runtimeConfig")?.unwrap_or_default();
        let args: Args = conf.field("args")?.unwrap_or_default();
        let by_env = request.arg("IP").filter(|ip| !ip.is_empty()).map(str::to_owned);
        let asked = by_env
            .into_iter()
            .chain(args.cni.and_then(|cni| cni.ips).unwrap_or_default())
            .chain(runtime.ips.unwrap_or_default());
        let requested = asked.map(|text| requested(&text)).collect::<Result<_, _>>()?;
        // A single range in the old form goes before the list, and what the runtime wants before both.
        let single = ipam.single.subnet.is_some().then(|| vec![ipam.single]);
        let written = runtime
            .ip_ranges
            .unwrap_or_default()
            .into_iter()
            .chain(single)
            .chain(ipam.ranges.unwrap_or_default());
        let sets: Vec<RangeSet> = written
            .enumerate()
            .map(|(index, set)| {
                RangeSet::read(&set)
                    .map_err(|reason| wrong(format!("ipam: range set {index} cannot be used"), reason))
            })
            .collect::<Result<_, _>>()?;
        if sets.is_empty() {
            return Err(wrong(
                "ipam names no ranges",
                "write \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]",
            ));
        }
        for (index, set) in sets.iter().enumerate() {
            if let Some(other) = sets.iter().skip(index + 1).position(|other| set.overlaps(other)) {
                let msg = format!("ipam: range set {index} overlaps with {}", index + 1 + other);
                return Err(wrong(msg, "an address may be in one set only"));
            }
        }
        let data_dir = if ipam.data_dir.is_empty() { DEFAULT_DATA_DIR.to_owned() } else { ipam.data_dir };
        Ok(Self {
            sets,
            routes: ipam.routes.unwrap_or_default(),
            data_dir,
            resolv_conf: Some(ipam.resolv_conf).filter(|path| !path.is_empty()),
            requested,
        })
    }

    /// For each set the address that was asked for, if one was.
    ///
    /// # Errors
    /// Code 7 for an address that is in none of the sets, a second one of the same set, or a gateway.
    pub fn requests(&self) -> Result<Vec<Option<IpAddr>>, CniError> {
        let mut left = self.requested.clone();
        let mut found = Vec::new();
        for set in &self.sets {
            let at = left.iter().position(|ip| set.range_of(*ip).is_some());
            let ip = at.map(|at| left.remove(at));
            left.retain(|other| Some(*other) != ip);
            if let Some((ip, _)) =
                ip.and_then(|ip| Some((ip, set.range_of(ip)?))).filter(|(ip, range)| *ip == range.gateway)
            {
                return Err(wrong(
                    format!("requested ip {ip} is subnet's gateway"),
                    "ask for another address",
                ));
            }
            found.push(ip);
        }
        if left.is_empty() {
            return Ok(found);
        }
        let ips: Vec<String> = left.iter().map(ToString::to_string).collect();
        Err(wrong(
            format!("failed to allocate all requested IPs: {}", ips.join(" ")),
            "each has to lie in a range set of its own",
        ))
    }
}

impl RangeSet {
    fn read(written: &[Written]) -> Result<Self, String> {
        let ranges: Vec<Range> = written.iter().map(Range::read).collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else { return Err("it is empty".into()) };
        if ranges.iter().any(|range| range.subnet.is_ipv4() != first.subnet.is_ipv4()) {
            return Err("it mixes IPv4 and IPv6".into());
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(index + 1).find(|other| range.overlaps(other)) {
                return Err(format!("its ranges {range} and {other} overlap"));
            }
        }
        Ok(Self(ranges))
    }

    /// The range that holds `ip`.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|other| range.overlaps(other)))
    }

    /// The addresses that may be given, each once, in the order in which they are tried: from behind `last`, the one that
    /// was given last, round to it. Without one, or with one that is in no range any more, from the first.
    pub fn candidates(&self, last: Option<IpAddr>) -> Candidates<'_> {
        let after = last.and_then(|last| {
            let at = self.0.iter().position(|range| range.contains(last))?;
            Some((at, last))
        });
        let first = || self.0.first().map(|range| (0, range.first));
        let (next, stop) = match after {
            Some((at, ip)) => (self.behind(at, ip), Some((at, ip))),
            None => (first(), None),
        };
        Candidates { set: self, next, stop, start: next, begun: false }
    }

    /// The place behind an address of a range: the next address, or the first of the next range.
    fn behind(&self, at: usize, ip: IpAddr) -> Option<(usize, IpAddr)> {
        let range = self.0.get(at)?;
        if ip != range.last {
            return Some((at, up(ip)));
        }
        let at = (at + 1) % self.0.len();
        Some((at, self.0.get(at)?.first))
    }
}

impl std::fmt::Display for RangeSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

/// See [`RangeSet::candidates`].
#[derive(Debug)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    next: Option<(usize, IpAddr)>,
    /// The address that was given last: it is tried last.
    stop: Option<(usize, IpAddr)>,
    start: Option<(usize, IpAddr)>,
    begun: bool,
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (IpAddr, &'a Range);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let place = self.next?;
            if std::mem::replace(&mut self.begun, true) && Some(place) == self.start {
                return None;
            }
            self.next = if Some(place) == self.stop { None } else { self.set.behind(place.0, place.1) };
            let range = self.set.0.get(place.0)?;
            if place.1 != range.gateway {
                return Some((place.1, range));
            }
        }
    }
}

impl Range {
    fn read(written: &Written) -> Result<Self, String> {
        let Some(text) = &written.subnet else { return Err("a range has no \"subnet\"".into()) };
        let subnet: Prefix = text.parse().map_err(|error: encap::PrefixError| error.to_string())?;
        let given = text
            .split('/')
            .next()
            .and_then(|addr| addr.parse::<IpAddr>().ok())
            .map(|addr| addr.to_canonical());
        if given != Some(subnet.addr()) {
            return Err(format!("{text} has host bits set; the network is {subnet}"));
        }
        if subnet.nth(3).is_none() {
            return Err(format!("{subnet} is too small to allocate from"));
        }
        let inside = |key: &str, text: &Option<String>| {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let ip = text
                .parse::<IpAddr>()
                .map_err(|_| format!("{key} {text:?} is no IP address"))?
                .to_canonical();
            if subnet.contains(ip) { Ok(Some(ip)) } else { Err(format!("{key} {ip} is not in {subnet}")) }
        };
        let first_host = subnet.nth(1).unwrap_or(subnet.addr());
        // The last address of an IPv4 network is its broadcast address.
        let last_host = if subnet.is_ipv4() { down(subnet.last()) } else { subnet.last() };
        let gateway = inside("gateway", &written.gateway)?.unwrap_or(first_host);
        let first = inside("rangeStart", &written.range_start)?.unwrap_or(first_host);
        let last = inside("rangeEnd", &written.range_end)?.unwrap_or(last_host);
        if first > last {
            return Err(format!("rangeStart {first} is behind rangeEnd {last}"));
        }
        Ok(Self { subnet, first, last, gateway })
    }

    /// Whether `ip` may be given from this range. An IPv4 address never lies between IPv6 addresses, nor the other way.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && self.first <= ip && ip <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The next address; the caller knows that there is one.
fn up(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_add(1)).into(),
    }
}

/// The address before; the caller knows that there is one.
fn down(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().wrapping_sub(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_sub(1)).into(),
    }
}

/// An address that somebody asked for; a prefix length behind it is allowed and says nothing.
fn requested(text: &str) -> Result<IpAddr, CniError> {
    let addr = text.split('/').next().unwrap_or_default();
    addr.parse::<IpAddr>()
        .map(|addr| addr.to_canonical())
        .map_err(|_| wrong(format!("the requested address {text:?} is no IP address"), ""))
}

fn wrong(msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError::new(Code::NetworkConfig, msg, details)
}
