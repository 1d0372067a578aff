//! CNI plugins as a container runtime starts them, in a namespace that plays the node.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::apiserver::assets;
use crate::daemon;
use crate::netns::Netns;
use crate::process::NsCommand;

/// The plugins of Loden's program.
pub const OURS: [&str; 5] = ["bridge", "flannel", "host-local", "loopback", "portmap"];

/// The program that holds Loden's plugins.
///
/// # Errors
/// When it was not built.
pub fn program() -> Result<PathBuf> {
    let program = daemon::binary()?.with_file_name("flannel");
    ensure!(program.is_file(), "{} is missing: `cargo build -p loden --bin flannel`", program.display());
    Ok(program)
}

/// A node: a namespace, folders for plugins, and the state that they keep.
pub struct Host {
    netns: Netns,
    dir: TempDir,
}

/// What a plugin printed and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// Whether it exited with 0.
    pub ok: bool,
    /// Standard output.
    pub text: String,
    /// Standard error.
    pub said: String,
}

impl Answer {
    /// The result of a plugin that succeeded.
    ///
    /// # Errors
    /// It failed, or printed no JSON.
    pub fn result(&self) -> Result<Value> {
        ensure!(self.ok, "the plugin failed: {} {}", self.text, self.said);
        if self.text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.text).with_context(|| format!("not JSON: {}", self.text))
    }

    /// The code and the text of a plugin that failed.
    ///
    /// # Errors
    /// It succeeded, or printed no error as the specification wants it.
    pub fn refusal(&self) -> Result<(u64, String)> {
        ensure!(!self.ok, "the plugin succeeded: {}", self.text);
        let error: Value =
            serde_json::from_str(&self.text).with_context(|| format!("not JSON: {}", self.text))?;
        ensure!(
            error["cniVersion"].is_string() && error["msg"].is_string(),
            "no error of the specification: {error}"
        );
        let code = error["code"].as_u64().context("an error without a code")?;
        Ok((code, format!("{} {}", error["msg"], error["details"])))
    }
}

/// A container: a namespace and its ID.
pub struct Container {
    /// Its ID.
    pub id: String,
    /// Its namespace.
    pub netns: Netns,
}

impl Container {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel refuses a namespace.
    pub fn new(id: &str) -> Result<Self> {
        Ok(Self { id: id.to_owned(), netns: Netns::new(id)? })
    }

    /// A path by which plugins find the namespace.
    pub fn path(&self) -> String {
        self.netns.path()
    }
}

impl Host {
    /// A node that has Loden's plugins under all their names.
    ///
    /// # Errors
    /// The program is missing.
    pub fn ours() -> Result<Self> {
        Self::ours_in(Netns::new("node")?)
    }

    /// The same on a node that is there already.
    ///
    /// # Errors
    /// The program is missing.
    pub fn ours_in(netns: Netns) -> Result<Self> {
        let host = Self::bare_in(netns)?;
        let program = program()?;
        for name in OURS {
            fs::hard_link(&program, host.plugin(name))
                .or_else(|_| fs::copy(&program, host.plugin(name)).map(drop))
                .with_context(|| format!("install {name}"))?;
        }
        Ok(host)
    }

    /// A node that has the reference plugins, and Loden's `flannel`.
    ///
    /// # Errors
    /// They were not built: `make machinery`.
    pub fn reference() -> Result<Self> {
        let host = Self::bare()?;
        let folder = assets::folder("cni-plugins")?;
        ensure!(folder.is_dir(), "{} is missing: run `make machinery`", folder.display());
        for name in ["bridge", "host-local", "loopback", "portmap"] {
            symlink(folder.join(name), host.plugin(name))?;
        }
        fs::copy(program()?, host.plugin("flannel"))?;
        Ok(host)
    }

    /// A node without plugins.
    ///
    /// # Errors
    /// The kernel refuses a namespace.
    pub fn bare() -> Result<Self> {
        Self::bare_in(Netns::new("node")?)
    }

    fn bare_in(netns: Netns) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("bin"))?;
        let host = Self { netns, dir };
        host.write_subnet_env(SUBNET_ENV)?;
        Ok(host)
    }

    /// Where the plugin of this name lies.
    pub fn plugin(&self, name: &str) -> PathBuf {
        self.dir.path().join("bin").join(name)
    }

    /// A file of the plugins' state.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The node's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What the daemon says of this node.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_subnet_env(&self, text: &str) -> Result<()> {
        fs::write(self.file("subnet.env"), text).context("write subnet.env")
    }

    /// flannel's network configuration with this node's folders, and more fields.
    pub fn flannel_conf(&self, more: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0",
            "name": "cbr0",
            "type": "flannel",
            "subnetFile": self.file("subnet.env"),
            "dataDir": self.file("flannel"),
            "ipam": { "dataDir": self.file("networks") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        });
        extend(&mut conf, more);
        conf
    }

    /// The bridge's network configuration, and more fields.
    pub fn bridge_conf(&self, version: &str, more: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": version,
            "name": "net",
            "type": "bridge",
            "ipam": {
                "type": "host-local",
                "dataDir": self.file("networks"),
                "ranges": [[{ "subnet": "10.244.1.0/24" }]],
            },
        });
        extend(&mut conf, more);
        conf
    }

    /// A plugin as the runtime starts it; `env` beside what every verb has.
    pub fn command(&self, plugin: &str, env: &[(&str, &str)], conf: &Value) -> NsCommand {
        let mut command = self.netns.command(self.plugin(plugin)).input(conf.to_string());
        for (key, value) in env {
            command = command.env(key, value);
        }
        command
    }

    /// Runs a plugin with just this environment.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, plugin: &str, env: &[(&str, &str)], conf: &Value) -> Result<Answer> {
        let output = self.command(plugin, env, conf).output()?;
        Ok(Answer {
            ok: output.status.success(),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Asks the plugin that the configuration names, for `eth0` of a container.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ask(&self, verb: &str, container: &Container, conf: &Value) -> Result<Answer> {
        self.ask_for(verb, container, "eth0", conf)
    }

    /// [`Host::ask`] for another device.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ask_for(&self, verb: &str, container: &Container, ifname: &str, conf: &Value) -> Result<Answer> {
        let plugin = conf["type"].as_str().context("a configuration without a type")?;
        let (path, netns) = (self.dir.path().join("bin"), container.path());
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &container.id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", path.to_str().context("a path that is no text")?),
        ];
        self.run(plugin, &env, conf)
    }

    /// Every file of the plugins' state and what it says, locks and the mark of the boot left out.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn state(&self, folder: &str) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        collect(&self.file(folder), Path::new(""), &mut files)?;
        Ok(files)
    }

    /// Names of the node's devices, loopback left out.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn devices(&self) -> Result<Vec<String>> {
        let links: Vec<Value> = serde_json::from_str(&self.netns.ip_show("-j link show")?)?;
        let names = links.iter().filter_map(|link| link["ifname"].as_str());
        Ok(names.filter(|name| *name != "lo").map(str::to_owned).collect())
    }
}

/// What the daemon writes on a node with both families.
pub const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn extend(conf: &mut Value, more: &Value) {
    if let (Some(conf), Some(more)) = (conf.as_object_mut(), more.as_object()) {
        conf.extend(more.clone());
    }
}

fn collect(dir: &Path, shown: &Path, files: &mut BTreeMap<String, String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => bail!("{}: {error}", dir.display()),
    };
    for entry in entries {
        let entry = entry?;
        let shown = shown.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &shown, files)?;
        } else if entry.file_name() != "lock" && entry.file_name() != "@boot" {
            files.insert(
                shown.display().to_string(),
                String::from_utf8_lossy(&fs::read(entry.path())?).into_owned(),
            );
        }
    }
    Ok(())
}
