//! The daemon reads a kubeconfig, and the files that it names, as kubectl does: both are asked the same. And it follows
//! these files while it runs.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{Access, ApiServer, Options};
use integration::kube_feed::KubeFeed;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Cluster;
use integration::wait;
use k8s_openapi::ByteString;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<One>::new()
        .check("each kubeconfig has the verdict that it has from kubectl", verdicts)
        .check("a client certificate behind a link is renewed, and a broken one changes nothing", certificate)
        .check("a kubeconfig is replaced as a whole", kubeconfig)
        .check("a token file is replaced by one that is refused, and by a good one", token)
        .check(
            "a broken file of the certificate authority changes nothing, and a good one is taken",
            authority,
        )
        .checks()
}

/// One node and an API server; each check starts the daemon.
struct One {
    cluster: Cluster,
    server: Arc<ApiServer>,
    /// What kubeconfigs name.
    dir: PathBuf,
}

impl Setup for One {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(1).build()?;
        let server = KubeFeed::install(&mut cluster, Options::default())?;
        let dir = cluster.dir().join("credentials");
        std::fs::create_dir(&dir)?;
        Ok(Self { cluster, server, dir })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

/// What a kubeconfig leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nodes are read.
    Served,
    /// The server is asked and refuses.
    Refused,
    /// It is not even asked.
    Unusable,
}

impl One {
    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> Result<()> {
        // As programs do that renew such a file: nobody ever reads half of it.
        let fresh = self.dir.join(format!("{name}.fresh"));
        std::fs::write(&fresh, text)?;
        std::fs::rename(&fresh, self.dir.join(name)).with_context(|| format!("write {name}"))
    }

    /// Certificate and key of a user who may do everything, in one file, as a kubelet keeps its own.
    fn put_certificate(&self, name: &str, user: &str) -> Result<()> {
        let config: Value = serde_json::from_str(&self.server.kubeconfig_for(user, Some("system:masters"))?)?;
        let part = |field: &str| -> Result<Vec<u8>> {
            let bytes: ByteString = serde_json::from_value(config["users"][0]["user"][field].clone())?;
            Ok(bytes.0)
        };
        let both = [part("client-certificate-data")?, part("client-key-data")?];
        self.put(name, both.join(&b'\n'))
    }

    fn link(&self, name: &str, to: &str) -> Result<()> {
        let fresh = self.dir.join("link.fresh");
        symlink(to, &fresh)?;
        std::fs::rename(&fresh, self.dir.join(name)).context("replace the link")
    }

    /// A kubeconfig with this user.
    fn kubeconfig(&self, name: &str, user: &Value) -> Result<PathBuf> {
        let good = std::fs::read(self.server.node_kubeconfig("n1")?)?;
        let mut config: Value = serde_json::from_slice(&good)?;
        config["users"][0]["user"] = user.clone();
        self.put(name, config.to_string())?;
        Ok(self.dir.join(name))
    }

    fn good_token(&self) -> Result<String> {
        let config: Value = serde_json::from_slice(&std::fs::read(self.server.node_kubeconfig("n1")?)?)?;
        Ok(config["users"][0]["user"]["token"].as_str().context("no token")?.to_owned())
    }

    fn start(&mut self, kubeconfig: &Path) -> Result<()> {
        let cache = self.cluster.node("n1")?.cache_file();
        if cache.exists() {
            std::fs::remove_file(cache)?;
        }
        let daemon = self.cluster.launch("n1")?.set("--kubeconfig-file", kubeconfig).spawn()?;
        self.cluster.node_mut("n1")?.adopt(daemon);
        Ok(())
    }

    fn start_ready(&mut self, kubeconfig: &Path) -> Result<()> {
        self.start(kubeconfig)?;
        self.cluster.node_mut("n1")?.daemon_mut()?.wait_ready().map(drop)
    }

    fn stop(&mut self) -> Result<()> {
        let (status, _) = self.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    fn kubectls(&self, kubeconfig: &Path) -> Result<(Verdict, String)> {
        let output = self.server.kubectl_by(kubeconfig, &["get", "--raw", "/api/v1/nodes?limit=1"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let verdict = match said.as_str() {
            _ if output.status.success() => Verdict::Served,
            said if said.contains("Error from server") || said.contains("must be logged in") => {
                Verdict::Refused
            }
            _ => Verdict::Unusable,
        };
        Ok((verdict, said))
    }

    fn ours(&mut self, kubeconfig: &Path) -> Result<(Verdict, String)> {
        self.start(kubeconfig)?;
        let daemon = self.cluster.node_mut("n1")?.daemon_mut()?;
        let (verdict, _) = wait::until("a verdict", || {
            if !daemon.is_running()? {
                return Ok(Some((Verdict::Unusable, daemon.log()?)));
            }
            // It may not listen yet.
            let Ok(answer) = daemon.get("/readyz") else { return Ok(None) };
            let refused = ["401", "403"].iter().any(|status| answer.body.contains(status));
            Ok(match answer.status {
                200 => Some((Verdict::Served, answer.body)),
                _ if refused => Some((Verdict::Refused, answer.body)),
                _ => None,
            })
        })?;
        if verdict.0 != Verdict::Unusable {
            self.stop()?;
        }
        Ok(verdict)
    }

    fn wait_asked_by(&self, user: &str) -> Result<std::time::Duration> {
        wait::until_true(&format!("{user} asks"), || Ok(!self.server.requests_of(user)?.is_empty()))
    }

    /// Nobody noticed anything: it is ready, and never lost its source.
    fn stays_ready(&self) -> Result<()> {
        let daemon = self.cluster.node("n1")?.daemon()?;
        let answer = daemon.get("/readyz")?;
        ensure!(answer.status == 200, "{answer:?}");
        let log = daemon.log()?;
        ensure!(!log.contains("SourceUnreadable"), "{log}");
        Ok(())
    }
}

fn verdicts(one: &mut One, notes: &Notes) -> Result<()> {
    use Verdict::{Refused, Served, Unusable};
    let token = one.good_token()?;
    one.put("token", format!("{token}\n"))?;
    one.put("empty", "")?;
    one.put_certificate("alice.pem", "alice")?;
    let pair = |more: Value| {
        let mut user = json!({ "client-certificate": "alice.pem", "client-key": "alice.pem" });
        if let (Some(user), Value::Object(more)) = (user.as_object_mut(), more) {
            user.extend(more);
        }
        user
    };
    let rows = [
        ("a token", json!({ "token": token }), Served),
        ("an empty token beside a file", json!({ "token": "", "tokenFile": "token" }), Served),
        ("a file that wins over a token", json!({ "token": "not-a-token", "tokenFile": "token" }), Served),
        (
            "a token that stands in for a file that is not there",
            json!({ "token": token, "tokenFile": "no" }),
            Served,
        ),
        ("an empty name beside a token", json!({ "username": "", "token": token }), Served),
        (
            "empty data beside files",
            pair(json!({ "client-certificate-data": "", "client-key-data": "" })),
            Served,
        ),
        ("certificate and empty token", pair(json!({ "token": "" })), Served),
        ("a token that the server does not know", json!({ "token": "not-a-token" }), Refused),
        ("a token and a name", json!({ "token": token, "username": "u", "password": "p" }), Unusable),
        ("a certificate without a key", json!({ "client-certificate": "alice.pem" }), Unusable),
        (
            "a certificate that is not there",
            json!({ "client-certificate": "no.pem", "client-key": "alice.pem" }),
            Unusable,
        ),
        ("a token file that is not there", json!({ "tokenFile": "no" }), Unusable),
        (
            "data that is no base64",
            json!({ "client-certificate-data": "%", "client-key-data": "%" }),
            Unusable,
        ),
    ];
    let mut wrong = Vec::new();
    for (what, user, expected) in &rows {
        let path = one.kubeconfig("config", user)?;
        let (kubectl, kubectl_said) = one.kubectls(&path)?;
        let (ours, said) = one.ours(&path)?;
        if (kubectl, ours) != (*expected, *expected) {
            wrong.push(format!("{what}: kubectl {kubectl:?} ({kubectl_said}), ours {ours:?} ({said})"));
        }
    }
    notes.add(format!("{} kubeconfigs have the same verdict from kubectl and from the daemon", rows.len()));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn certificate(one: &mut One, notes: &Notes) -> Result<()> {
    one.put_certificate("first.pem", "first")?;
    one.put_certificate("second.pem", "second")?;
    one.put("broken.pem", "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")?;
    one.link("current.pem", "first.pem")?;
    let user = json!({ "client-certificate": "current.pem", "client-key": "current.pem" });
    let path = one.kubeconfig("config", &user)?;
    one.start_ready(&path)?;
    one.wait_asked_by("first")?;
    one.link("current.pem", "second.pem")?;
    notes.took("a renewed client certificate is used after", one.wait_asked_by("second")?);
    one.stays_ready()?;
    one.link("current.pem", "broken.pem")?;
    let daemon = one.cluster.node("n1")?.daemon()?;
    notes.took("a broken one is told after", daemon.wait_concern("CredentialsUnreadable")?);
    one.stays_ready()?;
    one.link("current.pem", "first.pem")?;
    daemon.wait_no_concern("CredentialsUnreadable")?;
    one.stays_ready()?;
    one.stop()
}

fn kubeconfig(one: &mut One, notes: &Notes) -> Result<()> {
    let path = one.dir.join("config");
    one.put("config", one.server.kubeconfig_for("third", Some("system:masters"))?)?;
    one.start_ready(&path)?;
    one.put("config", one.server.kubeconfig_for("fourth", Some("system:masters"))?)?;
    notes.took("another kubeconfig is used after", one.wait_asked_by("fourth")?);
    one.put("config", "no: [yaml")?;
    let daemon = one.cluster.node("n1")?.daemon()?;
    daemon.wait_concern("CredentialsUnreadable")?;
    one.stays_ready()?;
    std::fs::remove_file(&path)?;
    one.put("config", one.server.kubeconfig_for("fifth", Some("system:masters"))?)?;
    one.wait_asked_by("fifth")?;
    daemon.wait_no_concern("CredentialsUnreadable")?;
    one.stays_ready()?;
    one.stop()
}

fn token(one: &mut One, notes: &Notes) -> Result<()> {
    let token = one.good_token()?;
    one.put("token", &token)?;
    let path = one.kubeconfig("config", &json!({ "tokenFile": "token" }))?;
    one.start_ready(&path)?;
    one.put("token", "not-a-token")?;
    let daemon = one.cluster.node("n1")?.daemon()?;
    // Its watch goes on; what is asked anew is refused.
    one.server.restart()?;
    notes.took("a token that is refused is told after", daemon.wait_concern("SourceUnreadable")?);
    one.put("token", &token)?;
    notes.took("and is over after a good one", daemon.wait_no_concern("SourceUnreadable")?);
    one.stop()
}

fn authority(one: &mut One, notes: &Notes) -> Result<()> {
    let ca = one.server.ca_pem().to_owned();
    one.put("ca.crt", &ca)?;
    let good = std::fs::read(one.server.kubeconfig(Access::Admin)?)?;
    let mut config: Value = serde_json::from_slice(&good)?;
    config["clusters"][0]["cluster"] =
        json!({ "server": one.server.url(), "certificate-authority": "ca.crt" });
    one.put("config", config.to_string())?;
    one.start_ready(&one.dir.join("config"))?;
    one.put("ca.crt", "no certificate")?;
    let daemon = one.cluster.node("n1")?.daemon()?;
    daemon.wait_concern("CredentialsUnreadable")?;
    one.stays_ready()?;
    one.put("ca.crt", format!("# renewed\n{ca}"))?;
    notes.took("a good authority is taken after", daemon.wait_no_concern("CredentialsUnreadable")?);
    one.stays_ready()?;
    one.stop()
}
