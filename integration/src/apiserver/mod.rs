//! A real API server with TLS and RBAC: etcd and kube-apiserver, started for one test or demo and gone with it.
//!
//! [`ApiServer::start`] is the door. Access as every kind of client is in `access`, Nodes are made and changed in
//! `nodes`, and what goes wrong with a server (it hangs, dies, comes back) is below. Nothing here is async: requests run
//! on a thread of the server's own namespace, so a caller may live anywhere. No controller runs, so nothing changes
//! unless a test changes it; unless the server is one of a whole cluster, see [`Purpose`].

#![expect(
    clippy::disallowed_methods,
    reason = "those bans keep the daemon's core pure; a server for tests is side effects throughout"
)]

mod access;
mod admin;
pub mod assets;
mod audit;
mod launch;
mod nodes;
mod pki;
mod pods;
mod process;
mod restore;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::Client;
use nix::sys::signal::Signal;
use socket2::Socket;

pub use access::{Access, NAMESPACE, SERVICE_ACCOUNT};
pub use assets::folder;
pub use audit::Request;
pub use nodes::NodeSpec;
pub use process::NetnsFd;

use admin::Agent;
use assets::Assets;
use launch::{last_lines, local_address, reserve_two, start_etcd};
use pki::{Authority, Files};
use process::{Daemon, Workdir};

/// Reached only by a defect: a start takes some seconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The manifest we ship.
pub const SHIPPED_MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/loden.yml");

/// Which etcd stores the objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Etcd {
    /// The one pinned in `machinery/etcd`.
    #[default]
    Current,
    /// Debian 12's 3.4, on which the API server refuses streaming lists.
    Debian34,
}

/// What a server is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To be asked and watched: there are no controllers and no kubelets.
    #[default]
    Alone,
    /// To run pods: controllers make ServiceAccounts, kubelets may change their own Node only.
    Cluster {
        /// Where Services get their addresses from, one CIDR per family.
        service_cidrs: String,
    },
}

/// How a server is started. The default is one on loopback and a free port, in the caller's own namespace.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network namespace it lives in; `None` is the caller's.
    pub netns: Option<NetnsFd>,
    /// Where it listens and what it calls itself. It must exist in the namespace already.
    pub address: IpAddr,
    /// Its port; 0 takes a free one.
    pub port: u16,
    /// Names and addresses in its certificate beside `address`.
    pub extra_sans: Vec<String>,
    /// What it stores in.
    pub etcd: Etcd,
    /// What it is for.
    pub purpose: Purpose,
    /// More flags of kube-apiserver.
    pub extra_args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            netns: None,
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            extra_sans: Vec::new(),
            etcd: Etcd::Current,
            purpose: Purpose::Alone,
            extra_args: Vec::new(),
        }
    }
}

/// A running API server. Dropping it kills both processes and removes their files.
pub struct ApiServer {
    // Fields drop in this order: the processes end before their folder goes.
    server: Mutex<Option<Daemon>>,
    etcd: Mutex<Option<Daemon>>,
    agent: Agent,
    admin: OnceLock<Client>,
    dir: Workdir,
    assets: Assets,
    options: Options,
    authority: Authority,
    ca_pem: String,
    files: Files,
    address: SocketAddr,
    url: String,
    /// Keep the ports ours while nobody listens there.
    _port: Socket,
    closed_port: Socket,
    manifest_applied: Mutex<bool>,
    start_took: Duration,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver and waits until the server calls itself ready.
    ///
    /// # Errors
    /// When the programs are missing (the message says how to get them), the address is not there, or either program
    /// ends early; then with the last lines of its log.
    pub fn start(options: Options) -> Result<Self> {
        let started = Instant::now();
        let assets = Assets::find(options.etcd)?;
        let dir = Workdir::new()?;
        let agent = Agent::start(options.netns.clone())?;

        let (port, closed_port) = reserve_two(&agent, SocketAddr::new(options.address, options.port))
            .with_context(|| format!("the API server cannot have {}:{}", options.address, options.port))?;
        let address = local_address(&port)?;
        let url = format!("https://{address}");

        let authority = Authority::new("loden-test-ca")?;
        let mut sans = vec![options.address.to_string(), "localhost".to_owned()];
        sans.extend(options.extra_sans.iter().cloned());
        if let Purpose::Cluster { service_cidrs } = &options.purpose {
            // Pods know it by its Service: the first address of the range, and its name.
            sans.extend(first_addresses(service_cidrs)?);
            sans.extend(["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned));
        }
        let files = Files::write(dir.path(), &authority, sans)?;
        audit::write_policy(dir.path())?;

        let etcd = start_etcd(options.etcd, &assets, dir.path(), options.netns.clone())?;
        let mut server = Self {
            server: Mutex::new(None),
            etcd: Mutex::new(Some(etcd)),
            agent,
            admin: OnceLock::new(),
            dir,
            assets,
            options,
            ca_pem: authority.pem(),
            authority,
            files,
            address,
            url,
            _port: port,
            closed_port,
            manifest_applied: Mutex::new(false),
            start_took: Duration::ZERO,
        };
        server.restart()?;
        server.start_took = started.elapsed();
        Ok(server)
    }

    /// `https://address:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An address on which connections are refused, and will be for as long as this server lives.
    pub fn closed_address(&self) -> SocketAddr {
        local_address(&self.closed_port).unwrap_or(self.address)
    }

    /// From [`ApiServer::start`] to ready.
    pub fn start_took(&self) -> Duration {
        self.start_took
    }

    /// The authority that signed the server's certificate, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The folder of everything that belongs to this server; it goes with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file of [`ApiServer::ca_pem`].
    pub fn ca_file(&self) -> &Path {
        &self.files.ca
    }

    /// The key that signs the tokens of ServiceAccounts, which the controller that makes them needs too.
    pub fn token_key_file(&self) -> &Path {
        &self.files.token_key
    }

    /// The log of kube-apiserver so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_path())?)
    }

    /// Runs requests as administrator.
    ///
    /// # Errors
    /// What `work` returned; [`refused_with`] finds the HTTP status in it.
    pub fn call<T, F, E>(&self, work: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, E>> + 'static,
        E: Into<anyhow::Error>,
    {
        let client = self.admin()?;
        self.agent.run(move || async move { work(client).await.map_err(Into::into) })
    }

    /// Runs requests as somebody else.
    ///
    /// # Errors
    /// As [`ApiServer::call`].
    pub fn call_as<T, F, E>(
        &self,
        access: Access,
        work: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, E>> + 'static,
        E: Into<anyhow::Error>,
    {
        self.call_with(self.kubeconfig(access)?, work)
    }

    /// Runs requests as the daemon's pod on `node`.
    ///
    /// # Errors
    /// As [`ApiServer::call`].
    pub fn call_on<T, F, E>(&self, node: &str, work: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, E>> + 'static,
        E: Into<anyhow::Error>,
    {
        self.call_with(self.node_kubeconfig(node)?, work)
    }

    fn call_with<T, F, E>(
        &self,
        kubeconfig: PathBuf,
        work: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, E>> + 'static,
        E: Into<anyhow::Error>,
    {
        self.agent
            .run(move || async move { work(admin::client(&kubeconfig).await?).await.map_err(Into::into) })
    }

    /// Runs kubectl as administrator and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl_by(&self.kubeconfig(Access::Admin)?, args)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs kubectl with a kubeconfig, whatever comes of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kubectl_by(&self, kubeconfig: &Path, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.assets.kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).args(args);
        // Discovery is cached under HOME otherwise, where it would outlive this server.
        command.arg("--cache-dir").arg(self.dir().join("kubectl-cache"));
        process::output_in(command, self.options.netns.clone())
    }

    /// Applies the manifest we ship, once; nobody runs its DaemonSet, but its ServiceAccount and ClusterRole are real.
    ///
    /// # Errors
    /// What the server refused.
    pub fn apply_shipped_manifest(&self) -> Result<()> {
        let mut applied = self.manifest_applied.lock().unwrap_or_else(PoisonError::into_inner);
        if !*applied {
            self.kubectl(&["apply", "--server-side", "-f", SHIPPED_MANIFEST])?;
            *applied = true;
        }
        Ok(())
    }

    /// Makes the server hang: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Ends [`ApiServer::pause`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Kills the server: its connections break and new ones are refused until [`ApiServer::restart`]. etcd stays.
    pub fn kill(&self) {
        *self.running() = None;
    }

    /// Starts the server (again) on the same port with the same certificates and data, and waits until it is ready.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn restart(&self) -> Result<()> {
        let mut running = self.running();
        // The old process must have left the port before the new one takes it.
        *running = None;
        let fresh = running.insert(self.spawn()?);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let asked = self.call(|client| async move {
                tokio::time::timeout(Duration::from_secs(5), get(&client, "/readyz")).await?
            });
            let Err(unready) = asked else { return Ok(()) };
            if let Some(status) = fresh.exited()? {
                bail!("kube-apiserver ended with {status}:\n{}", last_lines(&self.log_path()));
            }
            if Instant::now() > deadline {
                return Err(unready.context(format!(
                    "kube-apiserver is not ready after {DEADLINE:?}:\n{}",
                    last_lines(&self.log_path())
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The server's own metrics, in Prometheus text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.call(|client| async move { get(&client, "/metrics").await })
    }

    /// Resident memory of kube-apiserver, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.running().as_ref().context("the API server is not running")?.rss_bytes()
    }

    /// Where the programs of a cluster's administrator are.
    pub fn kubectl_path(&self) -> &Path {
        &self.assets.kubectl
    }

    fn authority(&self) -> &Authority {
        &self.authority
    }

    fn admin(&self) -> Result<Client> {
        if let Some(client) = self.admin.get() {
            return Ok(client.clone());
        }
        let kubeconfig = self.kubeconfig(Access::Admin)?;
        let client = self.agent.run(move || async move { admin::client(&kubeconfig).await })?;
        Ok(self.admin.get_or_init(|| client).clone())
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("kube-apiserver.log")
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Daemon>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.running().as_ref().context("the API server is not running")?.signal(signal)
    }
}

/// The HTTP status with which the server refused a request, if `error` is such a refusal.
pub fn refused_with(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// The first address of each of some CIDRs with commas between them.
fn first_addresses(cidrs: &str) -> Result<Vec<String>> {
    let first = |cidr: &str| -> Result<String> {
        let base: IpAddr = cidr.split('/').next().unwrap_or_default().parse().context(cidr.to_owned())?;
        Ok(match base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + 1).to_string(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + 1).to_string(),
        })
    };
    cidrs.split(',').map(first).collect()
}

async fn get(client: &Client, path: &str) -> Result<String> {
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(client.request_text(request).await?)
}
