//! The one wiring place: builds parts and adapters, spawns the loops, and ends them in order.

mod applied;
mod checksum;
mod choose_backend;
mod concerns;
mod data_path;
mod flow;
mod forwarding;
mod gauges;
mod goal;
mod interface;
mod kubernetes;
mod leases;
mod map_report;
mod memory;
mod own_node;
mod pace;
mod parts;
mod passes;
mod pods;
mod restarts;
mod roaming;
mod serve;
mod setup;
mod spine;
mod subnet_file;
mod table;
mod traffic;
mod underlay;

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use self::applied::Applied;
use self::flow::Flow;
use self::forwarding::{Forwarding, Tunnel};
use self::gauges::Doors;
use self::interface::Search;
use self::memory::{Memory, Recalling};
use self::parts::Parts;
use self::passes::PassReport;
use self::roaming::Roaming;
use self::serve::{Admin, Local};
use self::setup::Setup;
use crate::adapter::firewall::Firewall;
use crate::adapter::kernel::LinuxKernel;
use crate::adapter::kube::{KubeNodes, KubePods};
use crate::adapter::lock::RunLock;
use crate::adapter::nodes_file::NodesFile;
use crate::adapter::tasks::{self, Cause, Ends, Tasks};
use crate::adapter::{control, file, http, interfaces, sysctl};
use crate::config::netconf::NetConf;
use crate::config::{LeaseSource as Source, Run};
use crate::plan::Intent;
use crate::ports::LeaseSource;
use crate::reconcile::{self, Pass};
use crate::report::Code;
use crate::telemetry::log::LogControl;

/// Largest net-conf.json.
const NET_CONF_LIMIT: u64 = 1 << 20;

/// How often counters are folded into per-peer state.
const FOLD: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
pub async fn run(run: Run, log: LogControl) -> Result<()> {
    let [version, commit] = crate::VERSION;
    info!(version, commit, "flanneld (Loden) starts");
    match run.args.lease_source()? {
        Source::NodesFile(path) => {
            let node = run.own_node()?.to_owned();
            let leases = NodesFile::new(&path, run.args.kube_annotation_prefix.clone());
            let start = Start::new(node, path.display().to_string(), run).await?;
            start.run(leases, || {}, log).await
        }
        Source::Kubernetes => {
            let api = kubernetes::connect(&run.args).await?;
            let node = kubernetes::own_node(&run, &api).await?;
            let prefix = run.args.kube_annotation_prefix.clone();
            let start = Start::new(node, format!("the Kubernetes API at {}", api.url()), run).await?;
            let Parts { setup, spine, concerns, .. } = &start.parts;
            let metrics = start.parts.metrics.api(&kubernetes::reasons())?;
            let memory = Memory::of(setup, &api);
            let remembered = memory.recall();
            let tasks = start.tasks.clone();
            let leases = KubeNodes::watch(&api, prefix, memory.seen.clone(), metrics.clone(), &tasks)?;
            tasks.spawn("cache", memory.clone().keep(spine.clone(), concerns.clone()));
            if setup.args.pod_routes {
                let watch = KubePods::watch(&api, metrics.clone(), &tasks)?;
                tasks.spawn("pods", pods::follow(watch, spine.clone(), concerns.clone()));
            }
            tasks.spawn("credentials", kubernetes::follow_files(concerns.clone(), api.clone()));
            tasks.spawn("events", kubernetes::tell(&start.parts, api.clone(), metrics.clone()));
            tasks.spawn("own-node", kubernetes::publish(&start.parts, api.clone(), metrics));
            let (spine, concerns) = (spine.clone(), concerns.clone());
            let outcome = start.run(Recalling::new(leases, remembered), move || api.reconnect(), log).await;
            if let Err(error) = memory.save(&spine, &concerns) {
                debug!("{error:#}");
            }
            outcome
        }
    }
}

/// Everything that is checked before a source of leases is asked.
struct Start {
    parts: Parts,
    tasks: Tasks,
    ends: Ends,
    _lock: RunLock,
}

impl Start {
    async fn new(node: String, source: String, run: Run) -> Result<Self> {
        let conf = read_net_conf(&run.args.net_config_path)?;
        let lock = RunLock::take(&run.args.subnet_file)?;
        file::sweep(file::directory(&run.args.subnet_file));
        let (backend, unasked) = choose_backend::choose(&conf, &run.args.net_config_path).await?;
        let parts = Parts::new(Setup::new(node, source, run.args, conf, backend, run.offloads))?;
        parts.concerns.set(Code::BackendFallback, unasked);
        parts.metrics.backend.with_label_values(&[backend.name(), backend.mode()]).set(1);
        let (tasks, ends) = tasks::watched();
        Ok(Self { parts, tasks, ends, _lock: lock })
    }

    /// `moved` is called when the node has another address.
    async fn run(
        mut self,
        source: impl LeaseSource + 'static,
        moved: impl Fn(),
        log: LogControl,
    ) -> Result<()> {
        let Parts { setup, concerns, .. } = &self.parts;
        self.tasks.spawn("report", concerns::tick(concerns.clone()));
        serve_endpoints(&self.parts, &self.tasks, log).await?;
        let outcome = tokio::select! {
            end = tasks::run("control", work(&self.parts, &self.tasks, source, moved)) => fatal(end),
            outcome = self.ends.unasked() => outcome,
            outcome = told_to_stop() => outcome,
        };
        concerns.finish();
        // Kernel state stays: pods keep their addresses and rules, and the next daemon takes over.
        let _ = file::remove(&control::path(&setup.args.subnet_file));
        outcome
    }
}

fn read_net_conf(path: &Path) -> Result<NetConf> {
    let text = file::read(path, NET_CONF_LIMIT).context("--net-config-path")?;
    let (conf, warnings) = NetConf::parse(&text).with_context(|| path.display().to_string())?;
    for warning in warnings {
        warn!("{}: {warning}", path.display());
    }
    Ok(conf)
}

/// Binds the admin endpoint and the local socket, and serves both from now on: also while waiting.
async fn serve_endpoints(parts: &Parts, tasks: &Tasks, log: LogControl) -> Result<()> {
    let args = &parts.setup.args;
    if args.healthz_port != 0 {
        let listener = http::bind(SocketAddr::new(args.healthz_ip, args.healthz_port))?;
        let admin = Admin::new(parts);
        tasks.spawn("health-endpoint", http::serve(listener, tasks.clone(), move |page| admin.answer(page)));
    }
    let listener = control::bind(&control::path(&args.subnet_file))?;
    let local = Rc::new(Local::new(parts, log));
    let answer = move |request, out| local.clone().answer(request, out);
    tasks.spawn("local-socket", control::serve(listener, tasks.clone(), answer));
    Ok(())
}

/// What the end of the control loop means for the daemon. What it could not do needs no name of a task before it.
fn fatal(end: Cause) -> Result<()> {
    tasks::give_up_later();
    match end {
        Cause::Failed(error) => Err(error),
        end => bail!("control {end}; without it there is no daemon"),
    }
}

async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = name, "stopping; kernel state other than the tunnel device stays");
    notify(sd_notify::NotifyState::Stopping);
    Ok(())
}

/// From the first lease to the end. `moved` is called when the node has another address.
async fn work(
    parts: &Parts,
    tasks: &Tasks,
    mut source: impl LeaseSource + 'static,
    moved: impl Fn(),
) -> Result<()> {
    let Parts { setup, spine, metrics, concerns, .. } = parts;
    let flow = Rc::new(Flow::new(parts));
    // What can be refused without knowing the own lease is refused at once.
    let mut search = Search::new(parts);
    if search.is_asked_for() {
        search.check_flags().await?;
    }
    let mut changes = interfaces::changes().context("cannot follow the node's addresses")?;
    while !spine.has_own_lease() {
        leases::hear(source.next().await, spine, concerns, metrics);
        flow.adopt_heard();
    }
    tasks.spawn("table", pace::adopt(spine.clone(), flow.clone()));
    // A task of its own: a source that is asked anew after every other event would lose its place, and its many events
    // are nothing to the loop below.
    tasks.spawn("leases", leases::follow(source, spine.clone(), concerns.clone(), metrics.clone()));
    let external = search.first(&mut changes).await?;
    let facts = spine.own_facts();
    info!(name = external.name, mtu = external.mtu, reason = external.reason, "external interface");
    setup.backend.check_interface(&external, &setup.conf.networks())?;
    let (slot, mut forwarding) = match Tunnel::new(setup, &external, facts.as_deref())? {
        Some(tunnel) => {
            let (slot, forwarding) = Forwarding::start(parts, tunnel).await?;
            (Some(slot), Some(forwarding))
        }
        None => (None, None),
    };
    let mut doors = Doors::new(setup, metrics.clone()).await;
    if !sysctl::has_bridge_netfilter() {
        warn!(
            "the module br_netfilter is not loaded: pods may not reach Services whose pod is on the same node; \
             run `modprobe br_netfilter`, and name it in /etc/modules-load.d"
        );
    }
    let firewall = Firewall::new(Duration::from_secs(setup.args.iptables_resync.into())).await?;
    let _ = parts.rules.set(firewall.look());
    let kernel = LinuxKernel::new(firewall, slot)?;
    flow.choose(external);
    let (found, mut moves) = mpsc::unbounded_channel();
    tasks.spawn("interface", roaming::roam(Roaming::new(parts, search), changes, found));
    let report = PassReport::new(spine.clone(), metrics.clone(), concerns.clone());
    let goals = parts.goal.subscribe();
    tasks.spawn("kernel", program(kernel, goals, parts.applied.clone(), report, flow.clone()));
    let mut fold = tokio::time::interval(FOLD);
    loop {
        tokio::select! {
            event = Forwarding::event(&mut forwarding) => event.handle(&mut forwarding)?,
            Some(external) = moves.recv() => {
                let before = parts.underlay.below();
                if before.is_none_or(|before| !before.external.sends_as(&external)) {
                    // What was sent from the old address is not answered.
                    moved();
                    if let Some(forwarding) = &mut forwarding {
                        forwarding.relocate(&external);
                    }
                }
                flow.choose(external);
            }
            _ = fold.tick() => {
                parts.traffic.fold();
                if let Some(doors) = &mut doors {
                    doors.read().await;
                }
                parts.subnet_file.keep();
                if let Some(forwarding) = &mut forwarding {
                    forwarding.settle();
                    forwarding.read_gauges().await;
                }
            }
        }
    }
}

/// Runs the reconcile loop, and tells systemd when everything is in place for the first time.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
async fn program(
    kernel: LinuxKernel,
    goals: watch::Receiver<Option<Arc<Intent>>>,
    applied: Rc<Applied>,
    report: PassReport,
    flow: Rc<Flow>,
) {
    let begin = || applied.begin(Instant::now());
    let end = |pass: &Pass| {
        report.tell(pass, applied.end());
        if flow.follow(pass) {
            notify(sd_notify::NotifyState::Ready);
        }
    };
    reconcile::run(kernel, goals, begin, end).await;
}

fn notify(state: sd_notify::NotifyState<'_>) {
    // Without systemd there is nobody to tell, and nothing depends on it.
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("cannot tell systemd: {error}");
    }
}

/// Hands a value on if it is another than the last; otherwise the last one stays.
fn send_news<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|last| {
        let modified = *last != now;
        if modified {
            *last = now;
        }
        modified
    });
}
