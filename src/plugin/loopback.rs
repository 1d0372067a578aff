//! `loopback`: sets the container's own loopback device up.

use super::{Answer, Call, Plugin, container_netns};
use crate::adapter::cni::{Link, Links, enter};
use crate::cni::{Cidr, CniError, Code, Interface, IpConfig, Outcome};

/// See the module.
pub(super) struct Loopback;

/// The device, whatever `CNI_IFNAME` says: the specification's example configuration relies on it.
const DEVICE: &str = "lo";

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<Answer, CniError> {
        let (netns, sandbox) = container_netns(&call.request)?;
        let (link, addresses) = enter(&netns, || {
            let mut links = Links::open()?;
            let link = device(&mut links)?;
            links.set_up(&link)?;
            let addresses = links.addresses(&link)?;
            Ok((link, addresses))
        })?;
        // A result that an earlier plugin of the list returned goes on as it is.
        if let Some(previous) = call.conf.previous()? {
            return Ok(Answer::Outcome(Box::new(previous)));
        }
        let interface = Interface {
            name: DEVICE.to_owned(),
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            sandbox,
            ..Interface::default()
        };
        let ips = addresses.into_iter().map(given).collect();
        Ok(Answer::Outcome(Box::new(Outcome { interfaces: vec![interface], ips, ..Outcome::default() })))
    }

    fn del(&self, _call: &Call) -> Result<(), CniError> {
        // The device goes with its namespace.
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let (netns, _) = container_netns(&call.request)?;
        let link = enter(&netns, || device(&mut Links::open()?))?;
        if link.is_up {
            return Ok(());
        }
        Err(CniError::new(
            Code::CheckFailed,
            "lo of the container is down",
            "somebody set it down; recreate the pod",
        ))
    }

    fn gc(&self, _call: &Call) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _call: &Call) -> Result<(), CniError> {
        Ok(())
    }
}

fn given(address: Cidr) -> IpConfig {
    IpConfig { interface: Some(0), address, gateway: None }
}

fn device(links: &mut Links) -> Result<Link, CniError> {
    links
        .find(DEVICE)?
        .ok_or_else(|| CniError::new(Code::Io, "the container has no lo", "its namespace is broken"))
}
