//! The two programs' command lines, and the ports they get.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use socket2::{Domain, Socket, Type};

use super::admin::Agent;
use super::assets::Assets;
use super::process::{Daemon, NetnsFd};
use super::{ApiServer, DEADLINE, Etcd, Purpose, audit};

/// The socket on which etcd serves the API server. Unix sockets need no port, so two servers never meet, and no other
/// program reaches the store by accident. 3.4 takes such an address only if it looks like a host and a port, and makes a
/// socket of that name in its working folder.
pub(super) const ETCD_SOCKET: &str = "clients:1";

pub(super) fn start_etcd(kind: Etcd, assets: &Assets, dir: &Path, netns: Option<NetnsFd>) -> Result<Daemon> {
    let client_url = format!("unix://{ETCD_SOCKET}");
    // A member must advertise a host and port. Only other members would use it, and there are none.
    let advertised = "http://localhost:2379";
    let mut command = Command::new(&assets.etcd);
    command.current_dir(dir).arg("--name=loden");
    if kind == Etcd::Current {
        // What is stored need not survive the machine. 3.4 has no such flag.
        command.arg("--unsafe-no-fsync");
    }
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", advertised]);
    command.args(["--listen-peer-urls", "unix://peers:1", "--initial-advertise-peer-urls", advertised]);
    command.arg("--initial-cluster").arg(format!("loden={advertised}"));
    let log = dir.join("etcd.log");
    let mut etcd = Daemon::spawn("etcd", command, &log, netns)?;
    let deadline = Instant::now() + DEADLINE;
    while !dir.join(ETCD_SOCKET).exists() {
        if let Some(status) = etcd.exited()? {
            bail!("etcd ended with {status}:\n{}", last_lines(&log));
        }
        if Instant::now() > deadline {
            bail!("etcd does not listen after {DEADLINE:?}:\n{}", last_lines(&log));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(etcd)
}

impl ApiServer {
    /// Starts kube-apiserver; it is not ready yet.
    pub(super) fn spawn(&self) -> Result<Daemon> {
        let dir = self.dir();
        let files = &self.files;
        let mut command = Command::new(&self.assets.kube_apiserver);
        let flag = |name: &str, value: &dyn Display| format!("--{name}={value}");
        command.args([
            flag("etcd-servers", &format_args!("unix://{}", dir.join(ETCD_SOCKET).display())),
            flag("bind-address", &self.address.ip()),
            flag("advertise-address", &self.address.ip()),
            flag("secure-port", &self.address.port()),
            // The port is held by a socket of ours that does not listen, so that nobody takes it while the server is down.
            flag("permit-port-sharing", &true),
            flag("tls-cert-file", &files.server_cert.display()),
            flag("tls-private-key-file", &files.server_key.display()),
            flag("client-ca-file", &files.ca.display()),
            flag("service-account-issuer", &self.url),
            flag("service-account-signing-key-file", &files.token_key.display()),
            flag("service-account-key-file", &files.token_public_key.display()),
        ]);
        match &self.options.purpose {
            Purpose::Alone => command.args([
                flag("authorization-mode", &"RBAC"),
                flag("service-cluster-ip-range", &"10.96.0.0/16"),
                // Its own Endpoints need an address that is not loopback, and nobody here uses them.
                flag("endpoint-reconciler-type", &"none"),
                // It waits for the default ServiceAccount of a namespace, which a controller would make.
                flag("disable-admission-plugins", &"ServiceAccount"),
                flag("audit-policy-file", &dir.join(audit::POLICY).display()),
                flag("audit-log-path", &dir.join(audit::LOG).display()),
            ]),
            Purpose::Cluster { service_cidrs } => command.args([
                flag("authorization-mode", &"Node,RBAC"),
                flag("enable-admission-plugins", &"NodeRestriction"),
                flag("service-cluster-ip-range", service_cidrs),
                flag("allow-privileged", &true),
                flag("kubelet-client-certificate", &files.kubelet_client_cert.display()),
                flag("kubelet-client-key", &files.kubelet_client_key.display()),
                flag("kubelet-preferred-address-types", &"InternalIP"),
            ]),
        };
        command.args(&self.options.extra_args);
        Daemon::spawn("kube-apiserver", command, &self.log_path(), self.options.netns.clone())
    }
}

/// The server's port, and one more on which nobody listens.
pub(super) fn reserve_two(agent: &Agent, wanted: SocketAddr) -> Result<(Socket, Socket)> {
    agent.run(move || async move { Ok((reserve(wanted)?, reserve(SocketAddr::new(wanted.ip(), 0))?)) })
}

/// A socket that holds a port and accepts nothing. `SO_REUSEPORT` lets the server listen beside it.
fn reserve(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

pub(super) fn local_address(socket: &Socket) -> Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| anyhow!("a TCP socket without an address"))
}

pub(super) fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
