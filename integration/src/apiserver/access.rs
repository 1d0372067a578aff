//! Who asks the API server: kubeconfigs for the daemon as we ship it, and for everything that goes wrong.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::ApiServer;
use super::pki::{Authority, Identity};

/// The namespace of our manifest.
pub const NAMESPACE: &str = "loden-system";
/// The ServiceAccount of our manifest.
pub const SERVICE_ACCOUNT: &str = "loden";

/// A way to reach the API server, each of which meets a different answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// May do everything.
    Admin,
    /// The ServiceAccount of the shipped manifest, with exactly its ClusterRole, by a token that is no pod's: it may read,
    /// and our admission policy lets it write nothing. Daemons that run get [`ApiServer::node_kubeconfig`].
    Daemon,
    /// A token the server did not sign: 401.
    BadToken,
    /// A user known to the server and bound to no role: 403.
    NoRbac,
    /// A good token, and a certificate authority that did not sign the server's certificate.
    UnknownCa,
    /// A good token, and a port on the server's address where nobody listens: connection refused.
    NobodyListens,
}

impl ApiServer {
    /// A kubeconfig file for `access`; it lives as long as this server.
    ///
    /// # Errors
    /// When the file cannot be written, or no token can be had (for those that carry one).
    pub fn kubeconfig(&self, access: Access) -> Result<PathBuf> {
        let path = self.dir().join(format!("{access:?}.kubeconfig"));
        if path.exists() {
            return Ok(path);
        }
        let mut server = self.url().to_owned();
        let mut ca = self.ca_pem().to_owned();
        let user = match access {
            Access::Admin => certificate(&self.authority().client("loden-admin", Some("system:masters"))?),
            Access::NoRbac => certificate(&self.authority().client("nobody", None)?),
            Access::BadToken => json!({ "token": "not-a-token-of-this-server" }),
            Access::Daemon => json!({ "token": self.daemon_token()? }),
            Access::UnknownCa => {
                ca = Authority::new("somebody-else")?.pem();
                json!({ "token": self.daemon_token()? })
            }
            Access::NobodyListens => {
                server = format!("https://{}", self.closed_address());
                json!({ "token": self.daemon_token()? })
            }
        };
        write_private(&path, &kubeconfig(&server, &ca, &user).to_string())?;
        Ok(path)
    }

    /// A kubeconfig for a user by certificate, as the parts of a cluster have one. `group` is what RBAC knows it by.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<String> {
        let identity = self.authority().client(user, group)?;
        Ok(kubeconfig(self.url(), self.ca_pem(), &certificate(&identity)).to_string())
    }

    /// A kubeconfig file for the daemon on `node`: by a token as the daemon's pod on that node gets it.
    ///
    /// # Errors
    /// As [`ApiServer::kubeconfig`].
    pub fn node_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        let path = self.dir().join(format!("{node}.node.kubeconfig"));
        if !path.exists() {
            let user = json!({ "token": self.pod_token(node)? });
            write_private(&path, &kubeconfig(self.url(), self.ca_pem(), &user).to_string())?;
        }
        Ok(path)
    }

    /// A folder as the daemon's pod on `node` finds it at `/var/run/secrets/kubernetes.io/serviceaccount`, for the
    /// in-cluster configuration.
    ///
    /// # Errors
    /// As [`ApiServer::kubeconfig`].
    pub fn service_account_folder(&self, node: &str) -> Result<PathBuf> {
        let dir = self.dir().join("serviceaccount").join(node);
        std::fs::create_dir_all(&dir)?;
        write_private(&dir.join("token"), &self.pod_token(node)?)?;
        write_private(&dir.join("ca.crt"), self.ca_pem())?;
        write_private(&dir.join("namespace"), NAMESPACE)?;
        Ok(dir)
    }

    /// A token of the ServiceAccount of the shipped manifest, which is applied first if it was not yet.
    ///
    /// # Errors
    /// When the manifest is refused or the server does not answer.
    pub fn daemon_token(&self) -> Result<String> {
        self.apply_shipped_manifest()?;
        self.token_for(NAMESPACE, SERVICE_ACCOUNT, None)
    }

    /// The same, bound to the daemon's pod on `node`, which is made first if there is none: only its record, as no
    /// scheduler and no kubelet run here.
    fn pod_token(&self, node: &str) -> Result<String> {
        self.apply_shipped_manifest()?;
        self.token_of_pod(NAMESPACE, SERVICE_ACCOUNT, &format!("loden-{node}"), node)
    }

    /// A token as the pod `name` on `node` gets it in a namespace that is there, with an account of it; the pod's record
    /// is made first if there is none.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn token_of_pod(
        &self,
        namespace: &'static str,
        account: &'static str,
        name: &str,
        node: &str,
    ) -> Result<String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": node,
                "hostNetwork": true,
                "serviceAccountName": account,
                "containers": [{ "name": "flanneld", "image": "loden" }],
            },
        }))?;
        let uid = self.call(move |client| async move {
            let pods: Api<Pod> = Api::namespaced(client, namespace);
            let known = pods.get_opt(pod.metadata.name.as_deref().unwrap_or_default()).await?;
            let pod = match known {
                Some(known) => known,
                None => pods.create(&PostParams::default(), &pod).await?,
            };
            Ok::<_, kube::Error>(pod.metadata.uid)
        })?;
        let pod = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            uid,
        };
        self.token_for(namespace, account, Some(pod))
    }

    /// Makes the shipped admission policy one for daemons with another annotation prefix, as its comment says.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn admit_prefix(&self, prefix: &str) -> Result<()> {
        let patch = json!([
            { "op": "test", "path": "/spec/variables/0/name", "value": "prefix" },
            { "op": "replace", "path": "/spec/variables/0/expression", "value": json!(prefix).to_string() },
        ]);
        let policy = "validatingadmissionpolicy/loden-own-node";
        self.kubectl(&["patch", policy, "--type=json", "-p", &patch.to_string()]).map(drop)
    }

    fn token_for(
        &self,
        namespace: &'static str,
        account: &'static str,
        bound_object_ref: Option<BoundObjectReference>,
    ) -> Result<String> {
        let request = TokenRequest {
            // Long enough for any test. A pod's token is renewed by the kubelet, which is not here.
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(24 * 3600),
                bound_object_ref,
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = self.call(move |client| async move {
            let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
            accounts.create_token_request(account, &PostParams::default(), &request).await
        })?;
        answer.status.and_then(|status| status.token).context("the TokenRequest came back without a token")
    }
}

/// JSON is YAML, so this is what a kubeconfig reader expects.
fn kubeconfig(server: &str, ca_pem: &str, user: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "loden",
        "clusters": [{ "name": "loden", "cluster": { "server": server, "certificate-authority-data": base64(ca_pem) } }],
        "users": [{ "name": "loden", "user": user }],
        "contexts": [{ "name": "loden", "context": { "cluster": "loden", "user": "loden" } }],
    })
}

fn certificate(identity: &Identity) -> Value {
    json!({ "client-certificate-data": base64(&identity.cert), "client-key-data": base64(&identity.key) })
}

fn base64(text: &str) -> Value {
    json!(k8s_openapi::ByteString(text.as_bytes().to_vec()))
}

/// Readable by its owner only, and never half written: tests that run side by side share these files.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("a path without a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    file.persist(path).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}
