//! `host-local`: gives each container an address of this node's ranges.

use std::path::Path;

use super::{Answer, Call, Plugin};
use crate::adapter::cni::{self as effects, Store};
use crate::cni::host_local::HostLocal as Conf;
use crate::cni::{Attachment, Cidr, CniError, Code, Dns, IpConfig, Outcome};

/// See the module.
pub(super) struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, call: &Call) -> Result<Answer, CniError> {
        let conf = Conf::parse(&call.conf, &call.request)?;
        let dns = match &conf.resolv_conf {
            None => Dns::default(),
            Some(path) => Dns::from_resolv_conf(&String::from_utf8_lossy(&effects::read(Path::new(path))?)),
        };
        let requests = conf.requests()?;
        let attachment = attachment(call);
        let store = Store::open(&conf.data_dir, &call.conf.name)?;
        // Looked for before anything is reserved, so that what is freed after a failure is what this ADD reserved.
        let held = store.addresses(&attachment)?;
        if let Some(ip) = held.iter().find(|ip| conf.sets.iter().any(|set| set.range_of(**ip).is_some())) {
            return Err(CniError::new(
                Code::NetworkConfig,
                format!(
                    "{ip} has been allocated to {}, duplicate allocation is not allowed",
                    attachment.container_id
                ),
                "the runtime has to DEL an attachment before it ADDs it again",
            ));
        }
        let ips = allocate(&conf, &requests, &store, &attachment).inspect_err(|_| {
            // Best effort: the failure of ADD is the one to tell of, and the runtime's DEL tries again.
            let _ = store.release(&attachment);
        })?;
        Ok(Answer::Outcome(Box::new(Outcome { ips, routes: conf.routes, dns, ..Outcome::default() })))
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let conf = Conf::parse(&call.conf, &call.request)?;
        Store::open(&conf.data_dir, &call.conf.name)?.release(&attachment(call))
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = Conf::parse(&call.conf, &call.request)?;
        let attachment = attachment(call);
        if !Store::open(&conf.data_dir, &call.conf.name)?.addresses(&attachment)?.is_empty() {
            return Ok(());
        }
        Err(CniError::new(
            Code::CheckFailed,
            format!(
                "no address is reserved for {} of container {}",
                attachment.ifname, attachment.container_id
            ),
            format!("somebody removed the reservation below {}; recreate the pod", conf.data_dir),
        ))
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let conf = Conf::parse(&call.conf, &call.request)?;
        let valid = call.conf.valid_attachments()?;
        Store::open(&conf.data_dir, &call.conf.name)?.collect(&valid)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let conf = Conf::parse(&call.conf, &call.request)?;
        Store::open(&conf.data_dir, &call.conf.name)
            .map(drop)
            .map_err(|error| CniError { code: Code::NotAvailable, ..error })
    }
}

fn attachment(call: &Call) -> Attachment {
    Attachment { container_id: call.request.container_id.clone(), ifname: call.request.ifname.clone() }
}

/// One address of each set: the requested one, else the next that is free.
fn allocate(
    conf: &Conf,
    requests: &[Option<std::net::IpAddr>],
    store: &Store,
    attachment: &Attachment,
) -> Result<Vec<IpConfig>, CniError> {
    let mut ips = Vec::new();
    for (index, (set, request)) in conf.sets.iter().zip(requests).enumerate() {
        let mut given = None;
        if let Some(ip) = request {
            if store.reserve(attachment, *ip, index)? {
                given = set.range_of(*ip).map(|range| (*ip, range));
            }
        } else {
            for (ip, range) in set.candidates(store.last(index)?) {
                if store.reserve(attachment, ip, index)? {
                    given = Some((ip, range));
                    break;
                }
            }
        }
        let (ip, range) = given.ok_or_else(|| match request {
            Some(ip) => CniError::new(
                Code::NetworkConfig,
                format!("failed to allocate for range {index}: requested IP address {ip} is not available in range set {set}"),
                "another container has it",
            ),
            None => CniError::new(
                Code::TryLater,
                format!("failed to allocate for range {index}: no IP addresses available in range set: {set}"),
                "every address is reserved: run fewer pods on this node, give nodes larger podCIDRs, or let the runtime GC",
            ),
        })?;
        ips.push(IpConfig {
            interface: None,
            address: Cidr { addr: ip, len: range.subnet.len() },
            gateway: Some(range.gateway),
        });
    }
    Ok(ips)
}
