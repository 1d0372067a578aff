//! subnet.env while the daemon runs: whoever removes or edits it, CNI plugins find what is in force. Before, it says
//! which networks there were.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use anyhow::Context as _;
use encap::Prefix;
use tracing::info;

use super::applied::Applied;
use super::concerns::Concerns;
use super::setup::Setup;
use super::spine::Spine;
use crate::adapter::file;
use crate::lease::subnet_env::{Subnet, SubnetEnv};
use crate::report::{Code, Concern, Severity};
use crate::telemetry::metrics::{Metrics, SUBNET_ENV};

/// More than ours ever is.
const LIMIT: u64 = 1 << 16;

/// The networks that a subnet.env names and that are not among `networks`: what the last daemon made for them is left
/// over. Where the file is gone, or is none, nothing is known of them.
pub(super) fn former_networks(path: &Path, networks: &[Prefix]) -> Vec<Prefix> {
    let env = file::read(path, LIMIT).ok().and_then(|text| SubnetEnv::parse(&text).ok()).unwrap_or_default();
    let named = [env.v4, env.v6].into_iter().flatten().map(|subnet| subnet.network);
    named.filter(|former| !networks.iter().any(|network| network.covers(former))).collect()
}

/// The file that CNI plugins read.
pub(super) struct SubnetFile {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    applied: Rc<Applied>,
    metrics: Rc<Metrics>,
    concerns: Concerns,
    /// What was written last.
    written: RefCell<Option<String>>,
}

impl SubnetFile {
    pub(super) fn new(
        setup: Rc<Setup>,
        spine: Rc<Spine>,
        applied: Rc<Applied>,
        metrics: Rc<Metrics>,
        concerns: Concerns,
    ) -> Self {
        Self { setup, spine, applied, metrics, concerns, written: RefCell::default() }
    }

    /// Writes it when its content changed. Pods are created from it, so it comes after the data path.
    pub(super) fn write(&self) {
        let text = self.render();
        if self.written.borrow().as_ref() == Some(&text) {
            return;
        }
        let path = &self.setup.args.subnet_file;
        let written = file::replace(path, &text).context("--subnet-file");
        self.concerns.set(Code::SubnetFile, written.as_ref().err().map(|error| format!("{error:#}")));
        if written.is_ok() {
            info!(path = %path.display(), mtu = self.applied.mtu(), "subnet file is written");
            self.written.replace(Some(text));
        }
    }

    /// What was written last; `None` before the first time.
    pub(super) fn written(&self) -> Option<String> {
        self.written.borrow().clone()
    }

    fn render(&self) -> String {
        let (conf, own) = (&self.setup.conf, self.spine.own_prefixes());
        let family = |network: Option<Prefix>| {
            let network = network?;
            let subnet = own.iter().copied().find(|own| network.covers(own))?;
            Some(Subnet { network, subnet })
        };
        let env = SubnetEnv {
            v4: family(conf.network),
            v6: family(conf.ipv6_network),
            mtu: self.applied.mtu(),
            ip_masq: self.setup.args.ip_masq,
        };
        env.to_string()
    }

    /// Puts it back as it was written last, if it is not like that any more.
    pub(super) fn keep(&self) {
        let written = self.written.borrow();
        let Some(text) = written.as_ref() else { return };
        let path = &self.setup.args.subnet_file;
        let trouble = match file::read(path, LIMIT) {
            Ok(there) if there == *text => None,
            // Without a descriptor to read it nobody knows, but as far as anybody knows it is as it was.
            Err(error) if file::is_exhaustion(&error) => Some((Severity::Degraded, error)),
            Ok(_) | Err(_) => {
                file::replace(path, text).err().map(|error| (Severity::Broken, error)).or_else(|| {
                    self.concerns.happened(format!(
                        "repaired what somebody else had changed: write the subnet file {}",
                        path.display()
                    ));
                    self.metrics.repairs.with_label_values(&[SUBNET_ENV]).inc();
                    None
                })
            }
        };
        match trouble {
            Some((severity, error)) => {
                self.concerns.raise(Concern::new(Code::SubnetFile, format!("{error:#}")).with(severity));
            }
            None => self.concerns.clear(Code::SubnetFile),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_are_no_more_are_read_from_what_the_last_daemon_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subnet.env");
        let networks = |text: &str| text.split(' ').map(|net| net.parse().unwrap()).collect::<Vec<Prefix>>();
        let now = networks("10.244.0.0/16");
        assert_eq!(former_networks(&path, &now), []);
        let v4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n";
        let v6 = "FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n";
        let mtu = "FLANNEL_MTU=1450\n";
        for (text, former) in [
            (format!("{v4}{v6}{mtu}"), networks("fd00:10:244::/56")),
            (format!("{v4}{mtu}"), Vec::new()),
            (format!("{v4}{v6}"), Vec::new()),
            (format!("{v6}{mtu}"), networks("fd00:10:244::/56")),
        ] {
            file::replace(&path, &text).unwrap();
            assert_eq!(former_networks(&path, &now), former, "{text}");
        }
        // Half of it is another network's now.
        file::replace(&path, &format!("{v4}{mtu}")).unwrap();
        assert_eq!(former_networks(&path, &networks("10.244.0.0/17")), now);
    }
}
