//! flannel's plugin: from its own configuration and `subnet.env` to the configuration of the plugin that does the work.

use std::collections::BTreeMap;
use std::path::PathBuf;

use encap::Prefix;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Cidr, CniError, Code, NetConf, Route, json};

/// Where the daemon writes `subnet.env` unless the configuration names another file.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Where the delegate's configuration of each container is kept unless the configuration names another folder.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// What the daemon says of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`, then `FLANNEL_IPV6_NETWORK`: each may list several.
    pub networks: Vec<Prefix>,
    /// `FLANNEL_SUBNET`: pods of this node get IPv4 addresses from it.
    pub subnet: Option<Prefix>,
    /// `FLANNEL_IPV6_SUBNET`: the same for IPv6.
    pub subnet6: Option<Prefix>,
    /// `FLANNEL_MTU`, bytes.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: the daemon masquerades, so that the delegate need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the text of a `subnet.env`; `path` is named in errors.
    ///
    /// # Errors
    /// Code 11 for a file that lacks something: the daemon writes it anew, so the runtime should try again. Code 7 for a
    /// value that is not of its form.
    pub fn parse(text: &str, path: &str) -> Result<Self, CniError> {
        let values: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let bad = |key: &str, reason: String| {
            CniError::new(Code::NetworkConfig, format!("{key} in {path} cannot be used"), reason)
        };
        let prefix = |key: &str, text: &str| {
            text.trim().parse::<Prefix>().map_err(|error| bad(key, error.to_string()))
        };
        let list = |key: &str| -> Result<Vec<Prefix>, CniError> {
            let Some(text) = values.get(key) else { return Ok(Vec::new()) };
            let mut found = Vec::new();
            for item in text.split(',') {
                let network = prefix(key, item)?;
                if !found.contains(&network) {
                    found.push(network);
                }
            }
            Ok(found)
        };
        let one = |key: &str| values.get(key).map(|text| prefix(key, text)).transpose();
        let mtu = values.get("FLANNEL_MTU").map(|text| {
            text.parse::<u32>().map_err(|_| bad("FLANNEL_MTU", format!("{text:?} is no number of bytes")))
        });
        let mut networks = list("FLANNEL_NETWORK")?;
        networks.extend(list("FLANNEL_IPV6_NETWORK")?);
        let (subnet, subnet6, mtu) = (one("FLANNEL_SUBNET")?, one("FLANNEL_IPV6_SUBNET")?, mtu.transpose()?);
        let ip_masq = values.get("FLANNEL_IPMASQ").map(|text| *text == "true");
        let lacking: Vec<&str> = [
            ("FLANNEL_NETWORK", networks.is_empty()),
            ("FLANNEL_SUBNET", subnet.is_none() && subnet6.is_none()),
            ("FLANNEL_MTU", mtu.is_none()),
            ("FLANNEL_IPMASQ", ip_masq.is_none()),
        ]
        .into_iter()
        .filter_map(|(key, lacks)| lacks.then_some(key))
        .collect();
        if !lacking.is_empty() {
            return Err(CniError::new(
                Code::TryLater,
                format!("{path} is missing {}", lacking.join(", ")),
                "the daemon writes the file when it is ready; if this stays, see its log and its /readyz",
            ));
        }
        Ok(Self {
            networks,
            subnet,
            subnet6,
            mtu: mtu.unwrap_or_default(),
            ip_masq: ip_masq.unwrap_or_default(),
        })
    }
}

/// The plugin's own fields of a network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct FlannelConf {
    /// `subnetFile`.
    pub subnet_file: PathBuf,
    /// `dataDir`.
    pub data_dir: PathBuf,
    /// `builtin`: the delegates inside this program are used even where the folder has plugins of their names.
    pub builtin: bool,
    ipam: Map<String, Value>,
    delegate: Map<String, Value>,
    runtime: Option<Value>,
    version: String,
    name: String,
}

impl FlannelConf {
    /// Reads the plugin's fields.
    ///
    /// # Errors
    /// Code 6 for a field of another form, 7 for a `delegate` that says what only this plugin may say.
    pub fn parse(conf: &NetConf) -> Result<Self, CniError> {
        let path = |key: &str, default: &str| -> Result<PathBuf, CniError> {
            let given: Option<PathBuf> = conf.field(key)?;
            Ok(given.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| default.into()))
        };
        let delegate: Map<String, Value> = conf.field("delegate")?.unwrap_or_default();
        let wrong =
            |msg: &str| Err(CniError::new(Code::NetworkConfig, msg, "remove the field from \"delegate\""));
        if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return wrong("'delegate' dictionary, if present, must have (string) 'type' field");
        }
        if delegate.contains_key("name") {
            return wrong("'delegate' dictionary must not have 'name' field, it'll be set by flannel");
        }
        if delegate.contains_key("ipam") {
            return wrong("'delegate' dictionary must not have 'ipam' field, it'll be set by flannel");
        }
        Ok(Self {
            subnet_file: path("subnetFile", DEFAULT_SUBNET_FILE)?,
            data_dir: path("dataDir", DEFAULT_DATA_DIR)?,
            builtin: conf.field("builtin")?.unwrap_or_default(),
            ipam: conf.field("ipam")?.unwrap_or_default(),
            delegate,
            runtime: conf.fields.get("runtimeConfig").filter(|value| !value.is_null()).cloned(),
            version: conf.field("cniVersion")?.unwrap_or_default(),
            name: conf.name.clone(),
        })
    }

    /// The configuration of the delegate.
    ///
    /// # Errors
    /// Code 6 for `ipam.routes` that are no routes.
    pub fn delegate(&self, env: &SubnetEnv) -> Result<Delegate, CniError> {
        let mut fields: BTreeMap<String, Node> =
            self.delegate.iter().map(|(key, value)| (key.clone(), Node::go(value.clone()))).collect();
        let kind = match self.delegate.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            _ => "bridge".to_owned(),
        };
        fields.insert("name".into(), Node::go(self.name.clone().into()));
        fields.insert("type".into(), Node::go(kind.clone().into()));
        fields.entry("ipMasq".into()).or_insert_with(|| Node::go((!env.ip_masq).into()));
        fields.entry("mtu".into()).or_insert_with(|| Node::go(env.mtu.into()));
        if kind == "bridge" {
            fields.entry("isGateway".into()).or_insert_with(|| Node::go(true.into()));
        }
        if !self.version.is_empty() {
            fields.insert("cniVersion".into(), Node::go(self.version.clone().into()));
        }
        if let Some(runtime) = &self.runtime {
            fields.insert("runtimeConfig".into(), Node::go(runtime.clone()));
        }
        fields.insert("ipam".into(), Node::Fields(self.delegate_ipam(env)?));
        let text = json::to_string(&fields).map_err(|error| {
            CniError::new(Code::Internal, "the delegate's configuration cannot be written", error.to_string())
        })?;
        Ok(Delegate { kind, text })
    }

    /// `ipam` as configured, with this node's subnets for its ranges and a route to each of the networks.
    fn delegate_ipam(&self, env: &SubnetEnv) -> Result<BTreeMap<String, Node>, CniError> {
        let mut ipam: BTreeMap<String, Node> =
            self.ipam.iter().map(|(key, value)| (key.clone(), Node::go(value.clone()))).collect();
        ipam.entry("type".into()).or_insert_with(|| Node::go("host-local".into()));
        let subnets = [env.subnet, env.subnet6].into_iter().flatten();
        let ranges: Vec<Value> =
            subnets.map(|subnet| serde_json::json!([{ "subnet": subnet.to_string() }])).collect();
        ipam.insert("ranges".into(), Node::go(ranges.into()));
        let given = self
            .ipam
            .get("routes")
            .filter(|routes| !routes.is_null())
            .cloned()
            .unwrap_or_else(|| Value::Array(Vec::new()));
        let mut routes: Vec<Route> = serde_json::from_value(given).map_err(|error| {
            CniError::new(
                Code::Decode,
                "ipam.routes in the network configuration are no routes",
                error.to_string(),
            )
        })?;
        routes.extend(env.networks.iter().map(|network| Route::to(Cidr::from(*network))));
        ipam.insert("routes".into(), Node::Routes(routes));
        Ok(ipam)
    }
}

/// A plugin that does the work, and its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    /// `type`: the name of its file.
    pub kind: String,
    /// Its configuration, byte for byte as flannel's plugin writes it.
    pub text: String,
}

impl Delegate {
    /// Reads what ADD kept for DEL. What cannot be read is nothing that could be undone: `None`.
    pub fn kept(text: String) -> Option<Self> {
        let fields: Map<String, Value> = serde_json::from_str(&text).ok()?;
        let kind = fields.get("type")?.as_str()?.to_owned();
        Some(Self { kind, text })
    }
}

/// A part of the delegate's configuration: fields are sorted by name, but routes keep the order of theirs.
#[derive(Serialize)]
#[serde(untagged)]
enum Node {
    Value(Value),
    Fields(BTreeMap<String, Node>),
    Routes(Vec<Route>),
}

impl Node {
    fn go(mut value: Value) -> Self {
        json::go_numbers(&mut value);
        Self::Value(value)
    }
}
