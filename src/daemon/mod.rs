//! The one wiring place: builds state and adapters, spawns the loops, and ends them in order.

mod checksum;
mod choose_backend;
mod concerns;
mod data_path;
mod forwarding;
mod gauges;
mod goal;
mod interface;
mod kubernetes;
mod leases;
mod memory;
mod pace;
mod passes;
mod pods;
mod restarts;
mod roaming;
mod serve;
mod spine;
mod state;
mod subnet_file;

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use self::forwarding::Forwarding;
use self::gauges::Doors;
use self::memory::{Memory, Recalling};
use self::state::State;
use crate::adapter::firewall::Firewall;
use crate::adapter::kernel::LinuxKernel;
use crate::adapter::kube::{KubeNodes, KubePods};
use crate::adapter::lock::RunLock;
use crate::adapter::nodes_file::NodesFile;
use crate::adapter::tasks::{self, Cause, Ends, Tasks};
use crate::adapter::{control, file, http, sysctl};
use crate::config::iface::ExternalInterface;
use crate::config::netconf::NetConf;
use crate::config::{LeaseSource as Source, Run};
use crate::ports::LeaseSource;
use crate::reconcile;
use crate::report::Code;
use crate::telemetry::log::LogControl;
use encap::offload::Features;

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
            start.run(leases, log).await
        }
        Source::Kubernetes => {
            let api = kubernetes::connect(&run.args).await?;
            let node = kubernetes::own_node(&run, &api).await?;
            let prefix = run.args.kube_annotation_prefix.clone();
            let start = Start::new(node, format!("the Kubernetes API at {}", api.url()), run).await?;
            let metrics = start.state.metrics.api(&kubernetes::reasons())?;
            let memory = Memory::of(&start.state, &api);
            let remembered = memory.recall();
            let tasks = start.tasks.clone();
            let leases = KubeNodes::watch(&api, prefix, memory.seen.clone(), metrics.clone(), &tasks)?;
            tasks.spawn("cache", memory.clone().keep(start.state.spine.clone(), start.state.concerns.clone()));
            let connections = api.clone();
            start.state.on_move.replace(Some(Box::new(move || connections.reconnect())));
            if start.state.args.pod_routes {
                let watch = KubePods::watch(&api, metrics.clone(), &tasks)?;
                tasks.spawn("pods", pods::follow(watch, start.state.spine.clone(), start.state.concerns.clone()));
            }
            tasks.spawn("events", kubernetes::tell(start.state.clone(), api.clone(), metrics.clone()));
            tasks.spawn("own-node", kubernetes::publish(start.state.clone(), api, metrics));
            let state = start.state.clone();
            let outcome = start.run(Recalling::new(leases, remembered), log).await;
            if let Err(error) = memory.save(&state.spine, &state.concerns) {
                debug!("{error:#}");
            }
            outcome
        }
    }
}

/// Everything that is checked before a source of leases is asked.
struct Start {
    state: Rc<State>,
    tasks: Tasks,
    ends: Ends,
    _lock: RunLock,
}

impl Start {
    async fn new(node: String, source: String, run: Run) -> Result<Self> {
        let conf = read_net_conf(&run.args.net_config_path)?;
        let lock = RunLock::take(&run.args.subnet_file)?;
        let offloads = if conf.offload { run.offloads } else { Features::NONE };
        let (backend, unasked) = choose_backend::choose(&conf, &run.args.net_config_path).await?;
        let state = State::new(node, source, run.args, conf, backend, offloads)?;
        state.concerns.set(Code::BackendFallback, unasked);
        let labels = [state.backend.name(), state.backend.mode()];
        state.metrics.backend.with_label_values(&labels).set(1);
        let (tasks, ends) = tasks::watched();
        Ok(Self { state: Rc::new(state), tasks, ends, _lock: lock })
    }

    async fn run(mut self, leases: impl LeaseSource + 'static, log: LogControl) -> Result<()> {
        let state = &self.state;
        self.tasks.spawn("report", concerns::tick(state.concerns.clone()));
        serve_endpoints(state, &self.tasks, log).await?;
        let outcome = tokio::select! {
            end = tasks::run("control", work(state, &self.tasks, leases)) => fatal(end),
            outcome = self.ends.unasked() => outcome,
            outcome = told_to_stop() => outcome,
        };
        state.concerns.finish();
        // Kernel state stays: pods keep their addresses and rules, and the next daemon takes over.
        let _ = file::remove(&control::path(&state.args.subnet_file));
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
async fn serve_endpoints(state: &Rc<State>, tasks: &Tasks, log: LogControl) -> Result<()> {
    let args = &state.args;
    if args.healthz_port != 0 {
        let listener = http::bind(SocketAddr::new(args.healthz_ip, args.healthz_port))?;
        let state = state.clone();
        let answer = move |page| serve::admin(&state, page);
        tasks.spawn("health-endpoint", http::serve(listener, tasks.clone(), answer));
    }
    let listener = control::bind(&control::path(&args.subnet_file))?;
    let state = state.clone();
    let answer = move |request, out| serve::control(state.clone(), log.clone(), request, out);
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

/// From the first lease to the end.
async fn work(state: &Rc<State>, tasks: &Tasks, mut source: impl LeaseSource + 'static) -> Result<()> {
    // What can be refused without knowing the own lease is refused at once.
    if interface::asked_for(&state.args) {
        interface::external(&state.args, None).await?;
    }
    while !state.spine.has_own_lease() {
        state.absorb(source.next().await);
    }
    let facts = state.snapshot().own_facts.clone();
    let external = interface::external(&state.args, facts.as_deref()).await?;
    info!(name = external.name, mtu = external.mtu, reason = external.reason, "external interface");
    state.backend.check_interface(&external, &state.conf.networks())?;
    let (slot, mut forwarding) = match state.tunnel(&external)? {
        Some(tunnel) => {
            let (slot, forwarding) = Forwarding::start(state, tunnel).await?;
            (Some(slot), Some(forwarding))
        }
        None => (None, None),
    };
    let mut doors = Doors::new().await;
    if !sysctl::has_bridge_netfilter() {
        warn!(
            "the module br_netfilter is not loaded: pods may not reach Services whose pod is on the same node; \
             run `modprobe br_netfilter`, and name it in /etc/modules-load.d"
        );
    }
    let firewall = Firewall::new(Duration::from_secs(state.args.iptables_resync.into())).await?;
    state.rules.replace(Some(Rc::new(firewall.look())));
    let kernel = LinuxKernel::new(firewall, slot)?;
    state.set_external(external);
    let (moved, mut moves) = mpsc::unbounded_channel();
    tasks.spawn("interface", roaming::roam(state.clone(), moved));
    tasks.spawn("kernel", program(state.clone(), kernel));
    tasks.spawn("table", pace::adopt(state.clone()));
    // A task of its own: a source that is asked anew after every other event would lose its place, and its many events
    // are nothing to the loop below.
    let (spine, concerns, metrics) = (state.spine.clone(), state.concerns.clone(), state.metrics.clone());
    tasks.spawn("leases", leases::follow(source, spine, concerns, metrics));
    let mut fold = tokio::time::interval(FOLD);
    loop {
        tokio::select! {
            event = Forwarding::event(&mut forwarding) => event.handle(state, &mut forwarding)?,
            Some(external) = moves.recv() => relocate(state, &mut forwarding, external),
            _ = fold.tick() => {
                serve::fold(state);
                doors.read(state).await;
                state.keep_subnet_env();
                if let Some(forwarding) = &mut forwarding {
                    forwarding.settle(state);
                    forwarding.read_gauges(state).await;
                }
            }
        }
    }
}

/// Uses another external interface, or another address of it.
fn relocate(state: &State, forwarding: &mut Option<Forwarding>, external: ExternalInterface) {
    // What was sent from the old address is not answered.
    if let Some(on_move) = &*state.on_move.borrow() {
        on_move();
    }
    let relocated = forwarding.as_mut().map_or(Ok(()), |forwarding| forwarding.relocate(state, &external));
    match relocated {
        Ok(()) => state.set_external(external),
        Err(error) => warn!("the data path cannot follow the node's address: {error:#}"),
    }
}

/// Runs the reconcile loop, and says so when everything is in place for the first time.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
async fn program(state: Rc<State>, kernel: LinuxKernel) {
    let begun = state.clone();
    let begin = move || begun.busy_since.set(Some(std::time::Instant::now()));
    let goals = state.goals.subscribe();
    let report = |pass: &reconcile::Pass| {
        if let Some(begun) = state.busy_since.take() {
            state.metrics.kernel_pass.observe(begun.elapsed().as_secs_f64());
        }
        if state.passed(pass) {
            info!(tunnel = state.tunnel_name(), mtu = state.mtu.get(), "ready");
            notify(sd_notify::NotifyState::Ready);
        }
    };
    reconcile::run(kernel, goals, begin, report).await;
}

fn notify(state: sd_notify::NotifyState<'_>) {
    // Without systemd there is nobody to tell, and nothing depends on it.
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("cannot tell systemd: {error}");
    }
}
