//! `portmap`: leads ports of the host to a container, behind the plugin that attached it.

use std::net::IpAddr;

use super::{Answer, Call, Plugin};
use crate::adapter::cni::{Links, Rules, settings};
use crate::cni::portmap::{CONTAINERS, PortMap, addresses, table_name};
use crate::cni::{CniError, Code, Outcome};

/// See the module.
pub(super) struct Portmap;

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<Answer, CniError> {
        let conf = PortMap::parse(&call.conf)?;
        let previous = previous(call)?;
        if !conf.mappings.is_empty() {
            let mut rules = Rules::open()?;
            for address in addresses(&previous, &call.request.ifname) {
                let own = conf.rules(&call.request.container_id, address);
                rules.add(&conf.table(address.is_ipv4()), &own)?;
                if conf.snat {
                    let_loopback_out(address)?;
                }
            }
        }
        Ok(Answer::Outcome(Box::new(previous)))
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let conf = PortMap::parse(&call.conf)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let mut rules = Rules::open()?;
        for v4 in [true, false] {
            rules.remove(table_name(v4), &CONTAINERS, &call.request.container_id)?;
        }
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = PortMap::parse(&call.conf)?;
        let previous = previous(call)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let mut rules = Rules::open()?;
        let id = &call.request.container_id;
        for address in addresses(&previous, &call.request.ifname) {
            let (table, wanted) = (table_name(address.is_ipv4()), conf.rules(id, address));
            for chain in CONTAINERS {
                let least = wanted.iter().filter(|(of, _)| *of == chain).count();
                if rules.count(table, chain, id)? < least {
                    return Err(CniError::new(
                        Code::CheckFailed,
                        format!(
                            "rules of container {id} are missing in the chain {chain} of the table {table}"
                        ),
                        "somebody removed them; recreate the pod",
                    ));
                }
            }
        }
        Ok(())
    }

    fn gc(&self, _: &Call) -> Result<(), CniError> {
        // A rule does not say of which network its container is, and the list names containers of one network.
        Ok(())
    }

    fn status(&self, _: &Call) -> Result<(), CniError> {
        let readable = Rules::open().and_then(|mut rules| rules.count(table_name(true), CONTAINERS[0], ""));
        readable.map(drop).map_err(|error| CniError { code: Code::NotAvailable, ..error })
    }
}

fn previous(call: &Call) -> Result<Outcome, CniError> {
    call.conf.previous()?.ok_or_else(|| {
        CniError::new(
            Code::NetworkConfig,
            "portmap must be called as chained plugin: prevResult is missing",
            "name it behind flannel in the list of plugins",
        )
    })
}

/// Lets packets from 127.0.0.1 leave by the device toward the container. IPv6 has no such setting.
fn let_loopback_out(address: IpAddr) -> Result<(), CniError> {
    if address.is_ipv4()
        && let Some(device) = Links::open()?.toward(address)?
    {
        settings::of_device("ipv4", &device, "route_localnet", "1");
    }
    Ok(())
}
