//! The command line, as clap sees it after [`super::argv`] has rewritten it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory as _, Parser, ValueEnum};

use super::{AnnotationPrefix, log_filter, values};

/// Where the CNI plugin of flannel looks for its settings.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Connects the pods of a Kubernetes cluster across nodes. Takes flannel's flags (one dash or two)
/// and environment (FLANNELD_ and the flag's name in capitals, with _ for -); a flag wins.
#[derive(Debug, Parser)]
#[command(name = "flanneld", disable_version_flag = true, disable_help_subcommand = true)]
#[command(args_conflicts_with_subcommands = true, args_override_self = true)]
#[command(
    after_help = "Exit status: 0 after SIGTERM or SIGINT, 1 if the daemon ended by itself, 2 if the command line is wrong"
)]
pub(super) struct Cli {
    /// Print the version to standard error and exit
    #[arg(long)]
    pub(super) version: bool,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
}

/// The daemon's flags: flannel's, and a few of ours.
#[derive(Debug, Clone, Args)]
pub struct DaemonArgs {
    /// Learn nodes and their leases from the Kubernetes API
    #[arg(long)]
    pub kube_subnet_mgr: bool,
    /// Learn nodes and their leases from this file, as `kubectl get nodes -o yaml` prints it; watched for changes
    #[arg(long, value_name = "PATH")]
    pub nodes_file: Option<PathBuf>,
    /// Network configuration
    #[arg(long, value_name = "PATH", default_value = "/etc/kube-flannel/net-conf.json")]
    pub net_config_path: PathBuf,
    /// Where to write the settings the CNI plugin reads; socket, lock and cache live beside it
    #[arg(long, value_name = "PATH", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,

    /// Kubernetes API server; without it and --kubeconfig-file, the one of the cluster we run in
    #[arg(long, value_name = "URL", help_heading = "Kubernetes")]
    pub kube_api_url: Option<String>,
    /// How to reach and log in to the Kubernetes API
    #[arg(long, value_name = "PATH", help_heading = "Kubernetes")]
    pub kubeconfig_file: Option<PathBuf>,
    /// What the keys of our Node annotations begin with
    #[arg(long, value_name = "PREFIX", default_value = "flannel.alpha.coreos.com", value_parser = values::annotation_prefix, help_heading = "Kubernetes")]
    pub kube_annotation_prefix: AnnotationPrefix,
    /// Clear the Node condition NetworkUnavailable when the network is up
    #[arg(long, default_value = "true", help_heading = "Kubernetes")]
    pub set_node_network_unavailable: bool,
    /// Watch Pods too: route those whose address lies outside their node's podCIDR, and show all by name
    #[arg(long, help_heading = "Kubernetes")]
    pub pod_routes: bool,

    /// External interface, by name or address; may be repeated, the first that exists wins
    #[arg(long, value_name = "IFACE", action = ArgAction::Append, help_heading = "External interface")]
    pub iface: Vec<String>,
    /// External interface, by an expression its address or else its name matches; may be repeated, tried after --iface
    #[arg(long, value_name = "REGEX", action = ArgAction::Append, value_parser = values::regex, help_heading = "External interface")]
    pub iface_regex: Vec<regex::Regex>,
    /// External interface: the one that routes to this address; tried last
    #[arg(long, value_name = "IP", value_parser = values::ip, help_heading = "External interface")]
    pub iface_can_reach: Option<IpAddr>,
    /// IPv4 address other nodes send to; without --iface it also picks the interface
    #[arg(long, value_name = "IP", value_parser = values::ipv4, help_heading = "External interface")]
    pub public_ip: Option<Ipv4Addr>,
    /// IPv6 address other nodes send to; without --iface it also picks the interface
    #[arg(long, value_name = "IP", value_parser = values::ipv6, help_heading = "External interface")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// Masquerade what pods send to addresses outside the cluster network
    #[arg(long, help_heading = "Firewall and routes")]
    pub ip_masq: bool,
    /// Leave masqueraded source ports to the kernel's default choice instead of full randomness
    #[arg(long, help_heading = "Firewall and routes")]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets from and to the cluster network
    #[arg(long, default_value = "true", help_heading = "Firewall and routes")]
    pub iptables_forward_rules: bool,
    /// Seconds between two checks of firewall rules and blackhole route
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = values::seconds, help_heading = "Firewall and routes")]
    pub iptables_resync: u32,
    /// Add a blackhole route for our own podCIDR
    #[arg(long, help_heading = "Firewall and routes")]
    pub ip_blackhole_route: bool,

    /// Address of the health and metrics server
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = values::ip, help_heading = "Health and metrics")]
    pub healthz_ip: IpAddr,
    /// Port of the health and metrics server; 0 is off
    #[arg(long, value_name = "PORT", default_value = "0", value_parser = values::port, help_heading = "Health and metrics")]
    pub healthz_port: u16,

    /// Form of log lines
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text, help_heading = "Log")]
    pub log_format: LogFormat,
    /// What to log: a level, or levels by module, such as info,loden::reconcile=debug; wins over -v
    #[arg(long, value_name = "FILTER", value_parser = values::log_filter, help_heading = "Log")]
    pub log_level: Option<String>,
    /// klog's own flags.
    #[command(flatten)]
    pub klog: KlogArgs,

    /// flannel's etcd flags.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Log flags that flannel inherits from klog.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct KlogArgs {
    /// Verbosity: up to 1 is info, up to 5 debug, then trace
    #[arg(long = "v", value_name = "N", default_value = "0", value_parser = values::verbosity)]
    pub verbosity: i32,
    /// Accepted, without effect; use --log-level
    #[arg(long, value_name = "PATTERN=N,...")]
    pub vmodule: Option<String>,
    /// Accepted, without effect
    #[arg(long = "log_backtrace_at", value_name = "FILE:N")]
    pub log_backtrace_at: Option<String>,
}

/// Flags of flannel's etcd datastore. They are accepted so that a command line need not be edited
/// before it says what to do instead.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "etcd (accepted; not supported yet)")]
pub struct EtcdArgs {
    /// Servers, separated by commas
    #[arg(
        long = "etcd-endpoints",
        value_name = "URL,...",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub endpoints: String,
    /// Prefix of keys
    #[arg(long = "etcd-prefix", value_name = "KEY", default_value = "/coreos.com/network")]
    pub prefix: String,
    /// Client key
    #[arg(long = "etcd-keyfile", value_name = "PATH")]
    pub keyfile: Option<PathBuf>,
    /// Client certificate
    #[arg(long = "etcd-certfile", value_name = "PATH")]
    pub certfile: Option<PathBuf>,
    /// Certificate authority
    #[arg(long = "etcd-cafile", value_name = "PATH")]
    pub cafile: Option<PathBuf>,
    /// User name
    #[arg(long = "etcd-username", value_name = "NAME")]
    pub username: Option<String>,
    /// Password
    #[arg(long = "etcd-password", value_name = "PASSWORD")]
    pub password: Option<String>,
    /// Minutes before its end at which a lease is renewed, 1 to 1439
    #[arg(long, value_name = "MINUTES", default_value = "60", value_parser = values::renew_margin)]
    pub subnet_lease_renew_margin: u16,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl DaemonArgs {
    /// The log filter to start with: `--log-level`, else what `-v` stands for.
    pub fn log_filter(&self) -> &str {
        self.log_level.as_deref().unwrap_or_else(|| log_filter::of_verbosity(self.klog.verbosity))
    }

    /// Flags that were accepted and do nothing.
    pub(super) fn warnings(&self) -> Vec<String> {
        let given = [("vmodule", &self.klog.vmodule), ("log_backtrace_at", &self.klog.log_backtrace_at)];
        let ignored = given.into_iter().filter(|(_, value)| value.is_some());
        ignored.map(|(flag, _)| format!("--{flag} has no effect; use --log-level module=level")).collect()
    }
}

/// The command with every flag and these subcommands in place.
pub(crate) fn command(verbs: impl IntoIterator<Item = clap::Command>) -> clap::Command {
    let command = Cli::command().mut_args(|arg| if is_boolean(&arg) { go_boolean(arg) } else { arg });
    let mut command = command.subcommands(verbs);
    command.build();
    command
}

fn is_boolean(arg: &clap::Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// Go's booleans may be given a value, but only behind `=`.
fn go_boolean(arg: clap::Arg) -> clap::Arg {
    let default = if arg.get_default_values().is_empty() { "false" } else { "true" };
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value(default)
        .default_missing_value("true")
        .value_name("BOOL")
        .hide_possible_values(true)
        .hide_default_value(default == "false")
        .value_parser(values::go_bool)
}
