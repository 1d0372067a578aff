//! What is decided at the start and holds for as long as the daemon runs.

use encap::offload::Features;
use encap::{Family, Prefix};

use super::subnet_file::former_networks;
use crate::backend::Backend;
use crate::config::DaemonArgs;
use crate::config::netconf::NetConf;

/// As many queues as CPUs, up to this, unless `Queues` says otherwise.
const USUAL_QUEUES: usize = 8;

/// How this daemon was started. It never changes.
pub(super) struct Setup {
    /// The name of our own Node.
    pub(super) node: String,
    /// The source of leases, in words.
    pub(super) source: String,
    pub(super) args: DaemonArgs,
    pub(super) conf: NetConf,
    pub(super) backend: Backend,
    /// What the data path may use of the kernel's offloads.
    pub(super) offloads: Features,
    /// How many threads the data path has for each direction.
    pub(super) queues: usize,
    /// Networks that the daemon before this one had and we do not.
    pub(super) former: Vec<Prefix>,
}

impl Setup {
    pub(super) fn new(
        node: String,
        source: String,
        args: DaemonArgs,
        conf: NetConf,
        backend: Backend,
        offloads: Features,
    ) -> Self {
        let offloads = if conf.offload { offloads } else { Features::NONE };
        let queues = queues(&conf, offloads);
        let former = former_networks(&args.subnet_file, &conf.networks());
        Self { node, source, args, conf, backend, offloads, queues, former }
    }

    /// Families of pods that are carried.
    pub(super) fn families(&self) -> Vec<Family> {
        self.conf.networks().iter().map(|network| Family::of(network.addr())).collect()
    }
}

fn queues(conf: &NetConf, offloads: Features) -> usize {
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    // The plain device has one.
    if offloads == Features::NONE { 1 } else { conf.queues.unwrap_or_else(|| cpus().min(USUAL_QUEUES)) }
}
